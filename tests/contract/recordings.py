"""The recorded replies of real servers."""

from __future__ import annotations

import json
from pathlib import Path

from tests.contract.recorder import Recording

REPLIES = Path(__file__).with_name("replies")


def recorded(name: str) -> dict[str, Recording]:
    """Return the recordings of a server, by case."""
    rows = json.loads((REPLIES / f"{name}.json").read_text())["replies"]
    return {row["case"]: row for row in rows}

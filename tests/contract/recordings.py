"""The recorded replies of real servers."""

from __future__ import annotations

import json
from pathlib import Path

from tests.contract.recorder import Recording
from tests.routes import MIDDLE, NEW, OLD

REPLIES = Path(__file__).with_name("replies")

IN_THE_SANDBOX = {OLD: "/api/v2", MIDDLE: "/3.6/api/v3", NEW: "/api/v3"}
"""The route prefix below which the sandbox answers as a version does."""

TOO_OLD = {"3.2.4": "", "3.3.1": "/api/v2"}
"""The versions that are refused, and the route prefix below which each has its routes."""


def recorded(name: str) -> dict[str, Recording]:
    """Return the recordings of a server, by case."""
    rows = json.loads((REPLIES / f"{name}.json").read_text())["replies"]
    return {row["case"]: row for row in rows}

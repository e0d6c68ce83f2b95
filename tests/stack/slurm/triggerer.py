"""A triggerer, as far as triggers can tell: many of them in one event loop of a process that may be killed.

``python triggerer.py TRIGGERS EVENTS`` runs all that one file holds, and writes what each one tells into
another. It is no module of the tests there: these take no notice of the connections in the environment.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from airflow.triggers.base import BaseTrigger


def store(triggers: list[BaseTrigger], file: Path) -> None:
    """Write triggers into a file, as Airflow does into its database."""
    file.write_text(json.dumps([trigger.serialize() for trigger in triggers]))


async def tell(path: str, kwargs: dict[str, Any], events: Path) -> None:
    """Run a trigger to its event, and add that to a file as one line."""
    module, _, name = path.rpartition(".")
    trigger: BaseTrigger = getattr(importlib.import_module(module), name)(**kwargs)
    async for event in trigger.run():
        with events.open("a") as file:
            file.write(json.dumps(event.payload) + "\n")


async def run(stored: list[tuple[str, dict[str, Any]]], events: Path) -> None:
    """Run all triggers to their ends."""
    await asyncio.gather(*(tell(*each, events) for each in stored))


if __name__ == "__main__":
    asyncio.run(run(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])))

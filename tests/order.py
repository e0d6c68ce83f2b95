"""In which order the tests run, and which of them share a process, where there are several processes.

Each process takes the next file that is left, so that those which take minutes come first. The process with
the Airflow has the right of way: Airflow's own time limits, such as that of a trigger that is killed, do not
know that the machine is busy.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

FIRST = "tests/end_to_end/"
"""All of its files share one Airflow, and so one process."""
LONG = (
    *(FIRST, "tests/proofs/", "tests/execution/", "tests/dev/", "tests/operators/", "tests/faults/"),
    *("tests/contract/", "tests/test_"),
)


def rank(nodeid: str) -> int:
    """Return the place of a test's folder."""
    return next((place for place, folder in enumerate(LONG) if nodeid.startswith(folder)), len(LONG))


@pytest.fixture(autouse=True, scope="session")
def _give_way() -> None:
    """Let a process that does not begin with the first folder step back, and all that it starts."""
    if "PYTEST_XDIST_WORKER" in os.environ and not os.environ["PYTEST_CURRENT_TEST"].startswith(FIRST):
        os.nice(5)


class Scheduling(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """A file for each process that is free, but one process for the first folder."""

    def _split_scope(self, nodeid: str) -> str:
        return FIRST if nodeid.startswith(FIRST) else str(super()._split_scope(nodeid))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long ones first; else the order stays."""
    items.sort(key=lambda item: rank(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    """Take the place of ``--dist loadfile``."""
    return Scheduling(config, log)

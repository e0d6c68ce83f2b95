"""Jobmon's status codes, by the names its own documentation uses (docs/protocol.md, "Statuses")."""

from __future__ import annotations

import re
from enum import Enum

_CODE = re.compile(r"[A-Za-z0-9_-]{1,20}")


class RunStatus(str, Enum):
    """Status of a workflow run. A value compares equal to Jobmon's one-letter code.

    A server that is newer than this client may report a status that has no member here. :func:`read_status`
    makes a value for it that is shown as ``UNKNOWN (X)``, has not ended, and equals its code.
    """

    REGISTERED = "G"
    LINKING = "L"
    BOUND = "B"
    INSTANTIATED = "I"
    LAUNCHED = "O"
    RUNNING = "R"
    DONE = "D"
    ERROR = "E"
    STOPPED = "S"
    ABORTED = "A"
    COLD_RESUME = "C"
    HOT_RESUME = "H"
    TERMINATED = "T"

    @property
    def is_terminal(self) -> bool:
        """Whether the run has ended; nothing leads out of these."""
        return self in _TERMINAL

    @property
    def is_known(self) -> bool:
        """Whether this version of the client knows the status, and so what may be done in it."""
        return self in _MEANING

    @property
    def meaning(self) -> str:
        """What this status tells the user, in a few words."""
        return _MEANING.get(self, "a status that this version of the provider does not know")

    def __str__(self) -> str:
        """Name and code, as shown to users: ``RUNNING (R)``."""
        return f"{self.name} ({self.value})"


_TERMINAL = frozenset(
    {RunStatus.DONE, RunStatus.ERROR, RunStatus.STOPPED, RunStatus.ABORTED, RunStatus.TERMINATED}
)

_MEANING = {
    RunStatus.REGISTERED: "created, not linked to its workflow yet",
    RunStatus.LINKING: "created, waiting for an executor",
    RunStatus.BOUND: "an executor has taken it",
    RunStatus.INSTANTIATED: "its executor is preparing tasks",
    RunStatus.LAUNCHED: "its executor has started",
    RunStatus.RUNNING: "its tasks are running",
    RunStatus.DONE: "every task is done",
    RunStatus.ERROR: "tasks failed, or its executor died and Jobmon's reaper ended it",
    RunStatus.STOPPED: "its executor was interrupted by a user",
    RunStatus.ABORTED: "it was given up, or its heartbeat ran out, before an executor took it",
    RunStatus.COLD_RESUME: "asked to stop: its running tasks are being killed",
    RunStatus.HOT_RESUME: "asked to stop once its running tasks have finished",
    RunStatus.TERMINATED: "it was stopped by a resume of the workflow",
}


def read_status(code: str) -> RunStatus:
    """Return the status of a code that a server sent, also of one that only a newer server knows.

    :param code: Jobmon's code.
    :raises ValueError: the text cannot be a code: letters, digits, ``_`` and ``-``, 20 at most.
    """
    try:
        return RunStatus(code)
    except ValueError:
        if not _CODE.fullmatch(code):
            raise
    # Enum makes no new members, and this is none: not in RunStatus, not found by RunStatus(code).
    unknown = str.__new__(RunStatus, code)
    unknown._name_, unknown._value_ = "UNKNOWN", code
    return unknown


class WorkflowStatus(str, Enum):
    """Status of a workflow, as ``wf_status`` of ``workflow_details_viz`` holds it."""

    REGISTERING = "G"
    QUEUED = "Q"
    INSTANTIATING = "I"
    LAUNCHED = "O"
    RUNNING = "R"
    DONE = "D"
    FAILED = "F"
    ABORTED = "A"
    HALTED = "H"

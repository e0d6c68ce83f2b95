"""Jobmon's status codes, by the names its own documentation uses (protocol page, "Statuses")."""

from __future__ import annotations

from enum import Enum


class RunStatus(str, Enum):
    """Status of a workflow run. A value compares equal to Jobmon's one-letter code."""

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
    def meaning(self) -> str:
        """What this status tells the user, in a few words."""
        return _MEANING[self]

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

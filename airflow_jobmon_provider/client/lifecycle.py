"""The life of a workflow run, told once: its statuses, and who may do what in each.

A client that creates a run gets it LINKING, and owns it. It keeps the run alive by heartbeats, and may end
it: only LINKING leads to ABORTED. An executor takes the run by moving it to BOUND, and owns it until it ends.
It moves the run through INSTANTIATED and LAUNCHED to RUNNING, and sends the heartbeats from there on. So a
client says nothing more that could move the run or its heartbeat date: if the executor dies, the heartbeat
runs out, and Jobmon's reaper ends the run.

Two things can go wrong on the way. The reaper ends no run in BOUND, INSTANTIATED or LAUNCHED: if the
executor dies there, a client that knows it must move the run to ERROR. And a signal to stop (``set_resume``)
moves a run in BOUND or RUNNING only; in any other status the server drops it without a word.

:data:`STAGES` says all of this as one table. It is what Jobmon's server does (docs/protocol.md, "Statuses"
and "Transitions"): ``tests/contract/test_lifecycle.py`` compares it with a real server, move by move.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple

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
        return self.stage.owner is Owner.ENDED

    @property
    def is_known(self) -> bool:
        """Whether this version of the client knows the status, and so what may be done in it."""
        return self in STAGES

    @property
    def is_starting(self) -> bool:
        """Whether an executor has the run and has not begun. The reaper ends no run in such a status."""
        return self.stage.owner is Owner.EXECUTOR and Mover.REAPER not in self.stage.moves

    @property
    def is_stopping(self) -> bool:
        """Whether the run was told to stop, and has not ended yet."""
        return self in (RunStatus.COLD_RESUME, RunStatus.HOT_RESUME)

    @property
    def takes_signals(self) -> bool:
        """Whether a signal to stop moves the run. In any other status the server drops it without a word."""
        return Mover.SIGNAL in self.stage.moves

    @property
    def stage(self) -> Stage:
        """The status's row in the table. For one that this version does not know, it allows nothing."""
        return STAGES.get(self, _UNKNOWN)

    @property
    def meaning(self) -> str:
        """What this status tells the user, in a few words."""
        return self.stage.meaning

    def __str__(self) -> str:
        """Name and code, as shown to users: ``RUNNING (R)``."""
        return f"{self.name} ({self.value})"


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


class Owner(Enum):
    """Who looks after a run."""

    SERVER = "the server"
    """It is about to link the run."""
    CREATOR = "the client that created it"
    """It sends the heartbeats."""
    EXECUTOR = "its executor"
    """It has taken the run, and sends the heartbeats from RUNNING on."""
    ENDED = "nobody, as it has ended"
    UNKNOWN = "not known"


class Mover(Enum):
    """Who moves a run from one status to another."""

    SERVER = "the server"
    CREATOR = "the client that created it"
    EXECUTOR = "its executor"
    SIGNAL = "a signal to stop"
    """``set_resume``, which any client may send."""
    REAPER = "the reaper"
    """Once the run's heartbeat date has passed."""
    UNDERTAKER = "a client that knows its executor dead"


class Stage(NamedTuple):
    """What holds for a run in one status.

    :param meaning: what the status tells the user, in a few words.
    :param owner: who looks after the run.
    :param moves: who may move the run, and where to. The server refuses any other move.
    :param heartbeat: whether the server accepts a heartbeat that says this status, and moves the run's
        heartbeat date by it.
    :param blocks: whether ``is_resumable`` waits for the run's end.
    :param workflow: the status that the run gives to its workflow; None: none.
    """

    meaning: str
    owner: Owner
    moves: Mapping[Mover, frozenset[RunStatus]]
    heartbeat: bool
    blocks: bool
    workflow: WorkflowStatus | None

    @property
    def leads_to(self) -> frozenset[RunStatus]:
        """The statuses to which the server lets a run be moved."""
        return frozenset().union(*self.moves.values())


def _stage(
    meaning: str,
    owner: Owner,
    workflow: str = "",
    *,
    heartbeat: bool = False,
    blocks: bool = False,
    **moves: str,
) -> Stage:
    """Return a row of the table; ``moves`` has codes by the mover's name."""
    to = {Mover[mover.upper()]: frozenset(map(RunStatus, codes)) for mover, codes in moves.items()}
    gives = WorkflowStatus(workflow) if workflow else None
    return Stage(meaning, owner, MappingProxyType(to), heartbeat, blocks, gives)


STAGES: Mapping[RunStatus, Stage] = MappingProxyType(
    {
        RunStatus.REGISTERED: _stage("created, not linked to its workflow yet", Owner.SERVER, server="L"),
        RunStatus.LINKING: _stage(
            "created, waiting for an executor",
            Owner.CREATOR,
            "G",
            heartbeat=True,
            blocks=True,
            executor="B",
            creator="A",
            reaper="A",
        ),
        RunStatus.BOUND: _stage(
            "an executor has taken it",
            Owner.EXECUTOR,
            "Q",
            blocks=True,
            executor="IE",
            undertaker="E",
            signal="CH",
        ),
        RunStatus.INSTANTIATED: _stage(
            "its executor is preparing tasks", Owner.EXECUTOR, "I", executor="OE", undertaker="E"
        ),
        RunStatus.LAUNCHED: _stage(
            "its executor has started", Owner.EXECUTOR, "O", executor="RE", undertaker="E"
        ),
        RunStatus.RUNNING: _stage(
            "its tasks are running",
            Owner.EXECUTOR,
            "R",
            heartbeat=True,
            blocks=True,
            executor="DSE",
            reaper="E",
            signal="CH",
        ),
        RunStatus.COLD_RESUME: _stage(
            "asked to stop: its running tasks are being killed",
            Owner.EXECUTOR,
            blocks=True,
            executor="T",
            reaper="T",
        ),
        RunStatus.HOT_RESUME: _stage(
            "asked to stop once its running tasks have finished",
            Owner.EXECUTOR,
            blocks=True,
            executor="T",
            reaper="T",
        ),
        RunStatus.DONE: _stage("every task is done", Owner.ENDED, "D"),
        RunStatus.ERROR: _stage(
            "tasks failed, or its executor died and Jobmon's reaper ended it", Owner.ENDED, "F"
        ),
        RunStatus.STOPPED: _stage("its executor was interrupted by a user", Owner.ENDED, "F"),
        RunStatus.ABORTED: _stage(
            "it was given up, or its heartbeat ran out, before an executor took it", Owner.ENDED, "A"
        ),
        RunStatus.TERMINATED: _stage("it was stopped by a resume of the workflow", Owner.ENDED, "H"),
    }
)

_UNKNOWN = _stage("a status that this version of the provider does not know", Owner.UNKNOWN)


def moves(*movers: Mover) -> frozenset[tuple[RunStatus, RunStatus]]:
    """Return the moves that these may make, as pairs of the old and the new status.

    :param movers: who moves; none: all of them.
    """
    return frozenset(
        (status, new)
        for status, stage in STAGES.items()
        for mover in movers or Mover
        for new in stage.moves.get(mover, ())
    )


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
    # Enum makes no new members, and this is not one: not in RunStatus, not found by RunStatus(code).
    unknown = str.__new__(RunStatus, code)
    unknown._name_, unknown._value_ = "UNKNOWN", code
    return unknown

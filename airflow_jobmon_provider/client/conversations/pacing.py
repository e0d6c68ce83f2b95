"""Pure decisions: when to ask next, when to beat next, what a status asks of whom.

Nothing here does I/O or reads a clock: time comes in as seconds, chance as a ``uniform(low, high)`` function.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

from airflow_jobmon_provider.client.heartbeat import KeepAlive
from airflow_jobmon_provider.client.lifecycle import STAGES, Owner, RunStatus, WorkflowStatus

if TYPE_CHECKING:
    from airflow_jobmon_provider.client.protocol import Resumability

Uniform = Callable[[float, float], float]

LONGEST_RESUME_PAUSE = 10.0
LONGEST_OUTAGE_PAUSE = 10.0

COMMIT_PATIENCE = 10.0
"""Seconds of a run's life in which its server may not have committed it yet (a server may reply before)."""

STARTUP_WARNING = 300.0

KILL_PATIENCE = 95.0
"""Seconds for tasks that were told to kill themselves: by default they hear of it within 90 s."""

_LEAST_BEAT_TIMEOUT = 1.0


def beats(keep_alive: KeepAlive, status: RunStatus) -> bool:
    """Whether a heartbeat is to be sent for a run that was last seen in this status.

    Not where none can keep the run alive (docs/protocol.md, "Heartbeats").
    """
    if not status.stage.heartbeat:
        return False
    ours = status.stage.owner is Owner.CREATOR
    return keep_alive is KeepAlive.UNTIL_DONE or (ours and keep_alive is KeepAlive.UNTIL_BOUND)


def beat_timeout(left: float | None, window: float) -> float:
    """Return how long to wait for the reply to a heartbeat: a third of what is left of the run's window.

    So a reply that hangs leaves time for others, whatever a connection allows for each request. Where the
    last heartbeat is not known, a tenth of the window: it may be nearly out.

    :param left: seconds until the last heartbeat runs out; None: not known.
    :param window: seconds for which a heartbeat is good.
    """
    share = window / 10 if left is None else (left if left > 0 else window) / 3
    return max(share, _LEAST_BEAT_TIMEOUT)


def startup_warning(limit: float | None) -> float:
    """Return after how many seconds to warn of a run whose executor has not begun.

    :param limit: seconds after which the run is ended; None: never.
    """
    return STARTUP_WARNING if limit is None else min(STARTUP_WARNING, limit / 2)


class ResumeStep(Enum):
    """What to do after a reply of ``is_resumable``."""

    RESUMABLE = "resumable"
    CLEAN_UP = "clean up"
    WAIT = "wait"


def resume_step(reply: Resumability, force_cleanup: bool) -> ResumeStep:
    """Return what follows from the reply.

    :param force_cleanup: the user wants stuck KILL_SELF task instances cleaned up instead of waited for.
    """
    if reply.resumable:
        return ResumeStep.RESUMABLE
    # A server that does not count them (3.4.8) has no route to clean them up either: asking it says so,
    # clearly and at once, where waiting would end in a time-out that the user cannot explain.
    if force_cleanup and reply.pending_kill_self != 0:
        return ResumeStep.CLEAN_UP
    return ResumeStep.WAIT


STARTING = tuple(
    stage.workflow for stage in STAGES.values() if stage.owner is Owner.EXECUTOR and not stage.blocks
)
"""An executor has the workflow's run and is about to begin, which ``is_resumable`` overlooks."""


def misses_signals(status: str | None) -> bool:
    """Whether a live run of a workflow in this status may not take a signal to stop, or not have taken it.

    The server moves a run in B or R only. One that is linked, instantiated or launched takes none; one that
    is bound may have missed one just before, or miss one just after.
    """
    return status in (WorkflowStatus.REGISTERING, WorkflowStatus.QUEUED, *STARTING)


def resume_pause(elapsed: float, uniform: Uniform, longest: float = LONGEST_RESUME_PAUSE) -> float:
    """Return how long to wait before asking again whether a workflow is resumable.

    Well under a second at first, two seconds within the first minute, up to ten after five minutes: 35
    requests in the first minute at most, and seen within a second in the median.

    :param elapsed: seconds since the first check.
    :param longest: never wait longer; the pause grows up to it, by a thirtieth of the time. Default 10.
    """
    pause = min(max(elapsed, 0.3), 1.96) if elapsed < 60 else elapsed / 30
    return uniform(0.98, 1.0) * min(pause, longest)


def run_pause(since_change: float, longest: float, uniform: Uniform) -> float:
    """Return how long to wait before looking at a run again: a quarter of the time it has been as it is.

    So the delay with which a change is seen is small beside how long it took, and a run that is silent for
    long costs one request each ``longest`` seconds.

    :param since_change: seconds since the status last changed.
    :param longest: poll interval, or the heartbeat interval while this client beats.
    """
    pause = max(since_change / 4, 1.0)
    return longest if pause >= longest else uniform(0.9, 1.0) * pause


def first_long_pause(longest: float, uniform: Uniform) -> float:
    """Return the pause before the first look at which the full interval would be waited for.

    Once, somewhere within the interval, so that thousands of watches that a triggerer started at the same
    moment are spread over it from then on, and none looks late.
    """
    return uniform(0.0, 1.0) * longest


def outage_pause(failures: int, retry_after: float | None, longest: float, uniform: Uniform) -> float:
    """Return how long to wait before asking a server again that failed or was not reached.

    :param failures: how many requests in a row have failed, at least 1.
    :param retry_after: seconds the server asked for; honoured up to ``longest``.
    :param longest: never wait longer, so that a heartbeat is not missed once the server is back.
    """
    ceiling = min(longest, LONGEST_OUTAGE_PAUSE)
    pause = uniform(0.5, 1.0) * min(0.5 * 2.0 ** min(failures, 10), ceiling)
    return max(pause, min(retry_after or 0.0, ceiling))

"""How a run is kept alive: how often, for how long a heartbeat counts, and until when that is our work."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from enum import Enum

from airflow_jobmon_provider.client.validation import number, seconds

WAITS_LONG = 600.0
"""Seconds in LINKING after which a run may be beaten for less often."""

EASED = 4
"""By how much its interval, and what a heartbeat promises, are longer then. A beat costs the server 4.9 ms,
so that one process takes some 140 a second (docs/protocol.md, "Size"): 10,000 runs that wait in a cluster's
queue would send 333 at the usual interval, and send 83."""

_WHY_LATE = "every heartbeat would come too late"


@dataclass(frozen=True)
class Heartbeat:
    """How often heartbeats are sent, and for how long one counts.

    :param interval: seconds between two heartbeats. Default: Jobmon's, 30.
    :param buffer: a heartbeat counts for the interval times this. Default: Jobmon's, 3.1.
    :param eases: no user has set the interval, so that a run which waits long may have fewer. Default False.
    :raises ValueError: one of them is negative or not finite.
    """

    interval: float = 30.0
    buffer: float = 3.1
    eases: bool = False

    def __post_init__(self) -> None:
        number("heartbeat_interval", self.interval)
        number("report_by_buffer", self.buffer)

    @property
    def good_for(self) -> float:
        """Seconds after which the run is lost, unless another heartbeat has come."""
        return self.interval * self.buffer

    def after(self, waited: float) -> Heartbeat:
        """Return what holds for a run that has been LINKING for so many seconds."""
        if not self.eases or waited < WAITS_LONG:
            return self
        return replace(self, interval=self.interval * EASED, eases=False)


class KeepAlive(str, Enum):
    """For how long a run's heartbeat is this client's business (docs/rules.md, rule 1)."""

    NEVER = "never"
    """Only watch. A run in LINKING is lost once its heartbeat runs out."""
    UNTIL_BOUND = "until_bound"
    """While LINKING. From BOUND on the executor beats, and a dead one must be seen by Jobmon's reaper."""
    UNTIL_DONE = "until_done"
    """While LINKING and RUNNING, for executors that do not beat themselves: hides their death for ever."""


def check_heartbeat(interval: float | None, buffer: float | None) -> None:
    """Check a heartbeat's interval and buffer where they are given; an operator's must work.

    :raises ValueError: the interval is not above 0, or the buffer not above 1.
    """
    if interval is not None:
        number("workflow_run_heartbeat_interval", interval, above=0, why=_WHY_LATE)
    if buffer is not None:
        number("heartbeat_report_by_buffer", buffer, above=1, why=_WHY_LATE)


def checked_interval(interval: float | timedelta | None, buffer: float | None) -> float | None:
    """Return a heartbeat's interval in seconds, checked with the buffer where they are given.

    :param interval: in seconds, or a ``timedelta``; None: not given.
    :raises ValueError: see :func:`check_heartbeat`.
    """
    in_seconds = None if interval is None else seconds("workflow_run_heartbeat_interval", interval)
    check_heartbeat(in_seconds, buffer)
    return in_seconds


def heartbeat_of(default: Heartbeat, interval: float | None, buffer: float | None) -> Heartbeat:
    """Return the heartbeat: interval and buffer that are given, else those of the default; they must work.

    :raises ValueError: the interval is not above 0, or the buffer not above 1.
    """
    heartbeat = default
    if interval is not None:
        heartbeat = replace(heartbeat, interval=interval, eases=False)
    if buffer is not None:
        heartbeat = replace(heartbeat, buffer=buffer)
    check_heartbeat(heartbeat.interval, heartbeat.buffer)
    return heartbeat

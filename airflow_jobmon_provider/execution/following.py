"""Start a job and follow it to its end: a generator, as conversations are, which does no I/O.

It yields what a host is to do, and is told what came of it; its driver is a thread on a worker, and a task in
a triggerer, where one look at a host serves all jobs there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias

from airflow_jobmon_provider.client.conversations import Log
from airflow_jobmon_provider.execution.command import Command, HostNotReached, HostRefused
from airflow_jobmon_provider.execution.executor import Exit
from airflow_jobmon_provider.execution.job import Job
from airflow_jobmon_provider.execution.launchers import JobSeen, JobStage
from airflow_jobmon_provider.execution.said import Said

LOOK_INTERVAL = 5.0
"""Seconds between two looks at a job: its output is in the task's log within ten."""

_EXIT_PATIENCE = 30.0  # seconds until a file that was written on one host must be seen on another
_LONGEST_OUTAGE_PAUSE = 30.0


@dataclass(frozen=True)
class Run:
    """Run this command on the host; send in what it returns, or throw in what it raised."""

    command: Command[Any]


@dataclass(frozen=True)
class Recall:
    """Find how many bytes of its output are in the task's log; send that in, or throw what was raised."""

    job: Job


@dataclass(frozen=True)
class Look:
    """Look at the job, then read its output from there on; send in both, or throw in what was raised.

    :param job: the job.
    :param known: how many bytes of its output were read before.
    """

    job: Job
    known: int


@dataclass(frozen=True)
class Logged:
    """So many bytes of its output are in the task's log. What comes of keeping that does not matter."""

    job: Job
    known: int


@dataclass(frozen=True)
class Wait:
    """Wait so many seconds."""

    seconds: float


Step: TypeAlias = Run | Recall | Look | Logged | Wait

Following: TypeAlias = Generator[Step, Any, None]


class Follower:
    """What is known of a job; :meth:`follow` learns it.

    :param host: what users call the host.
    :param log: the task's.
    :param said: gets what the executor writes.
    :param clock: monotonic seconds.
    :param handoff_timeout: seconds that the executor has to take the run, from when it has begun.
    :param queue_timeout: seconds of the run's life for which it may wait to begin. Default: for ever.
    :ivar log: the task's.
    :ivar job: the job, once it was started.
    :ivar seen: what the host told last; None: nothing yet.
    :ivar refused: why the job could not be started; None: it could.
    """

    def __init__(
        self,
        host: str,
        log: Log,
        said: Said,
        clock: Callable[[], float],
        *,
        handoff_timeout: float,
        queue_timeout: float | None = None,
    ) -> None:
        self.handoff_timeout = handoff_timeout
        self.queue_timeout = queue_timeout
        self.job: Job | None = None
        self.seen: JobSeen | None = None
        self.refused: str | None = None
        self._host = host
        self.log = log
        self._said = said
        self._clock = clock
        self._known = 0
        self._noted = ""
        self._outage_since: float | None = None
        self._failures = 0

    @property
    def is_over(self) -> bool:
        """Whether the job is over, or never was."""
        return self.refused is not None or (self.seen is not None and self.seen.stage is JobStage.OVER)

    @property
    def is_waiting(self) -> bool:
        """Whether it was started and has not begun, as far as is known."""
        return self.job is not None and not self.is_over and (self.seen is None or self.is_queued)

    @property
    def is_queued(self) -> bool:
        """Whether it is known that it has not begun."""
        return self.seen is not None and self.seen.stage is JobStage.WAITING

    @property
    def exit_code(self) -> int | None:
        """The executor's exit code; None: it has not ended by itself."""
        return self.seen.left.exit_code if self.seen is not None else None

    @property
    def was_stopped(self) -> bool:
        """Whether a signal has ended the executor: the scheduler may be about to put its job back."""
        return self.exit_code == Exit.STOPPED

    @property
    def has_taken(self) -> bool:
        """Whether the executor has asked the server for the run."""
        return self.seen is not None and self.seen.left.taken

    @property
    def problem(self) -> str | None:
        """What kept the executor from executing the run to its end, in one line; None: nothing."""
        if self.refused is not None:
            return self.refused
        if self.seen is None or not self.is_over:
            return None
        ending = self.seen.ending
        if not ending and self.exit_code is None:
            ending = f"{self.seen.said}, and its executor has left no exit code"
        return self._said.problem(self.exit_code, ending)

    def start(self, command: Command[Job]) -> Following:
        """Have the job started; an outage is outlived, as the job is never started twice.

        Afterwards ``job`` or ``refused`` says what came of it.
        """
        while self.job is None:
            try:
                self.job = yield Run(command)
            except HostNotReached as outage:
                yield Wait(self._note_outage(outage))
            except HostRefused as refused:
                self._note_answer()
                self.refused = f"the executor could not be started on {self._host}: {refused}"
                return
        self._note_answer()

    def follow(self) -> Following:
        """Follow the job until it is over, and all that its executor has written is logged.

        What an earlier follower has logged is not logged again.
        """
        assert self.job is not None
        yield from self._recall(self.job)
        over_since: float | None = None
        while True:
            try:
                seen, written = yield Look(self.job, self._known)
            except (HostNotReached, HostRefused) as outage:
                yield Wait(self._note_outage(outage))
                continue
            self._note_answer()
            yield from self._take(written)
            over = seen.stage is JobStage.OVER
            if over and not seen.ending and seen.left.exit_code is None:
                over_since = self._clock() if over_since is None else over_since
                over = self._clock() - over_since >= _EXIT_PATIENCE
            if over and not written:
                self._said.take(b"", last=True)
                self._note(seen)
                self.seen = seen
                return
            if seen.stage is not JobStage.OVER:
                self._note(seen)
                self.seen = seen
            if not written:
                yield Wait(LOOK_INTERVAL)

    def _recall(self, job: Job) -> Following:
        while True:
            try:
                self._known = yield Recall(job)
                return
            except (HostNotReached, HostRefused) as outage:
                yield Wait(self._note_outage(outage))

    def _take(self, written: bytes) -> Following:
        self._said.take(written)
        if written:
            assert self.job is not None
            self._known += len(written)
            yield Logged(self.job, self._known)

    def _note(self, seen: JobSeen) -> None:
        """Log where the job stands, when that has changed."""
        if seen.said != self._noted:
            self._noted = seen.said
            self.log.log(logging.INFO, "%s", seen.said)

    def _note_outage(self, error: Exception) -> float:
        """Log the beginning of an outage, and return how many seconds to wait."""
        self._failures += 1
        if self._outage_since is None:
            self._outage_since = self._clock()
            line = "%s does not answer, which changes nothing about the run; will keep trying: %s"
            self.log.log(logging.WARNING, line, self._host, error)
        return min(2.0**self._failures, _LONGEST_OUTAGE_PAUSE)

    def _note_answer(self) -> None:
        """Log the end of an outage."""
        if self._outage_since is not None:
            seconds = self._clock() - self._outage_since
            self.log.log(logging.INFO, "%s answers again, after %.0f s", self._host, seconds)
        self._outage_since, self._failures = None, 0

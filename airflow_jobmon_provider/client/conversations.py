"""Exchanges of several requests with the server, written once for blocking and asyncio code.

A conversation is a generator. It yields what to do next (:class:`Ask`, :class:`Pause`, :class:`Note`) and a
transport's ``converse`` does it: sends the call and sends the reply back in, or throws the ``JobmonError``
that came instead. What the generator returns is the conversation's result. No I/O, no clock of its own.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Protocol, TypeVar

from airflow_jobmon_provider.client import decisions, protocol
from airflow_jobmon_provider.client.decisions import KeepAlive, ResumeStep, Uniform
from airflow_jobmon_provider.client.exceptions import (
    JobmonError,
    ResumeTimeout,
    ServerFailure,
    ServerUnreachable,
)
from airflow_jobmon_provider.client.protocol import Call
from airflow_jobmon_provider.client.statuses import RunStatus

T = TypeVar("T")
Clock = Callable[[], float]

_SHORTEST_PAUSE = 0.001  # a rest smaller than a clock's resolution would never be over


@dataclass(frozen=True, slots=True)
class Ask:
    """Send this call once; send in what its ``read`` returns, or throw in what it raised.

    :param call: the call.
    :param timeout: seconds that it may take, with the wait for a free connection. Default: the time that the
        transport gives every call. The transport never gives more than that.
    """

    call: Call[Any]
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Note:
    """Log this line at this level of ``logging``."""

    level: int
    text: str


Step = Ask | Pause | Note


class Log(Protocol):
    """Where notes go: a logger of ``logging``, or Airflow's."""

    def log(self, level: int, line: str, /, *args: object) -> object:
        """Log a line."""


Conversation = Generator[Step, Any, T]


class Outage:
    """Outlives a server that fails or is not reached: warns when that starts and when it ends (rule 3)."""

    __slots__ = ("_clock", "_failures", "_since", "_subject", "_tries_on", "error")

    def __init__(self, subject: str, clock: Clock, *, tries_on: bool = True) -> None:
        self._subject = subject
        self._tries_on = tries_on
        self._clock = clock
        self._failures = 0
        self._since = 0.0
        self.error: ServerFailure | ServerUnreachable | None = None

    def ask(self, call: Call[T]) -> Conversation[T | None]:
        """Ask once. None: the server failed for now, ``error`` says how."""
        try:
            reply: T = yield Ask(call)
        except (ServerFailure, ServerUnreachable) as error:
            if self.error is None and self._tries_on:
                self._since = self._clock()
                yield Note(logging.WARNING, f"{self._subject}: Jobmon does not answer, trying on: {error}")
            self.error = error
            self._failures += 1
            return None
        if self.error is not None:
            seconds = self._clock() - self._since
            yield Note(logging.WARNING, f"{self._subject}: Jobmon answers again after {seconds:.0f} s")
            self.error = None
            self._failures = 0
        return reply

    def pause(self, longest: float, uniform: Uniform) -> float:
        """Return how many seconds to wait before asking again."""
        retry_after = self.error.retry_after if isinstance(self.error, ServerFailure) else None
        return decisions.outage_pause(self._failures, retry_after, longest, uniform)


def limited(conversation: Conversation[T], timeout: float | None, *, clock: Clock) -> Conversation[T]:
    """Carry on a conversation that has no limit of its own, for so many seconds at most.

    :param timeout: seconds; None: for ever.
    :param clock: monotonic seconds.
    :raises ServerUnreachable: the time is over.
    """
    if timeout is None:
        return (yield from conversation)
    end = clock() + timeout
    try:
        step = next(conversation)
        while True:
            left = end - clock()
            if left <= 0:
                raise ServerUnreachable("no time is left to ask", processed=False)
            if isinstance(step, Ask):
                step = replace(step, timeout=min(left, left if step.timeout is None else step.timeout))
            elif isinstance(step, Pause):
                step = Pause(min(step.seconds, left))
            try:
                reply = yield step
            except JobmonError as error:
                step = conversation.throw(error)
            else:
                step = conversation.send(reply)
    except StopIteration as returned:
        result: T = returned.value
        return result
    finally:
        conversation.close()


def wait_until_resumable(
    workflow_id: int,
    *,
    timeout: float,
    force_cleanup: bool,
    clock: Clock,
    uniform: Uniform = random.uniform,
) -> Conversation[None]:
    """Return once the workflow is resumable.

    The first check is at once, and nothing is waited for after the one that says yes. An outage is waited
    out as long as the time-out allows.

    :param timeout: seconds; 0: check once.
    :param force_cleanup: clean KILL_SELF task instances up instead of waiting for their workers.
    :param clock: monotonic seconds.
    :raises ResumeTimeout: the time is over.
    :raises ServerFailure, ServerUnreachable: the time is over, and the server did not answer at the end.
    :raises RouteNotSupported: a clean-up is wanted of a server that has none.
    :raises WorkflowNotFound, InvalidRequest, UnreadableReply: final, whatever the time.
    """
    started = clock()
    outage = Outage(f"workflow {workflow_id}", clock, tries_on=timeout > 0)
    pending = 0
    just_cleaned = False
    while True:
        reply = yield from outage.ask(protocol.is_resumable(workflow_id))
        if reply is not None:
            pending = reply.pending_kill_self or 0
            step = decisions.resume_step(reply, force_cleanup)
            if step is ResumeStep.RESUMABLE:
                return
            if step is ResumeStep.CLEAN_UP and not just_cleaned:
                cleaned = yield from outage.ask(protocol.force_cleanup_kill_self(workflow_id))
                if cleaned is not None:
                    text = f"forced the clean-up of {cleaned} KILL_SELF task instance(s)"
                    yield Note(logging.WARNING, f"workflow {workflow_id}: {text}")
                    just_cleaned = True
                    continue
            just_cleaned = False
        elapsed = clock() - started
        if elapsed >= timeout:
            raise outage.error or ResumeTimeout(_not_resumable(workflow_id, elapsed, pending, force_cleanup))
        wanted = decisions.resume_pause(elapsed, uniform)
        if outage.error is not None:
            wanted = outage.pause(decisions.LONGEST_OUTAGE_PAUSE, uniform)
        yield Pause(max(min(wanted, timeout - elapsed), _SHORTEST_PAUSE))


def _not_resumable(workflow_id: int, elapsed: float, pending: int, force_cleanup: bool) -> str:
    text = f"workflow {workflow_id} did not become resumable within {elapsed:.1f} s"
    if pending:
        text += f": {pending} task instance(s) in KILL_SELF have not ended"
        if not force_cleanup:
            text += "; if their jobs are gone (scancel, node failure), use force_cleanup=True"
    else:
        text += ": a run of it is still alive"
    return (
        text + ". Wait longer, or for Jobmon's reaper if the run's process has died (by default up to 6.5"
        " minutes after its last heartbeat)"
    )


class Progress(Protocol):
    """Looks at the tasks of a run that is being watched; ``follow.ProgressWatch`` is one."""

    def is_due(self) -> bool:
        """Whether it is time to look."""

    def look(self) -> Conversation[bool]:
        """Say how far they are; return whether none of them is left to run. Raises no ``JobmonError``."""


class RunOutcome(str, Enum):
    """Why the watch of a run is over."""

    DONE = "done"
    FAILED = "failed"
    """It ended otherwise; the status says how."""
    HANDOFF_TIMEOUT = "handoff_timeout"
    """No executor took it in time, so it was aborted."""
    TIMEOUT = "timeout"
    """The time given for the whole run is over; aborted if it was still ours."""


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How the watch of a run ended.

    :param outcome: why it is over.
    :param status: status the server last reported; None: it never answered.
    :param message: one line for the user.
    """

    outcome: RunOutcome
    status: RunStatus | None
    message: str


def watch_run(
    workflow_run_id: int,
    *,
    keep_alive: KeepAlive,
    heartbeat_interval: float,
    report_by_buffer: float,
    poll_interval: float,
    clock: Clock,
    handoff_timeout: float | None = None,
    timeout: float | None = None,
    owned: bool = False,
    age: float = 0.0,
    progress: Progress | None = None,
    startup_timeout: float | None = None,
    uniform: Uniform = random.uniform,
) -> Conversation[RunEnd]:
    """Follow a run to its end, and keep it alive where that is our business.

    One request both beats and polls. A heartbeat carries the status that the server last reported; the first
    one says LINKING, which is accepted in LINKING, changes nothing there, and is refused anywhere else.

    :param keep_alive: in which statuses to beat.
    :param heartbeat_interval: seconds between heartbeats.
    :param report_by_buffer: a heartbeat is good for the interval times this.
    :param poll_interval: longest pause in seconds between looks at a run that an executor has.
    :param clock: monotonic seconds.
    :param handoff_timeout: seconds for which the run may stay in LINKING; then it is aborted. None: for ever.
    :param timeout: seconds after which to stop watching. None: never.
    :param owned: the run is ours: abort it if it is still in LINKING when the time is over.
    :param age: seconds for which the run has existed before, so that a triggerer that takes over 10,000 old
        runs does not poll them as if they were new.
    :param progress: takes the place of a look at a run that is RUNNING, at most every other one; where it
        finds no task left to run, the look follows at once. So counting tasks costs no request of its own and
        delays no end. Default: nobody asks.
    :raises WorkflowRunNotFound, InvalidRequest, UnreadableReply: final. An outage is not, and is outlived.
    """
    started = clock()
    end = None if timeout is None else started + timeout
    changed = started - age
    outage = Outage(f"workflow run {workflow_run_id}", clock)
    status: RunStatus | None = None
    asked_as: RunStatus | None = None
    call: Call[RunStatus] | None = None
    spread = counting = False
    while True:
        asked = clock()
        seen: RunStatus | None = None
        # Not while we beat for a running run: a count that hangs would delay the next heartbeat.
        watching = status is RunStatus.RUNNING and not decisions.beats(keep_alive, status)
        due = watching and not counting and not _is_over(end, clock)
        if progress is not None and due and progress.is_due():
            settled = yield from progress.look()
            counting = not settled and not _is_over(end, clock)  # the last look is at the run
        else:
            counting = False
        if not counting:
            # An unknown status is asked for with the heartbeat that is right if the run is still ours.
            assumed = status or RunStatus.LINKING
            if call is None or assumed is not asked_as:
                asked_as = assumed
                if decisions.beats(keep_alive, assumed):
                    good_for = heartbeat_interval * report_by_buffer
                    call = protocol.log_heartbeat(workflow_run_id, assumed, good_for)
                else:
                    call = protocol.peek_status(workflow_run_id)
            seen = yield from outage.ask(call)
        waited = clock() - started
        expired = _is_over(end, clock) and not counting
        unclaimed = handoff_timeout is not None and waited >= handoff_timeout
        if seen is RunStatus.LINKING and (unclaimed or (expired and owned)):
            # The server decides this race: refused, and an executor has taken the run after all.
            seen = yield from outage.ask(protocol.update_status(workflow_run_id, RunStatus.ABORTED))
            if seen is RunStatus.ABORTED:
                return _given_up(workflow_run_id, waited, by_deadline=expired)
        if seen is not None and seen is not status:
            if status is not None:
                changed = clock()
            status = seen
            if status.is_terminal:
                return ended(workflow_run_id, status)
            yield Note(logging.INFO, f"workflow run {workflow_run_id} is {status}: {status.meaning}")
        now = clock()
        if expired:
            return RunEnd(RunOutcome.TIMEOUT, status, _overdue(workflow_run_id, now - started, status))
        beating = decisions.beats(keep_alive, status or RunStatus.LINKING)
        longest = heartbeat_interval if beating else poll_interval
        if outage.error is not None:
            wait = outage.pause(heartbeat_interval / 3, uniform)
        else:
            pause = decisions.run_pause(now - changed, longest, uniform)
            if pause >= longest and not spread:
                spread = True
                pause = decisions.first_long_pause(longest, uniform)
            # A heartbeat is due an interval after the last one was sent, however long its reply took.
            wait = pause - (now - asked)
        if end is not None:
            wait = min(wait, end - now)
        if handoff_timeout is not None and beating and not unclaimed:
            wait = min(wait, started + handoff_timeout - now)
        yield Pause(max(wait, _SHORTEST_PAUSE))


def _is_over(end: float | None, clock: Clock) -> bool:
    return end is not None and clock() >= end


def look_at_run(
    workflow_run_id: int, *, keep_alive: KeepAlive, heartbeat_interval: float, report_by_buffer: float
) -> Conversation[RunStatus]:
    """Return a run's status, beating once if that is our business. For callers that come by now and then.

    :param keep_alive: in which statuses to beat.
    :param heartbeat_interval: seconds between heartbeats.
    :param report_by_buffer: a heartbeat is good for the interval times this.
    :raises JobmonError: the server was not reached, or says no.
    """
    good_for = heartbeat_interval * report_by_buffer
    if not decisions.beats(keep_alive, RunStatus.LINKING):
        status: RunStatus = yield Ask(protocol.peek_status(workflow_run_id))
        return status
    status = yield Ask(protocol.log_heartbeat(workflow_run_id, RunStatus.LINKING, good_for))
    if status is not RunStatus.LINKING and decisions.beats(keep_alive, status):
        status = yield Ask(protocol.log_heartbeat(workflow_run_id, status, good_for))
    return status


def ended(workflow_run_id: int, status: RunStatus) -> RunEnd:
    """Return what a terminal status means for whoever waits for the run."""
    outcome = RunOutcome.DONE if status is RunStatus.DONE else RunOutcome.FAILED
    return RunEnd(outcome, status, f"workflow run {workflow_run_id} ended {status}: {status.meaning}")


def _given_up(workflow_run_id: int, elapsed: float, *, by_deadline: bool) -> RunEnd:
    what = "its time was over" if by_deadline else "no executor took it"
    message = (
        f"workflow run {workflow_run_id}: {what} after {elapsed:.0f} s in LINKING, so it was aborted."
        f" Start an executor for it in time, or allow more"
    )
    return RunEnd(
        RunOutcome.TIMEOUT if by_deadline else RunOutcome.HANDOFF_TIMEOUT, RunStatus.ABORTED, message
    )


def _overdue(workflow_run_id: int, elapsed: float, status: RunStatus | None) -> str:
    known = f"is still {status}: {status.meaning}" if status else "could not be asked about"
    return f"workflow run {workflow_run_id} {known}, and its time is over after {elapsed:.0f} s"

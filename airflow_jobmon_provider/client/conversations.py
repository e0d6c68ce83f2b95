"""Exchanges of several requests with the server, written once for blocking and asyncio code.

A conversation is a generator. It yields what to do next (:class:`Ask`, :class:`Pause`, :class:`Note`) and a
transport's ``converse`` does it: sends the call and sends the reply back in, or throws the ``JobmonError``
that came instead. What the generator returns is the conversation's result. No I/O, no clock of its own.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
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
from airflow_jobmon_provider.client.protocol import Call, WorkflowDetails
from airflow_jobmon_provider.client.statuses import RunStatus, WorkflowStatus

T = TypeVar("T")
Clock = Callable[[], float]

_SHORTEST_PAUSE = 0.001  # a rest smaller than a clock's resolution would never be over

LAST_LOOK = 1.0
"""Seconds that a request gets although its time is over: a server that is up answers a last look by then."""


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


def in_time(conversation: Conversation[T], seconds: float, clock: Clock) -> Conversation[T]:
    """Carry on a conversation so that none of its requests outlasts a limit, however silent the server is.

    What the conversation does when the time is over is its own business.

    :param conversation: what to carry on.
    :param seconds: the limit, from now on. A request that starts later gets ``LAST_LOOK`` all the same.
    :param clock: monotonic seconds.
    :returns: what the conversation returns.
    :raises JobmonError: what the conversation raises.
    """
    end = clock() + seconds
    try:
        step = next(conversation)
        while True:
            if isinstance(step, Ask):
                left = max(end - clock(), LAST_LOOK)
                step = Ask(step.call, left if step.timeout is None else min(step.timeout, left))
            try:
                reply = yield step
            except JobmonError as error:
                step = conversation.throw(error)
            else:
                step = conversation.send(reply)
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        conversation.close()


@dataclass(frozen=True, slots=True)
class Retries:
    """For how long what failed for now is tried again.

    :param timeout: seconds; 0: it is tried once.
    :param attempts: tries at most.
    """

    timeout: float
    attempts: float


def try_again(
    attempt: Callable[[], Conversation[T]],
    retries: Retries,
    clock: Clock,
    *,
    worth_it: Callable[[BaseException], bool] = protocol.is_retryable,
    uniform: Uniform = random.uniform,
) -> Conversation[T]:
    """Hold a conversation, and hold it again where the server failed for now or was not reached.

    :param attempt: makes the conversation.
    :param clock: monotonic seconds.
    :param worth_it: which errors to try again after.
    :raises JobmonError: what the last attempt raised.
    """
    started = clock()
    failures = 0
    while True:
        try:
            return (yield from attempt())
        except (ServerFailure, ServerUnreachable) as error:
            failures += 1
            asked_for = error.retry_after if isinstance(error, ServerFailure) else None
            pause = decisions.outage_pause(failures, asked_for, decisions.LONGEST_OUTAGE_PAUSE, uniform)
            left = started + retries.timeout - clock()
            if left <= 0 or failures >= retries.attempts or not worth_it(error):
                raise
            pause = max(min(pause, left), _SHORTEST_PAUSE)  # the last try is at the limit
            problem = error
        yield Note(logging.WARNING, f"{problem}; trying again in {pause:.1f} s")
        yield Pause(pause)


def ask_again(call: Call[T], retries: Retries, clock: Clock) -> Conversation[T]:
    """Ask, and ask again where that may help and cannot harm.

    :param call: the call. One that is not idempotent, or that is costly, is sent again only if the one before
        was certainly not carried out: it may still be at work.
    :param clock: monotonic seconds.
    :raises JobmonError: the server says no, or does not answer, also not in the end.
    """

    def attempt() -> Conversation[T]:
        reply: T = yield Ask(call)
        return reply

    harmless = call.idempotent and not call.costly
    worth_it = protocol.is_retryable if harmless else protocol.was_not_processed
    return (yield from try_again(attempt, retries, clock, worth_it=worth_it))


def wait_until_resumable(
    workflow_id: int,
    *,
    timeout: float,
    force_cleanup: bool,
    clock: Clock,
    uniform: Uniform = random.uniform,
    at_rest: bool = False,
    signal: Call[None] | None = None,
) -> Conversation[WorkflowDetails | None]:
    """Return once the workflow is resumable.

    The first check is at once, and nothing is waited for after the one that says yes. An outage is waited
    out as long as the time-out allows; no request outlasts it by more than ``LAST_LOOK``.

    :param timeout: seconds; 0: check once.
    :param force_cleanup: clean KILL_SELF task instances up instead of waiting for their workers.
    :param clock: monotonic seconds.
    :param at_rest: wait for the end of a run in INSTANTIATED or LAUNCHED, too. An executor has such a run and
        is about to begin, but for Jobmon its workflow is resumable. Default False: as Jobmon says.
    :param signal: the workflow's active run was told to stop while it may have been in a status that takes no
        signal (LINKING, INSTANTIATED, LAUNCHED): send this again until it is in one that does. Default: no
        signal.
    :returns: the workflow's details as of the check that said yes, with ``at_rest``; else None. None also for
        a workflow without runs.
    :raises ResumeTimeout: the time is over.
    :raises ServerFailure, ServerUnreachable: the time is over, and the server did not answer at the end.
    :raises RouteNotSupported: a clean-up is wanted of a server that has none.
    :raises WorkflowNotFound, InvalidRequest, UnreadableReply: final, whatever the time.
    """
    outage = Outage(f"workflow {workflow_id}", clock, tries_on=timeout > 0)
    looks = _Looks(workflow_id, outage, force_cleanup, at_rest, signal)
    waiting = _wait_until_resumable(looks, timeout, clock, uniform)
    return (yield from in_time(waiting, timeout, clock) if timeout > 0 else waiting)


def _wait_until_resumable(
    looks: _Looks, timeout: float, clock: Clock, uniform: Uniform
) -> Conversation[WorkflowDetails | None]:
    started = clock()
    while True:
        step = yield from looks.look()
        if step is ResumeStep.RESUMABLE:
            return looks.details
        if step is ResumeStep.CLEAN_UP:
            continue  # it has just been done: look again at once
        elapsed = clock() - started
        if elapsed >= timeout:
            raise looks.problem(elapsed)
        wanted = decisions.resume_pause(elapsed, uniform)
        if looks.outage.error is not None:
            wanted = looks.outage.pause(decisions.LONGEST_OUTAGE_PAUSE, uniform)
        yield Pause(max(min(wanted, timeout - elapsed), _SHORTEST_PAUSE))


class _Looks:
    """Looks whether a workflow is resumable, does what a look asks for, and knows what the last one saw."""

    def __init__(
        self,
        workflow_id: int,
        outage: Outage,
        force_cleanup: bool,
        at_rest: bool,
        signal: Call[None] | None,
    ) -> None:
        self.workflow_id = workflow_id
        self.outage = outage
        self.details: WorkflowDetails | None = None
        self._force_cleanup = force_cleanup
        self._at_rest = at_rest
        self._signal = signal
        self._pending = 0
        self._just_cleaned = False
        self._starting = False
        self._answered = False
        self._was_out = False

    def look(self) -> Conversation[ResumeStep]:
        """Look once. RESUMABLE: the wait is over; CLEAN_UP: cleaned up; WAIT: not yet, or no answer."""
        self._was_out = self.outage.error is not None
        reply = yield from self.outage.ask(protocol.is_resumable(self.workflow_id))
        if reply is None:
            return ResumeStep.WAIT
        self._pending = reply.pending_kill_self or 0
        step = decisions.resume_step(reply, self._force_cleanup)
        if step is ResumeStep.CLEAN_UP and not self._just_cleaned:
            return (yield from self._clean_up())
        self._just_cleaned = False
        resumable = step is ResumeStep.RESUMABLE
        if (self._at_rest and resumable) or self._signal is not None:
            resumable = (yield from self._look_closer(resumable)) and resumable
        self._answered = self._answered or self.outage.error is None
        return ResumeStep.RESUMABLE if resumable else ResumeStep.WAIT

    def _clean_up(self) -> Conversation[ResumeStep]:
        cleaned = yield from self.outage.ask(protocol.force_cleanup_kill_self(self.workflow_id))
        if cleaned is None:
            return ResumeStep.WAIT
        text = f"forced the clean-up of {cleaned} KILL_SELF task instance(s)"
        yield Note(logging.WARNING, f"workflow {self.workflow_id}: {text}")
        self._just_cleaned = True
        return ResumeStep.CLEAN_UP

    def _look_closer(self, resumable: bool) -> Conversation[bool]:
        """Return whether no executor is about to begin; signal again where a run has missed the signal."""
        details = yield from self.outage.ask(protocol.workflow_details(self.workflow_id))
        if self.outage.error is not None:
            return False
        self.details = details
        status = None if details is None else details.status
        if status in decisions.STARTING and not self._starting:
            yield Note(
                logging.INFO, f"workflow {self.workflow_id}: {_STARTING}; waiting until it can be told"
            )
        self._starting = status in decisions.STARTING
        if self._signal is not None and (self._starting or not resumable):
            if status == WorkflowStatus.RUNNING or decisions.misses_signals(status):
                yield from self.outage.ask(self._signal)
                if status == WorkflowStatus.RUNNING and self.outage.error is None:
                    self._signal = None  # that status takes it
            else:
                self._signal = None  # the run has ended: one that comes now is another's
        return not self._starting

    def problem(self, elapsed: float) -> JobmonError:
        """Return why the wait is over without a yes."""
        # One request without an answer may have been cut short by the deadline, and says nothing.
        if self.outage.error is not None and (self._was_out or not self._answered):
            return self.outage.error
        text = f"workflow {self.workflow_id} did not become resumable within {elapsed:.1f} s"
        if self._starting:
            return ResumeTimeout(f"{text}: {_STARTING}. {_HOW_TO_END_IT}")
        if self._pending:
            text += f": {self._pending} task instance(s) in KILL_SELF have not ended"
            if not self._force_cleanup:
                text += "; if their jobs are gone (scancel, node failure), use force_cleanup=True"
        else:
            text += ": a run of it is still alive"
        return ResumeTimeout(
            text + ". Wait longer, or for Jobmon's reaper if the run's process has died (by default up to 6.5"
            " minutes after its last heartbeat)"
        )


_STARTING = (
    "an executor has taken a run of it and not begun (INSTANTIATED or LAUNCHED), and takes no signal until it"
    " does"
)
_HOW_TO_END_IT = (
    "Wait longer. If that executor is dead, Jobmon's reaper does not end its run: PUT"
    ' /workflow_run/<id of the run>/update_status with {"status": "E"} does'
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

"""Exchanges of several requests with the server, written once for blocking and asyncio code.

A conversation is a generator. It yields what to do next (:class:`Ask`, :class:`Pause`, :class:`Note`) and a
transport's ``converse`` does it: sends the call and sends the reply back in, or throws the ``JobmonError``
that came instead. What the generator returns is the conversation's result. No I/O, no clock of its own.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, TypeVar

from airflow_jobmon_provider.client import decisions, protocol
from airflow_jobmon_provider.client.decisions import ResumeStep, Uniform
from airflow_jobmon_provider.client.exceptions import (
    JobmonError,
    ResumeTimeout,
    ServerFailure,
    ServerUnreachable,
    WorkflowRunNotFound,
)
from airflow_jobmon_provider.client.heartbeat import Heartbeat, KeepAlive
from airflow_jobmon_provider.client.lifecycle import RunStatus, WorkflowStatus
from airflow_jobmon_provider.client.protocol import Call, WorkflowDetails

T = TypeVar("T")
Clock = Callable[[], float]

_SHORTEST_PAUSE = 0.001  # a rest smaller than a clock's resolution would never be over
_LAST_WORD = 3.0  # seconds for a request that is sent at a limit
_SHORTEST_LAST_WORD = 1.0  # the same where the server did not answer before, or the limit is about to come
_AT_ONCE = 0.5

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
    """Outlives a server that fails or is not reached: warns when that starts and when it ends.

    See docs/rules.md, rule 3. A server may also reply before what it says is in its database
    (docs/protocol.md, "Replies before the commit"). So for the first seconds of a run's life it is worth
    asking again about one that is "not found".

    :param subject: what is asked about, for the warnings.
    :param clock: monotonic seconds.
    :param tries_on: whether the caller asks again, so that a warning may say so. Default True.
    :param not_found_until: by this time of the clock "no such run" is a failure for now; later, final.
        Default: always final.
    :ivar error: how the last request failed; None: it was answered.
    :ivar failures: how many requests in a row have failed.
    """

    __slots__ = ("_clock", "_not_found_until", "_since", "_subject", "_tries_on", "error", "failures")

    def __init__(
        self,
        subject: str,
        clock: Clock,
        *,
        tries_on: bool = True,
        not_found_until: float = -math.inf,
    ) -> None:
        self._subject = subject
        self._tries_on = tries_on
        self._clock = clock
        self._not_found_until = not_found_until
        self.failures = 0
        self._since: float | None = None
        self.error: ServerFailure | ServerUnreachable | WorkflowRunNotFound | None = None

    def ask(self, call: Call[T], timeout: float | None = None) -> Conversation[T | None]:
        """Ask once. None: no answer for now, ``error`` says how.

        :param timeout: see :class:`Ask`.
        """
        try:
            reply: T = yield Ask(call, timeout)
        except (ServerFailure, ServerUnreachable) as error:
            if self._since is None and self._tries_on:
                self._since = self._clock()
                yield Note(logging.WARNING, f"{self._subject}: Jobmon does not answer, trying on: {error}")
            self._failed(error)
            return None
        except WorkflowRunNotFound as error:
            if self._clock() >= self._not_found_until:
                raise
            self._failed(error)
            return None
        if self._since is not None:
            seconds = self._clock() - self._since
            yield Note(logging.WARNING, f"{self._subject}: Jobmon answers again after {seconds:.0f} s")
        self.error = self._since = None
        self.failures = 0
        return reply

    def _failed(self, error: ServerFailure | ServerUnreachable | WorkflowRunNotFound) -> None:
        self.error = error
        self.failures += 1

    def pause(self, longest: float, uniform: Uniform) -> float:
        """Return how many seconds to wait before asking again."""
        retry_after = self.error.retry_after if isinstance(self.error, ServerFailure) else None
        return decisions.outage_pause(self.failures, retry_after, longest, uniform)


def in_time(
    conversation: Conversation[T], seconds: float, clock: Clock, *, at_least: float = LAST_LOOK
) -> Conversation[T]:
    """Carry on a conversation so that none of its requests outlasts a limit, however silent the server is.

    What the conversation does when the time is over is its own business.

    :param conversation: what to carry on.
    :param seconds: the limit, from now on; ``math.inf``: none.
    :param clock: monotonic seconds.
    :param at_least: seconds that a request has that starts when the time is nearly over, or over. 0: it is
        not sent, and the conversation is told that the server was not reached. Default ``LAST_LOOK``.
    :returns: what the conversation returns.
    :raises JobmonError: what the conversation raises.
    """
    end = clock() + seconds
    try:
        step = next(conversation)
        while True:
            if isinstance(step, Ask) and end < math.inf:
                left = max(end - clock(), at_least)
                if left <= 0:
                    step = conversation.throw(ServerUnreachable("the time is over", processed=False))
                    continue
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
        # One warning for each outage (docs/rules.md, rule 3).
        level = logging.WARNING if failures == 1 else logging.DEBUG
        yield Note(level, f"{problem}; trying again in {pause:.1f} s, for {left:.0f} s at most")
        yield Pause(pause)


def ask_again(
    call: Call[T], retries: Retries, clock: Clock, *, uniform: Uniform = random.uniform
) -> Conversation[T]:
    """Ask, and ask again where that may help and cannot harm.

    :param call: the call. One that is not idempotent, or that is costly, is sent again only if the one before
        was certainly not carried out: it may still be at work.
    :param retries: for how long.
    :param clock: monotonic seconds.
    :raises JobmonError: the server says no, or does not answer, also not in the end.
    """

    def attempt() -> Conversation[T]:
        reply: T = yield Ask(call)
        return reply

    harmless = call.idempotent and not call.costly
    worth_it = protocol.is_retryable if harmless else protocol.was_not_processed
    return (yield from try_again(attempt, retries, clock, worth_it=worth_it, uniform=uniform))


def ask_until(
    call: Call[T], timeout: float, clock: Clock, *, uniform: Uniform = random.uniform
) -> Conversation[T]:
    """Ask, and ask again through an outage until the time is over, as :func:`ask_again` does.

    :param timeout: seconds; 0: ask once.
    :param clock: monotonic seconds.
    :raises JobmonError: see :func:`ask_again`.
    """
    asking = ask_again(call, Retries(timeout, math.inf), clock, uniform=uniform)
    return (yield from in_time(asking, timeout, clock))


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
    """No executor took it in time, so it was aborted, if the server answered."""
    TIMEOUT = "timeout"
    """A time given for the run is over; aborted if it was still ours."""


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How the watch of a run ended.

    :param outcome: why it is over.
    :param status: status the server last reported; None: it never answered.
    :param message: one line for the user.
    :param answered: whether the server answered the last request.
    """

    outcome: RunOutcome
    status: RunStatus | None
    message: str
    answered: bool = True


def watch_run(
    workflow_run_id: int,
    *,
    keep_alive: KeepAlive,
    heartbeat: Heartbeat,
    poll_interval: float,
    clock: Clock,
    handoff_timeout: float | None = None,
    timeout: float | None = None,
    startup_timeout: float | None = None,
    owned: bool = False,
    age: float = 0.0,
    status: RunStatus | None = None,
    progress: Progress | None = None,
    uniform: Uniform = random.uniform,
) -> Conversation[RunEnd]:
    """Follow a run to its end, and keep it alive where that is our business.

    One request both beats and polls. A heartbeat carries the status that the server last reported, and can
    move a run that is in another one. So where the status is not known, it is first only read, which changes
    nothing; where the run turns out to be ours to keep alive, the heartbeat follows at once.

    Each limit holds whatever the server does: no request lasts longer than to the next one. What is to be
    said to the server at a limit has three seconds, and one if it did not answer before.

    :param keep_alive: in which statuses to beat.
    :param heartbeat: how often to beat, and what a heartbeat promises.
    :param poll_interval: longest pause in seconds between looks at a run that an executor has.
    :param clock: monotonic seconds.
    :param handoff_timeout: seconds for which the run may stay in LINKING; then it is aborted. None: for ever.
    :param timeout: seconds after which to stop watching. None: never.
    :param startup_timeout: seconds for which a run may stay in BOUND, INSTANTIATED and LAUNCHED, from when
        it is first seen there. Nothing else ends a run whose executor died in them, so one of ours is moved
        to ERROR then. A warning comes after five minutes, or half of this if that is less. None: for ever.
    :param owned: the run is ours: abort it if it is still in LINKING when the time is over.
    :param age: seconds for which the run has existed before, so that a triggerer that takes over 10,000 old
        runs does not poll them as if they were new.
    :param status: status that the server has reported a moment ago, in the reply to creating the run.
        Default: not known.
    :param progress: takes the place of a look at a run that is RUNNING, at most every other one; where it
        finds no task left to run, the look follows at once. So counting tasks costs no request of its own and
        delays no end. Default: nobody asks.
    :raises WorkflowRunNotFound, InvalidRequest, UnreadableReply: final. An outage is not, and is outlived.
        Nor is it final that a run of ours is not found in the first ten seconds of its life.
    """
    watch = _Watch(
        workflow_run_id,
        keep_alive,
        heartbeat,
        poll_interval,
        clock,
        handoff_timeout,
        timeout,
        startup_timeout,
        owned,
        age,
        status,
        progress,
        uniform,
    )
    return (yield from watch.follow())


@dataclass(slots=True)
class _Watch:
    """What ``watch_run`` knows as it goes along; its parameters are described there."""

    workflow_run_id: int
    keep_alive: KeepAlive
    heartbeat: Heartbeat
    poll_interval: float
    clock: Clock
    handoff_timeout: float | None
    timeout: float | None
    startup_timeout: float | None
    owned: bool
    age: float
    status: RunStatus | None
    progress: Progress | None
    uniform: Uniform

    started: float = field(init=False)
    changed: float = field(init=False)
    """When the status last changed."""
    asked: float = field(init=False)
    """When the last request was sent."""
    good_until: float | None = field(init=False, default=None)
    """When the last heartbeat runs out; None: not known."""
    starting_since: float | None = field(init=False, default=None)
    """When an executor was first seen to have the run and not to have begun."""
    noted: RunStatus | None = field(init=False, default=None)
    """Status that was said last."""
    unknown: tuple[str, ...] = field(init=False, default=())
    """Statuses that this version does not know, and that were warned of."""
    warned_of_start: bool = field(init=False, default=False)
    call: Call[RunStatus] | None = field(init=False, default=None)
    call_says: RunStatus | None = field(init=False, default=None)
    outage: Outage = field(init=False)
    counted: bool = field(init=False, default=False)
    """Whether the last thing asked was how far the tasks are."""
    beaten: bool = field(init=False, default=False)
    """Whether it was a heartbeat."""
    spread: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.started = self.asked = self.clock()
        self.changed = born = self.started - self.age
        ours = self.owned or self.handoff_timeout is not None
        self.outage = Outage(
            f"workflow run {self.workflow_run_id}",
            self.clock,
            not_found_until=born + decisions.COMMIT_PATIENCE if ours else -math.inf,
        )
        if self.status is not None:
            self.good_until = born + self.heartbeat.good_for

    def follow(self) -> Conversation[RunEnd]:
        """Watch the run to its end, or to the first limit."""
        while True:
            self.asked = self.clock()
            counted = yield from self._count()
            if not counted:
                seen = yield from self._look()
                end = yield from self._judge(seen)
                if end is not None:
                    return end
                if seen is not None and self._is_kept_alive() and not self.beaten:
                    continue  # it was only read, and its heartbeat may be about to run out
            yield Pause(self._pause())

    # --- Asking ---------------------------------------------------------------------------------------------

    def _count(self) -> Conversation[bool]:
        """Count the tasks if that is due; return whether it took the place of a look."""
        # Not while we beat for a running run: a count that hangs would delay the next heartbeat.
        watching = self.status is RunStatus.RUNNING and not self._is_kept_alive()
        due = watching and not self.counted and not self._is_over(self.timeout)
        self.counted = False
        if self.progress is not None and due and self.progress.is_due():
            left = max(self._limit() - self.clock(), _SHORTEST_PAUSE)
            settled = yield from in_time(self.progress.look(), left, self.clock, at_least=_SHORTEST_PAUSE)
            self.counted = not settled and not self._is_over(self.timeout)  # the last look is at the run
        return self.counted

    def _look(self) -> Conversation[RunStatus | None]:
        """Ask for the status, with a heartbeat if that is due; None: no answer."""
        says = self.status if self._is_kept_alive() else None
        if self.call is None or says is not self.call_says:
            self.call_says = says
            if says is None:
                self.call = protocol.peek_status(self.workflow_run_id)
            else:
                self.call = protocol.log_heartbeat(self.workflow_run_id, says, self.heartbeat.good_for)
        patience = self._patience()
        if says is not None or (self.status is None and self.keep_alive is not KeepAlive.NEVER):
            left = None if self.good_until is None else self.good_until - self.asked
            patience = min(patience, decisions.beat_timeout(left, self.heartbeat.good_for))
        seen = yield from self.outage.ask(self.call, _or_none(patience))
        self.beaten = says is not None
        if says is not None and seen is says:
            self.good_until = self.asked + self.heartbeat.good_for
        return seen

    def _patience(self) -> float:
        """Return how many seconds the next request may take: to the next limit, or for a last word at it."""
        left = self._limit() - self.clock()
        at_the_limit = left <= 0 and self.outage.error is None
        return max(left, _LAST_WORD if at_the_limit else _SHORTEST_LAST_WORD)

    # --- Judging --------------------------------------------------------------------------------------------

    def _judge(self, seen: RunStatus | None) -> Conversation[RunEnd | None]:
        """Return the end, if the run has ended or a limit is over; None: go on.

        What is asked for at a limit is decided by the server: refused, and an executor has been faster.
        """
        yield from self._take(seen)
        if seen is not None and self._is_untaken() and self._time_to_abort():
            seen = yield from self._move(RunStatus.ABORTED)
            if seen is RunStatus.ABORTED:
                by_deadline = self._is_over(self.timeout)
                return _given_up(self.workflow_run_id, self._elapsed(), by_deadline=by_deadline)
        elif seen is not None and self._startup_is_over():
            stuck = self.status
            seen = yield from self._move(RunStatus.ERROR)
            if seen is RunStatus.ERROR:
                return RunEnd(RunOutcome.FAILED, seen, self._not_begun(stuck, "so it was moved to ERROR"))
        if self.status is not None and self.status.is_terminal:
            return ended(self.workflow_run_id, self.status)
        return self._limit_reached(answered=seen is not None)

    def _move(self, status: RunStatus) -> Conversation[RunStatus | None]:
        call = protocol.update_status(self.workflow_run_id, status)
        seen = yield from self.outage.ask(call, _or_none(self._patience()))
        if seen is not status:
            yield from self._take(seen)
        return seen

    def _take(self, seen: RunStatus | None) -> Conversation[None]:
        """Learn the status that the server reported, and say what is new."""
        if seen is None:
            return
        if seen != self.status:
            if self.status is not None:
                self.changed = self.clock()
            self.status = seen
        if seen.is_starting:
            self.starting_since = self.clock() if self.starting_since is None else self.starting_since
            yield from self._warn_of_a_slow_start()
        elif seen.is_known:
            self.starting_since = None
        if seen != self.noted and not seen.is_terminal:
            self.noted = seen
            text = f"workflow run {self.workflow_run_id} is {seen}: {seen.meaning}"
            if seen.is_known or seen.value in self.unknown:
                yield Note(logging.INFO, text)
            else:
                self.unknown += (seen.value,)
                yield Note(logging.WARNING, f"{text}; watching on")

    def _warn_of_a_slow_start(self) -> Conversation[None]:
        warn_after = decisions.startup_warning(self.startup_timeout)
        if self._starting_for() < warn_after or self.warned_of_start:
            return
        self.warned_of_start = True
        text = (
            f"workflow run {self.workflow_run_id} is {self.status}: its executor has had it for"
            f" {self._starting_for():.0f} s and has not begun. If that executor is dead, Jobmon does not end"
            f" the run by itself"
        )
        if self.owned and self.startup_timeout is not None:
            text += f"; after {self.startup_timeout:.0f} s it is moved to ERROR"
        else:
            text += "; its owner must have its status set to E"
        yield Note(logging.WARNING, text)

    # --- Limits ---------------------------------------------------------------------------------------------

    def _limit_reached(self, *, answered: bool) -> RunEnd | None:
        """Return the end of a watch whose time is over although the run has not ended."""
        run, elapsed, error = self.workflow_run_id, self._elapsed(), self.outage.error
        expired = self._is_over(self.timeout)
        if self.outage.failures == 1 and self.clock() < self.asked + _AT_ONCE:
            return None  # a first failure that came at once, and may be over at once
        if self._is_untaken() and self._time_to_abort():
            outcome = RunOutcome.TIMEOUT if expired else RunOutcome.HANDOFF_TIMEOUT
            return RunEnd(
                outcome, self.status, _not_aborted(run, elapsed, self.heartbeat.good_for, error), answered
            )
        if self._startup_is_over():
            message = self._not_begun(
                self.status, f"and it could not be moved to ERROR: {error or 'refused'}"
            )
            return RunEnd(RunOutcome.TIMEOUT, self.status, message, answered)
        if expired:
            message = _overdue(run, elapsed, self.status, None if answered else error)
            return RunEnd(RunOutcome.TIMEOUT, self.status, message, answered)
        return None

    def _limit(self) -> float:
        """Return when the next limit is reached that counts in the status that is; ``math.inf``: never."""
        limit = math.inf if self.timeout is None else self.started + self.timeout
        if self.handoff_timeout is not None and self._is_untaken():
            limit = min(limit, self.started + self.handoff_timeout)
        if self._may_end_a_slow_start() and self.starting_since is not None:
            limit = min(limit, self.starting_since + (self.startup_timeout or 0.0))
        return limit

    def _is_over(self, timeout: float | None) -> bool:
        return timeout is not None and self.clock() >= self.started + timeout

    def _time_to_abort(self) -> bool:
        return self._is_over(self.handoff_timeout) or (self.owned and self._is_over(self.timeout))

    def _may_end_a_slow_start(self) -> bool:
        starting = self.status is not None and self.status.is_starting
        return starting and self.owned and self.startup_timeout is not None

    def _startup_is_over(self) -> bool:
        return self._may_end_a_slow_start() and self._starting_for() >= (self.startup_timeout or 0.0)

    def _starting_for(self) -> float:
        return 0.0 if self.starting_since is None else self.clock() - self.starting_since

    def _elapsed(self) -> float:
        return self.clock() - self.started

    def _is_untaken(self) -> bool:
        """Whether no executor is known to have the run."""
        return self.status in (None, RunStatus.REGISTERED, RunStatus.LINKING)

    def _is_kept_alive(self) -> bool:
        return self.status is not None and decisions.beats(self.keep_alive, self.status)

    def _not_begun(self, stuck: RunStatus | None, then: str) -> str:
        return (
            f"workflow run {self.workflow_run_id}: its executor had it for {self._starting_for():.0f} s and"
            f" did not begin (it was {stuck}), {then}. See whether the executor is alive on its cluster, or"
            f" allow more with startup_timeout"
        )

    def _pause(self) -> float:
        """Return how many seconds to wait before the next request."""
        now = self.clock()
        ours = self._is_kept_alive() or self.status is None
        longest = self.heartbeat.interval if ours else self.poll_interval
        if self.outage.error is not None:
            longest = self.heartbeat.interval / 3
            if ours and self.good_until is not None:  # as many tries as there is time for
                longest = min(longest, decisions.beat_timeout(self.good_until - now, self.heartbeat.good_for))
            wait = self.outage.pause(longest, self.uniform)
        else:
            pause = decisions.run_pause(now - self.changed, longest, self.uniform)
            if pause >= longest and not self.spread:
                self.spread = True
                pause = decisions.first_long_pause(longest, self.uniform)
            # A heartbeat is due an interval after the last one was sent, however long its reply took.
            wait = pause - (now - self.asked)
        return max(min(wait, self._limit() - now), _SHORTEST_PAUSE)


def _or_none(seconds: float) -> float | None:
    return None if seconds == math.inf else seconds


def look_at_run(
    workflow_run_id: int,
    *,
    keep_alive: KeepAlive,
    heartbeat: Heartbeat,
    last: RunStatus | None = None,
) -> Conversation[RunStatus]:
    """Return a run's status, beating once if that is our business. For callers that come by now and then.

    Where the status is not known, it is first only read: a heartbeat can move a run.

    :param keep_alive: in which statuses to beat.
    :param heartbeat: how often to beat, and what a heartbeat promises.
    :param last: what the caller's look before this one returned: saves a request, and the warning about a
        status that this version does not know. Default: not known.
    :raises JobmonError: the server was not reached, or says no.
    """
    if last is not None and decisions.beats(keep_alive, last):
        status: RunStatus = yield Ask(protocol.log_heartbeat(workflow_run_id, last, heartbeat.good_for))
        return status
    status = yield from _of_a_young_run(protocol.peek_status(workflow_run_id), last)
    if not status.is_known and status != last:
        yield Note(logging.WARNING, f"workflow run {workflow_run_id} is {status}: {status.meaning}")
    if decisions.beats(keep_alive, status):
        status = yield Ask(protocol.log_heartbeat(workflow_run_id, status, heartbeat.good_for))
    return status


def _of_a_young_run(call: Call[RunStatus], last: RunStatus | None) -> Conversation[RunStatus]:
    """Ask about a run that may have been created a moment ago, by a server that replies before it commits."""
    for pause in (0.25, 0.5, 1.0) if last is None else ():
        try:
            status: RunStatus = yield Ask(call)
            return status
        except WorkflowRunNotFound:
            yield Pause(pause)
    status = yield Ask(call)
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


def _not_aborted(workflow_run_id: int, elapsed: float, window: float, error: JobmonError | None) -> str:
    return (
        f"workflow run {workflow_run_id} was not seen to be taken by an executor within {elapsed:.0f} s, and"
        f" could not be aborted: {error or 'refused'}. If none has it, its heartbeat runs out"
        f" by itself within {window:.0f} s"
    )


def _overdue(
    workflow_run_id: int, elapsed: float, status: RunStatus | None, error: JobmonError | None
) -> str:
    known = f"is still {status}: {status.meaning}" if status else "could not be asked about"
    if status is not None and error is not None:
        known = f"was {status} when Jobmon last answered"
    text = f"workflow run {workflow_run_id} {known}, and its time is over after {elapsed:.0f} s"
    return text if error is None else f"{text}. {error}"

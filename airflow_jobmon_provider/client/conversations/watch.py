"""Watch a run to its end, and keep it alive where that is our business."""

from __future__ import annotations

import logging
import math
import random
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from airflow_jobmon_provider.client.conversations import pacing
from airflow_jobmon_provider.client.conversations.asking import (
    _AT_ONCE,
    _LAST_WORD,
    _SHORTEST_LAST_WORD,
    _SHORTEST_PAUSE,
    Outage,
    in_time,
)
from airflow_jobmon_provider.client.conversations.pacing import Uniform
from airflow_jobmon_provider.client.conversations.steps import (
    Ask,
    Clock,
    Conversation,
    Note,
    Pause,
)
from airflow_jobmon_provider.client.exceptions import (
    JobmonError,
    WorkflowRunNotFound,
)
from airflow_jobmon_provider.client.heartbeat import Heartbeat, KeepAlive
from airflow_jobmon_provider.client.lifecycle import RunStatus
from airflow_jobmon_provider.client.protocol import Call, routes


class Progress(Protocol):
    """Looks at the tasks of a run that is being watched; ``progress.ProgressWatch`` is one."""

    def is_due(self) -> bool:
        """Whether it is time to look."""

    def look(self) -> Conversation[bool]:
        """Say how far they are; return whether none of them is left to run. Raises no ``JobmonError``."""


class Queue(Protocol):
    """The queue of a cluster's scheduler, in which the executor of a run may wait before it begins."""

    handoff_timeout: float
    """Seconds that the executor has to take the run, from when it has begun."""
    queue_timeout: float | None
    """Seconds of the run's life for which it may wait; None: for ever."""

    @property
    def is_waiting(self) -> bool:
        """Whether it waits, as far as is known."""


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
    :param exit_code: of the executor of ours; None: there was none, or it is not known.
    """

    outcome: RunOutcome
    status: RunStatus | None
    message: str
    answered: bool = True
    exit_code: int | None = None


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
    queue: Queue | None = None,
    uniform: Uniform = random.uniform,
) -> Conversation[RunEnd]:
    """Follow a run to its end, and keep it alive where that is our business.

    One request both beats and polls. A heartbeat carries the status that the server last reported, and can
    move a run that is in another one. So where the status is not known, it is first only read, which changes
    nothing; where the run turns out to be ours to keep alive, the heartbeat follows at once.

    Each limit holds whatever the server does: no request lasts longer than to the next one. What is to be
    said to the server at a limit has three seconds, and one if it did not answer before.

    :param keep_alive: in which statuses to beat.
    :param heartbeat: how often to beat, and what a heartbeat promises; see :meth:`Heartbeat.after` for a run
        that waits long.
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
    :param queue: while the executor waits in it, ``handoff_timeout`` does not pass. Default: there is none.
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
        queue,
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
    queue: Queue | None
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
    queued_until: float | None = field(init=False, default=None)
    """When the executor was last known to wait in a queue."""
    noted: RunStatus | None = field(init=False, default=None)
    """Status that was said last."""
    unknown: tuple[str, ...] = field(init=False, default=())
    """Statuses that this version does not know, and that were warned of."""
    warned_of_start: bool = field(init=False, default=False)
    call: Call[RunStatus] | None = field(init=False, default=None)
    call_says: tuple[RunStatus | None, Heartbeat | None] = field(init=False, default=(None, None))
    beat: Heartbeat = field(init=False)
    """What the last heartbeat has promised, and when the next one follows."""
    outage: Outage = field(init=False)
    counted: bool = field(init=False, default=False)
    """Whether the last thing asked was how far the tasks are."""
    beaten: bool = field(init=False, default=False)
    """Whether it was a heartbeat."""
    spread_over: float | None = field(init=False, default=None)
    """The full interval of which a part was waited for once, see ``pacing.first_long_pause``."""

    def __post_init__(self) -> None:
        self.started = self.asked = self.clock()
        self.changed = born = self.started - self.age
        ours = self.owned or self.handoff_timeout is not None
        self.outage = Outage(
            f"workflow run {self.workflow_run_id}",
            self.clock,
            not_found_until=born + pacing.COMMIT_PATIENCE if ours else -math.inf,
        )
        self.beat = self.heartbeat
        if self.status is not None:
            self.good_until = born + self.beat.good_for

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
        call = self._call(says)
        patience = self._patience()
        if says is not None or (self.status is None and self.keep_alive is not KeepAlive.NEVER):
            left = None if self.good_until is None else self.good_until - self.asked
            patience = min(patience, pacing.beat_timeout(left, self.beat.good_for))
        seen = yield from self.outage.ask(call, _or_none(patience))
        self.beaten = says is not None
        if says is not None and seen is says:
            self.good_until = self.asked + self.beat.good_for
        return seen

    def _call(self, says: RunStatus | None) -> Call[RunStatus]:
        """Return what asks for the status: a heartbeat with the status that is said, or a look."""
        waited = self.clock() - self.changed if says is RunStatus.LINKING else 0.0
        self.beat = self.heartbeat.after(waited)
        if self.call is None or (says, self.beat) != self.call_says:
            self.call_says = says, self.beat
            if says is None:
                self.call = routes.peek_status(self.workflow_run_id)
            else:
                self.call = routes.log_heartbeat(self.workflow_run_id, says, self.beat.good_for)
        return self.call

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
                return self._given_up()
        elif seen is not None and self._startup_is_over():
            stuck = self.status
            seen = yield from self._move(RunStatus.ERROR)
            if seen is RunStatus.ERROR:
                return RunEnd(RunOutcome.FAILED, seen, self._not_begun(stuck, "so it was moved to ERROR"))
        if self.status is not None and self.status.is_terminal:
            return ended(self.workflow_run_id, self.status)
        return self._limit_reached(answered=seen is not None)

    def _move(self, status: RunStatus) -> Conversation[RunStatus | None]:
        call = routes.update_status(self.workflow_run_id, status)
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
                yield Note(logging.WARNING, f"{text}; will keep watching")

    def _warn_of_a_slow_start(self) -> Conversation[None]:
        warn_after = pacing.startup_warning(self.startup_timeout)
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
            message = _not_aborted(run, self._limit_given(), self.beat.good_for, error)
            return RunEnd(outcome, self.status, message, answered)
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
        if self._is_untaken():
            limit = min(limit, self._handoff_limit())
        if self._may_end_a_slow_start() and self.starting_since is not None:
            limit = min(limit, self.starting_since + (self.startup_timeout or 0.0))
        return limit

    def _handoff_limit(self) -> float:
        """Return when an executor must have taken the run, or have left its queue; ``math.inf``: never."""
        queue = self.queue
        if self.handoff_timeout is None:
            return math.inf
        if queue is not None and queue.is_waiting:
            self.queued_until = self.clock()
            born = self.started - self.age
            return math.inf if queue.queue_timeout is None else born + queue.queue_timeout
        if queue is not None and self.queued_until is not None:
            return self.queued_until + queue.handoff_timeout
        return self.started + self.handoff_timeout

    def _is_over(self, timeout: float | None) -> bool:
        return timeout is not None and self.clock() >= self.started + timeout

    def _time_to_abort(self) -> bool:
        return self.clock() >= self._handoff_limit() or (self.owned and self._is_over(self.timeout))

    def _may_end_a_slow_start(self) -> bool:
        starting = self.status is not None and self.status.is_starting
        return starting and self.owned and self.startup_timeout is not None

    def _startup_is_over(self) -> bool:
        return self._may_end_a_slow_start() and self._starting_for() >= (self.startup_timeout or 0.0)

    def _starting_for(self) -> float:
        return 0.0 if self.starting_since is None else self.clock() - self.starting_since

    def _given_up(self) -> RunEnd:
        by_deadline = self._is_over(self.timeout)
        advice = "Start its executor in time (the task's log has the command)"
        if self.queue is not None:
            advice = "See what its executor waits for"
        message = (
            f"no executor took workflow run {self.workflow_run_id} within {self._limit_given()}, so it was"
            f" aborted. {advice}, or allow more"
        )
        outcome = RunOutcome.TIMEOUT if by_deadline else RunOutcome.HANDOFF_TIMEOUT
        return RunEnd(outcome, RunStatus.ABORTED, message)

    def _limit_given(self) -> str:
        """Return the limit within which an executor should have taken the run, as the user has given it."""
        if self.handoff_timeout is None or self._is_over(self.timeout):
            return f"the {self.age + self._elapsed():.0f} s that the task had"
        if self.queue is not None and self.queue.is_waiting and self.queue.queue_timeout is not None:
            return f"{self.queue.queue_timeout:.0f} s, as it waited in the queue (queue_timeout)"
        if self.queue is not None and self.queued_until is not None:
            return f"{self.queue.handoff_timeout:.0f} s after it had left the queue (handoff_timeout)"
        return f"{self.age + self.handoff_timeout:.0f} s (handoff_timeout)"

    def _elapsed(self) -> float:
        return self.clock() - self.started

    def _is_untaken(self) -> bool:
        """Whether no executor is known to have the run."""
        return self.status in (None, RunStatus.REGISTERED, RunStatus.LINKING)

    def _is_kept_alive(self) -> bool:
        return self.status is not None and pacing.beats(self.keep_alive, self.status)

    def _not_begun(self, stuck: RunStatus | None, then: str) -> str:
        return (
            f"workflow run {self.workflow_run_id}: its executor had it for {self._starting_for():.0f} s and"
            f" did not start it (it was {stuck}), {then}. Check whether the executor is alive on its cluster,"
            f" or allow more time with startup_timeout"
        )

    def _pause(self) -> float:
        """Return how many seconds to wait before the next request."""
        now = self.clock()
        ours = self._is_kept_alive() or self.status is None
        longest = self.beat.interval if ours else self.poll_interval
        if self.outage.error is not None:
            longest = self.beat.interval / 3
            if ours and self.good_until is not None:  # as many tries as there is time for
                longest = min(longest, pacing.beat_timeout(self.good_until - now, self.beat.good_for))
            wait = self.outage.pause(longest, self.uniform)
        else:
            pause = pacing.run_pause(now - self.changed, longest, self.uniform)
            if pause >= longest and self.spread_over != longest:
                self.spread_over = longest
                pause = pacing.first_long_pause(longest, self.uniform)
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
    if last is not None and pacing.beats(keep_alive, last):
        status: RunStatus = yield Ask(routes.log_heartbeat(workflow_run_id, last, heartbeat.good_for))
        return status
    status = yield from _of_a_young_run(routes.peek_status(workflow_run_id), last)
    if not status.is_known and status != last:
        yield Note(logging.WARNING, f"workflow run {workflow_run_id} is {status}: {status.meaning}")
    if pacing.beats(keep_alive, status):
        status = yield Ask(routes.log_heartbeat(workflow_run_id, status, heartbeat.good_for))
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
    """Return what a terminal status means for a task that waits for the run."""
    outcome = RunOutcome.DONE if status is RunStatus.DONE else RunOutcome.FAILED
    return RunEnd(outcome, status, f"workflow run {workflow_run_id} ended {status}: {status.meaning}")


def _not_aborted(workflow_run_id: int, limit: str, window: float, error: JobmonError | None) -> str:
    return (
        f"no executor was seen to take workflow run {workflow_run_id} within {limit}, and it could not be"
        f" aborted: {error or 'refused'}. If none has it, its heartbeat runs out by itself within"
        f" {window:.0f} s"
    )


def _overdue(
    workflow_run_id: int, elapsed: float, status: RunStatus | None, error: JobmonError | None
) -> str:
    known = f"is still {status}: {status.meaning}" if status else "could not be asked about"
    if status is not None and error is not None:
        known = f"was {status} when Jobmon last answered"
    text = f"workflow run {workflow_run_id} {known}, and its time is over after {elapsed:.0f} s"
    return text if error is None else f"{text}. {error}"

"""One call, asked again as long as that makes sense."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from airflow_jobmon_provider.client import protocol
from airflow_jobmon_provider.client.conversations import pacing
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
    ServerFailure,
    ServerUnreachable,
    WorkflowRunNotFound,
)
from airflow_jobmon_provider.client.protocol import Call

T = TypeVar("T")

_SHORTEST_PAUSE = 0.001  # a rest smaller than a clock's resolution would never be over

_LAST_WORD = 3.0  # seconds for a request that is sent at a limit

_SHORTEST_LAST_WORD = 1.0  # the same where the server did not answer before, or the limit is about to come

_AT_ONCE = 0.5

LAST_LOOK = 1.0
"""Seconds that a request gets although its time is over: a server that is up answers a last look by then."""


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
                yield Note(
                    logging.WARNING, f"{self._subject}: Jobmon is not answering; will keep trying: {error}"
                )
            self._failed(error)
            return None
        except WorkflowRunNotFound as error:
            if self._clock() >= self._not_found_until:
                raise
            self._failed(error)
            return None
        if self._since is not None:
            seconds = self._clock() - self._since
            yield Note(logging.WARNING, f"{self._subject}: Jobmon is answering again after {seconds:.0f} s")
        self.error = self._since = None
        self.failures = 0
        return reply

    def _failed(self, error: ServerFailure | ServerUnreachable | WorkflowRunNotFound) -> None:
        self.error = error
        self.failures += 1

    def pause(self, longest: float, uniform: Uniform) -> float:
        """Return how many seconds to wait before asking again."""
        retry_after = self.error.retry_after if isinstance(self.error, ServerFailure) else None
        return pacing.outage_pause(self.failures, retry_after, longest, uniform)


def left_until(end: float, clock: Clock) -> float:
    """Return how many seconds a request may take whose answer is wanted by the end, at least one."""
    return max(end - clock(), LAST_LOOK)


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
            pause = pacing.outage_pause(failures, asked_for, pacing.LONGEST_OUTAGE_PAUSE, uniform)
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

"""Lets a task or trigger of ours run to its next request or pause, as if in a process of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, cast

import pytest

from airflow_jobmon_provider.client.async_renewing import RenewingAsyncRequester
from airflow_jobmon_provider.client.conversations import Ask, Conversation, Driver, Log, Pause, Step
from airflow_jobmon_provider.client.exceptions import JobmonError
from airflow_jobmon_provider.client.protocol import Call
from airflow_jobmon_provider.client.requester import ask
from airflow_jobmon_provider.hooks.jobmon import JobmonHook

EPOCH = 1_700_000_000.0  # when the machine's clock was 0
READ_THE_TIME = (
    *("operators.jobmon", "operators._attempt", "operators._beginning", "operators._retry"),
    *("operators._watcher", "triggers.jobmon", "task.limits"),
)


class Killed(BaseException):
    """The process was killed, and does nothing any more."""


@dataclass(frozen=True)
class Outcome:
    """What came of something.

    :param result: what it returned.
    :param error: what it raised instead.
    """

    result: Any = None
    error: BaseException | None = None


class Process(Generator[Step, Any, Outcome]):
    """A thread that stops before each request and each pause, and then does what it is told.

    To the machine it is a conversation, but for its requests: those it sends itself, by its own transport.

    :param work: what it does.
    :ivar is_dead: it was killed.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._orders: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self._answers: SimpleQueue[Any] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ended: Outcome | None = None
        self.is_dead = False

    # --- The machine's side: each returns the step that comes next ------------------------------------------

    def send(self, reply: Any) -> Step:
        """Let it go on, with the reply to its request."""
        if self._thread.ident is None:
            self._thread.start()
            return cast("Step", self._next())
        return cast("Step", self._order("reply", reply))

    def throw(self, error: Any, *_: Any) -> Step:
        """Let it go on, with what came instead of a reply."""
        return cast("Step", self._order("error", error))

    def interrupt(self, handler: Callable[[], object]) -> Ask | Pause:
        """Let it handle a signal where it is."""
        return cast("Ask | Pause", self._order("interrupt", handler))

    def attempt(self) -> Outcome:
        """Let it send the request that it is about to send; it does not know the outcome yet."""
        outcome = self._order("attempt", None)
        assert isinstance(outcome, Outcome)
        return outcome

    def close(self) -> None:
        """Kill it."""
        if self._thread.ident is not None and self._ended is None:
            self.is_dead = True
            self._orders.put(("kill", None))
            self._thread.join(30)

    def _order(self, what: str, value: Any) -> Any:
        self._orders.put((what, value))
        return self._next()

    def _next(self) -> Any:
        answer = self._answers.get(timeout=60)
        if self._ended is not None:
            self._thread.join()
            raise StopIteration(self._ended)
        return answer

    # --- The thread's side ----------------------------------------------------------------------------------

    def _run(self) -> None:
        _here.process = self
        try:
            self._ended = Outcome(self._work())
        except BaseException as error:
            self._ended = Outcome(error=error)
        self._answers.put(None)

    def stop_before(self, step: Step | Outcome) -> tuple[str, Any]:
        """Wait for an order, and return it."""
        if self.is_dead:
            raise Killed
        self._answers.put(step)
        while True:
            what, value = self._orders.get()
            if what == "kill":
                raise Killed
            if what != "interrupt":
                return what, value
            value()
            self._answers.put(step)


_here = threading.local()


def pause(seconds: float) -> None:
    """Take the place of ``time.sleep``."""
    _here.process.stop_before(Pause(seconds))


def _carry_on(
    conversation: Conversation[Any], log: Log, sleep: Callable[[float], None]
) -> Generator[Call[Any], Outcome, Any]:
    """Carry a conversation on as the machine says. Yields what is to be sent, and gets the outcome."""
    with Driver(conversation, log) as driver:
        for step in driver:
            if isinstance(step, Pause):
                sleep(step.seconds)
                continue
            what, value = _here.process.stop_before(step)
            if what == "attempt":
                what, value = _here.process.stop_before((yield step.call))
            if what == "reply":
                driver.reply = value
            else:
                driver.error = value
        return driver.result


def _converse(
    hook: JobmonHook,
    conversation: Conversation[Any],
    *,
    log: Log,
    sleep: Callable[[float], None] = pause,
) -> Any:
    carrying = _carry_on(conversation, log, sleep)
    try:
        call = next(carrying)
        while True:
            try:
                outcome = Outcome(ask(hook.get_conn(), call, tenacious=False))
            except JobmonError as error:
                outcome = Outcome(error=error)
            call = carrying.send(outcome)
    except StopIteration as end:
        return end.value


async def _converse_async(
    requester: RenewingAsyncRequester, conversation: Conversation[Any], *, log: Log
) -> Any:
    carrying = _carry_on(conversation, log, pause)
    try:
        call = next(carrying)
        while True:
            try:
                outcome = Outcome(await requester.ask(call))
            except JobmonError as error:
                outcome = Outcome(error=error)
            call = carrying.send(outcome)
    except StopIteration as end:
        return end.value


class Time:
    """Takes the place of the module ``time``: the machine's clock.

    :ivar clock: returns the seconds on it.
    """

    def __init__(self) -> None:
        self.clock: Callable[[], float] = lambda: 0.0

    def monotonic(self) -> float:
        return self.clock()

    def time(self) -> float:
        return EPOCH + self.clock()

    def sleep(self, seconds: float) -> None:
        pause(seconds)


def take_charge(patch: pytest.MonkeyPatch) -> Time:
    """Let a machine carry on what operators and triggers do, by its own clock, which is returned."""
    now = Time()
    for module in READ_THE_TIME:
        patch.setattr(f"airflow_jobmon_provider.{module}.time", now)
    patch.setattr(JobmonHook, "converse", _converse)
    patch.setattr(RenewingAsyncRequester, "converse", _converse_async)
    return now

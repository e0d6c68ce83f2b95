"""What a conversation yields, and how it is carried: once for all who do that, whatever I/O they do."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from airflow_jobmon_provider.client.exceptions import JobmonError
from airflow_jobmon_provider.client.protocol import Call

T = TypeVar("T")

Clock = Callable[[], float]


class Interrupted(Exception):
    """Something else has come up during a pause; what waits throws it into the conversation."""


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


class Driver(Generic[T]):
    """Drives a conversation: gives in turn what it wants to have done, and logs its notes by itself.

    It is an iterator, and a context manager that closes the conversation. A transport does each
    step, and leaves here what came of it before it takes the next one.

    :param conversation: what to drive.
    :param log: where its notes go.
    :ivar reply: what came of the last step; set it after an ``Ask``.
    :ivar error: what was raised instead, which the conversation is going to be told.
    :ivar result: what the conversation returned; there is none before the last step.
    """

    __slots__ = ("_conversation", "_log", "error", "reply", "result")

    result: T

    def __init__(self, conversation: Conversation[T], log: Log) -> None:
        self._conversation = conversation
        self._log = log
        self.reply: Any = None
        self.error: JobmonError | Interrupted | None = None

    def __iter__(self) -> Driver[T]:
        return self

    def __next__(self) -> Ask | Pause:
        """Tell the conversation what came of its last step, and return the next one.

        :raises StopIteration: the conversation has returned.
        :raises JobmonError, Interrupted: what the conversation raises.
        """
        reply, error = self.reply, self.error
        self.reply = self.error = None
        try:
            step = self._conversation.send(reply) if error is None else self._conversation.throw(error)
            while isinstance(step, Note):
                self._log.log(step.level, "%s", step.text)
                step = self._conversation.send(None)
        except StopIteration as end:
            self.result = end.value
            raise
        return step

    def __enter__(self) -> Driver[T]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._conversation.close()


def carry(
    conversation: Conversation[T], ask: Callable[[Ask], Any], pause: Callable[[float], object], log: Log
) -> T:
    """Carry a conversation to its end, by functions that block, and return its result.

    :param ask: sends a call and returns what its reply says.
    :param pause: waits so many seconds, or raises :class:`Interrupted`.
    :param log: where the conversation's notes go.
    :raises JobmonError, Interrupted: what the conversation raises.
    """
    with Driver(conversation, log) as driver:
        for step in driver:
            try:
                driver.reply = pause(step.seconds) if isinstance(step, Pause) else ask(step)
            except (JobmonError, Interrupted) as error:
                driver.error = error
        return driver.result

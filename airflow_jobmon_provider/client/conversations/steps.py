"""What a conversation yields, and who carries it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from airflow_jobmon_provider.client.protocol import Call

T = TypeVar("T")

Clock = Callable[[], float]


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

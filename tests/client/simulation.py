"""A simulated clock and server for conversations, which do no I/O: hours of waiting in milliseconds."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from airflow_jobmon_provider.client.conversations import Ask, Conversation, Note, Pause, Step
from airflow_jobmon_provider.client.exceptions import JobmonError, ServerUnreachable
from airflow_jobmon_provider.client.protocol import Call

T = TypeVar("T")

Answer = Callable[[Call[Any], float], Any]
"""Gives the JSON reply to a call at a time in seconds, or an exception to raise, or ``SILENT``."""

SILENT = object()
"""Takes the request, and never replies."""


@dataclass
class Simulation:
    """Carries a conversation through simulated time.

    :param answer: the server.
    :param latency: seconds that each request takes.
    :param request_timeout: seconds that the transport gives each request, if it is not told less.
    """

    answer: Answer
    latency: float = 0.0
    now: float = 1000.0
    request_timeout: float = 20.0
    asked: list[tuple[float, Call[Any]]] = field(default_factory=list)
    notes: list[tuple[int, str]] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def run(self, conversation: Conversation[T]) -> T:
        try:
            step: Step = next(conversation)
            while True:
                reply: Any = None
                if isinstance(step, Ask):
                    self.asked.append((self.now, step.call))
                    try:
                        reply = self._send(step)
                    except JobmonError as error:
                        step = conversation.throw(error)
                        continue
                elif isinstance(step, Pause):
                    assert step.seconds >= 0
                    self.now += step.seconds
                elif isinstance(step, Note):
                    self.notes.append((step.level, step.text))
                step = conversation.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result

    def _send(self, ask: Ask) -> Any:
        assert ask.timeout is None or ask.timeout > 0
        answer = self.answer(ask.call, self.now)
        patience = min(self.request_timeout, ask.timeout or self.request_timeout)
        if answer is SILENT or self.latency > patience:
            self.now += patience
            raise ServerUnreachable(f"no reply within {patience:g} s")
        self.now += self.latency
        if isinstance(answer, Exception):
            raise answer
        return ask.call.read(answer)

    @property
    def warnings(self) -> list[str]:
        return [text for level, text in self.notes if level >= logging.WARNING]

"""A simulated clock and server for conversations, which do no I/O: hours of waiting in milliseconds."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from airflow_jobmon_provider.client.conversations import Ask, Conversation, Note, Pause, Step
from airflow_jobmon_provider.client.exceptions import JobmonError
from airflow_jobmon_provider.client.protocol import Call

T = TypeVar("T")

Answer = Callable[[Call[Any], float], Any]
"""Gives the JSON reply to a call at a time in seconds, or an exception to raise."""


@dataclass
class Simulation:
    """Carries a conversation through simulated time.

    :param answer: the server.
    :param latency: seconds that each request takes.
    """

    answer: Answer
    latency: float = 0.0
    now: float = 1000.0
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
                    sent = self.now
                    self.now += self.latency
                    try:
                        reply = self._read(step.call, sent)
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

    def _read(self, call: Call[Any], sent: float) -> Any:
        answer = self.answer(call, sent)
        if isinstance(answer, Exception):
            raise answer
        return call.read(answer)

    @property
    def warnings(self) -> list[str]:
        return [text for level, text in self.notes if level >= logging.WARNING]

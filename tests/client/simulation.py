"""A simulated clock and server for conversations, which do no I/O: hours of waiting in milliseconds."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from airflow_jobmon_provider.client.conversations import Ask, Conversation, carry
from airflow_jobmon_provider.client.exceptions import ServerUnreachable, WorkflowRunNotFound
from airflow_jobmon_provider.client.lifecycle import moves
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
        return carry(conversation, self._send, self._pass, self)

    def log(self, level: int, line: str, /, *args: object) -> None:
        self.notes.append((level, line % args))

    def _pass(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds

    def _send(self, ask: Ask) -> Any:
        self.asked.append((self.now, ask.call))
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


VALID_MOVES = {old.value + new.value for old, new in moves()}


@dataclass
class RunOnServer:
    """Workflow run 5 of workflow 7 on a simulated server that knows Jobmon's transitions.

    :param status: of the run at first.
    :param story: pairs of seconds after the start and the status that an executor gives the run then.
    :param silent: from when to when the server does not reply, in seconds after the start.
    :param refusing: from when to when it refuses connections.
    :param born: seconds after the start at which the run is in the database.
    :ivar said: statuses that heartbeats said, with the second in which they did.
    :ivar signals: how often the workflow was told to stop.
    :ivar good_until: second at which the run's heartbeat runs out.
    """

    status: str = "L"
    story: tuple[tuple[float, str], ...] = ()
    silent: tuple[float, float] = (0, 0)
    refusing: tuple[float, float] = (0, 0)
    born: float = 0
    good_until: float = 93.0
    said: list[tuple[float, str]] = field(default_factory=list)
    signals: int = 0
    deaths: list[float] = field(default_factory=list)

    def __call__(self, call: Call[Any], now: float) -> Any:
        now -= 1000
        while self.story and self.story[0][0] <= now:
            self.status, self.story = self.story[0][1], self.story[1:]
        if self.refusing[0] <= now < self.refusing[1]:
            return ServerUnreachable("connection refused", processed=False)
        if self.silent[0] <= now < self.silent[1]:
            return SILENT
        if now < self.born:
            return WorkflowRunNotFound("workflow run 5 does not exist")
        if call.route == "/workflow/7/set_resume":
            self.signals += 1
            if self.status in "BR":
                self.status = "C"
            return {}
        wanted = call.message["status"]
        if call.route == "/workflow_run/5/log_heartbeat":
            self.said.append((now, wanted))
            if self.status == "L" and now > self.good_until:
                self.deaths.append(now)
            if wanted == self.status and wanted in "LR":
                self.good_until = now + call.message["next_report_increment"]
        if self.status + wanted in VALID_MOVES:
            self.status = wanted
        return {"status": self.status}


class RunOfADeadExecutor:
    """A run on a simulated server that knows the transitions of docs/protocol.md, "Transitions"."""

    VALID = frozenset({"LA", "BE", "IE", "OE", "RE"})

    def __init__(self, status: str, *faults: Any) -> None:
        self.status = status
        self.faults = list(faults)

    def __call__(self, call: Call[Any], now: float) -> Any:
        assert call.route == "/workflow_run/5/update_status"
        if self.faults and (fault := self.faults.pop(0)):
            return fault
        wanted = call.message["status"]
        if self.status + wanted in self.VALID:
            self.status = wanted
        return {"status": self.status}

"""Making way for a workflow's next run, in simulated time: limits hold, no living executor is disturbed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest

from airflow_jobmon_provider.client.conversations import (
    LAST_LOOK,
    Ask,
    Conversation,
    Pause,
    ask_until,
    in_time,
    make_ready,
    stop_run,
)
from airflow_jobmon_provider.client.exceptions import (
    ResumeTimeout,
    ServerFailure,
    ServerUnreachable,
)
from airflow_jobmon_provider.client.lifecycle import RunStatus
from airflow_jobmon_provider.client.protocol import Call, routes
from tests.client.simulation import Simulation

NO_REPLY = ServerUnreachable("GET http://jobmon: no reply within 20 s")


class Workflow:
    """A workflow on a simulated server, whose run takes these statuses, each for so many seconds."""

    def __init__(self, *life: tuple[str, float], signals: bool = True) -> None:
        self.life = life
        self.signals = signals
        self.resets = 0
        self.signalled_at: float | None = None

    def status(self, now: float) -> str:
        if self.signalled_at is not None:
            return "C" if now < self.signalled_at + 5 else "T"
        end = 1000.0
        for status, seconds in self.life:
            end += seconds
            if now < end:
                return status
        return self.life[-1][0]

    def __call__(self, call: Call[Any], now: float) -> Any:
        status = self.status(now)
        if call.route.endswith("/update_status"):
            return {"status": "A" if status == "L" else status}
        if call.route.endswith("/set_resume"):
            if status in "BR":
                self.signalled_at = now
            return {}
        if call.route.endswith("/is_resumable"):
            return {"workflow_is_resumable": status not in "LBRCH"}
        if call.route.startswith("/workflow_details_viz"):
            return [{"wf_status": {"E": "F", "T": "H", "B": "Q"}.get(status, status), "wf_name": "x"}]
        assert call.route.endswith("/set_resume_state")
        self.resets += 1
        return {}


def stop(workflow: Any, timeout: float) -> tuple[RunStatus | None, Simulation]:
    simulation = Simulation(workflow)
    return simulation.run(stop_run(5, 7, timeout=timeout, clock=simulation.clock)), simulation


@pytest.mark.parametrize(
    "life", [[("B", 1e9)], [("I", 40), ("R", 1e9)], [("I", 40), ("O", 300), ("R", 1e9)]], ids=["B", "I", "O"]
)
def test_a_run_is_told_to_stop_until_it_has_ended(life: list[tuple[str, float]]) -> None:
    status, simulation = stop(Workflow(*life), 600)
    assert status is RunStatus.TERMINATED
    assert simulation.now < 1000 + sum(seconds for _, seconds in life if seconds < 1e9) + 20


def test_a_run_that_does_not_end_is_told_with_its_status() -> None:
    status, simulation = stop(Workflow(("O", 1e9)), 60)
    assert status is RunStatus.LAUNCHED
    assert 1060 <= simulation.now < 1090


def test_a_run_that_is_out_of_reach_has_no_status() -> None:
    status, simulation = stop(lambda *_: NO_REPLY, 60)
    assert status is None
    assert simulation.now < 1090


def ready(workflow: Workflow, patience: float, timeout: float = 600) -> Simulation:
    simulation = Simulation(workflow)
    simulation.run(make_ready(7, patience=patience, timeout=timeout, clock=simulation.clock))
    return simulation


def test_tasks_are_reset_at_once_where_no_run_is_alive() -> None:
    workflow = Workflow(("E", 1e9))
    assert ready(workflow, 0).now == 1000
    assert workflow.resets == 1


@pytest.mark.parametrize("status", ["I", "O"])
def test_tasks_are_not_reset_under_an_executor_that_is_starting(status: str) -> None:
    workflow = Workflow((status, 1e9))
    with pytest.raises(
        ResumeTimeout, match=r"within 30\.0 s: an executor has taken a run of it and not begun"
    ):
        ready(workflow, 30)
    assert workflow.resets == 0


def test_the_end_of_a_run_whose_executor_is_starting_is_waited_for() -> None:
    workflow = Workflow(("O", 30), ("R", 60), ("E", 1e9))
    assert 1090 <= ready(workflow, 600).now < 1100
    assert workflow.resets == 1


def test_a_call_is_asked_again_through_an_outage_and_no_longer_than_the_limit() -> None:
    def back_after(seconds: float) -> Callable[[Call[Any], float], Any]:
        return lambda _, now: {"status": "R"} if now >= 1000 + seconds else NO_REPLY

    simulation = Simulation(back_after(50))
    asking = ask_until(routes.peek_status(5), 60, simulation.clock)
    assert simulation.run(asking) is RunStatus.RUNNING
    assert len(simulation.warnings) == 1

    simulation = Simulation(back_after(100))
    with pytest.raises(ServerUnreachable, match="no reply"):
        simulation.run(ask_until(routes.peek_status(5), 60, simulation.clock))
    assert simulation.now == pytest.approx(1060, abs=1)


def test_a_server_that_is_silent_gets_no_longer_than_what_is_left() -> None:
    conversation = ask_until(routes.peek_status(5), 7, lambda: 1000.0)
    step = next(conversation)
    assert isinstance(step, Ask)
    assert step.timeout == 7


@pytest.mark.parametrize(("processed", "asked"), [(True, 1), (False, 2)])
def test_a_costly_call_is_not_sent_again_while_it_may_be_at_work(processed: bool, asked: int) -> None:
    call = dataclasses.replace(routes.set_resume_state(7, True), costly=True)
    replies: list[Any] = [ServerFailure("423", processed=processed), {}]
    simulation = Simulation(lambda *_: replies.pop(0))
    asking = ask_until(call, 60, simulation.clock)
    if processed:
        with pytest.raises(ServerFailure):
            simulation.run(asking)
    else:
        simulation.run(asking)
    assert len(simulation.asked) == asked


def test_a_limit_is_the_longest_time_for_an_answer() -> None:
    def ask() -> Conversation[list[str]]:
        yield Pause(4)
        yield Ask(routes.peek_status(5))
        yield Ask(routes.peek_status(5), timeout=3)
        with pytest.raises(ServerUnreachable, match="the time is over"):
            yield Ask(routes.peek_status(5))
        return ["done"]

    now = [1000.0]
    conversation = in_time(ask(), 10, lambda: now[0], at_least=0)
    assert next(conversation) == Pause(4)
    now[0] += 4
    assert conversation.send(None).timeout == 6  # type: ignore[union-attr]
    assert conversation.send(None).timeout == 3  # type: ignore[union-attr]
    now[0] += 6
    with pytest.raises(StopIteration) as end:
        conversation.send(None)
    assert end.value.value == ["done"]


def test_a_late_request_has_a_second_and_no_limit_changes_nothing() -> None:
    def ask() -> Conversation[None]:
        yield Ask(routes.peek_status(5))

    assert next(in_time(ask(), 0, lambda: 1000.0)).timeout == LAST_LOOK  # type: ignore[union-attr]
    assert next(in_time(ask(), math.inf, lambda: 1000.0)).timeout is None  # type: ignore[union-attr]

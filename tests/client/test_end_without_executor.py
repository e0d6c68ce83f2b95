"""What is done about a run whose executor has died: only what was that executor's is ended."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_jobmon_provider.client.conversations import end_without_executor
from airflow_jobmon_provider.client.conversations.pacing import COMMIT_PATIENCE
from airflow_jobmon_provider.client.exceptions import WorkflowRunNotFound
from airflow_jobmon_provider.client.lifecycle import RunStatus
from tests.client.simulation import RunOfADeadExecutor, Simulation

UNKNOWN = WorkflowRunNotFound("workflow run 5 does not exist")


@pytest.mark.parametrize("status", "BIO")
def test_a_run_that_the_executor_had_not_taken_is_left_to_the_one_that_has_it(status: str) -> None:
    sim = Simulation(RunOfADeadExecutor(status))
    assert sim.run(end_without_executor(5, taken=False, clock=sim.clock)) == RunStatus(status)


def test_a_run_that_nobody_had_taken_is_aborted() -> None:
    sim = Simulation(RunOfADeadExecutor("L"))
    assert sim.run(end_without_executor(5, taken=False, clock=sim.clock)) is RunStatus.ABORTED


def test_a_run_that_has_just_been_created_may_be_unknown_for_a_moment() -> None:
    sim = Simulation(RunOfADeadExecutor("L", UNKNOWN, UNKNOWN))
    assert sim.run(end_without_executor(5, clock=sim.clock)) is RunStatus.ABORTED


def test_a_run_that_stays_unknown_does_not_exist() -> None:
    faults: list[Any] = [UNKNOWN] * 100
    sim = Simulation(RunOfADeadExecutor("L", *faults))
    with pytest.raises(WorkflowRunNotFound):
        sim.run(end_without_executor(5, clock=sim.clock))
    assert COMMIT_PATIENCE <= sim.now - 1000 < 2 * COMMIT_PATIENCE

"""A trigger that Airflow ends: the run is given up where the user has ended the task, and nowhere else.

A triggerer that has stalled for longer than its health check allows loses its triggers to another, and then
calls ``on_kill`` for each of them as if a user had ended the tasks (read in Airflow 3.3.2).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from airflow.triggers.base import BaseTrigger

from airflow_jobmon_provider.task import state as task_state
from airflow_jobmon_provider.triggers.jobmon import WorkflowRunHeartbeatTrigger
from dev.jobmon_sandbox import JobmonSandbox
from tests.airflow_task import ApiTaskInstance, kill, stored
from tests.running_airflow import AIRFLOW

pytestmark = pytest.mark.usefixtures("connection")


def test_airflow_ends_triggers_so_from_3_3_on() -> None:
    """Before, it tells nobody, and the run is left to its heartbeat and its executor (docs/deployment.md)."""
    assert hasattr(BaseTrigger, "on_kill") is (AIRFLOW >= (3, 3))


def trigger(sandbox: JobmonSandbox, status: str) -> tuple[int, WorkflowRunHeartbeatTrigger]:
    workflow = sandbox.make_workflow_in(status)
    run = workflow.workflow_run_id or 0
    return run, WorkflowRunHeartbeatTrigger(
        run, owned=True, cancel_on_kill=True, workflow_id=workflow.workflow_id
    )


@pytest.mark.parametrize("state", ["failed", "skipped", "removed", "restarting", None])
@pytest.mark.parametrize(("status", "left"), [("L", "A"), ("R", "C")])
async def test_a_run_is_given_up_where_the_user_has_ended_the_task(
    sandbox: JobmonSandbox, state: str | None, status: str, left: str
) -> None:
    run, ours = trigger(sandbox, status)
    await kill(ours, state)
    assert sandbox.run_status(run) == left


@pytest.mark.parametrize("state", ["deferred", "scheduled", "queued", "running", "up_for_retry", "success"])
@pytest.mark.parametrize("status", ["L", "R"])
async def test_a_run_goes_on_where_another_has_the_task_or_it_counts_as_done(
    sandbox: JobmonSandbox, state: str, status: str, logged: Callable[[], str]
) -> None:
    run, ours = trigger(sandbox, status)
    await kill(ours, state)
    assert sandbox.run_status(run) == status
    assert f"the task's state is: {state}. Workflow run {run} is left" in logged()


async def test_a_run_goes_on_where_airflow_does_not_answer(
    sandbox: JobmonSandbox, logged: Callable[[], str]
) -> None:
    def fails() -> str:
        raise RuntimeError("the API server is restarting")

    run, ours = trigger(sandbox, "R")
    made: WorkflowRunHeartbeatTrigger = stored(ours)  # type: ignore[assignment]
    made.task_instance = ApiTaskInstance(in_airflow=fails)  # type: ignore[assignment]
    await made.on_kill()
    await stored(ours).on_kill()  # nor is its task known
    assert sandbox.run_status(run) == "R"
    assert logged().count(task_state.UNKNOWN) == 2


async def test_a_run_is_given_up_where_airflow_takes_seconds_to_answer(sandbox: JobmonSandbox) -> None:
    """Airflow 3.3.2: a triggerer's first request builds the routes of its API, for 6 s on a slow machine."""

    def answers_late() -> str:
        time.sleep(7)
        return "failed"

    run, ours = trigger(sandbox, "L")
    made: WorkflowRunHeartbeatTrigger = stored(ours)  # type: ignore[assignment]
    made.task_instance = ApiTaskInstance(in_airflow=answers_late)  # type: ignore[assignment]
    await made.on_kill()
    assert sandbox.run_status(run) == "A"

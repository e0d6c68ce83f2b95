"""DAGs that execute the run themselves: on the worker, and on a submit host over SSH."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from dev.airflow_stack import AirflowStack
from dev.jobmon_sandbox import JobmonSandbox, SandboxWorkflow, wait_until
from tests.end_to_end.conftest import SECRETS
from tests.end_to_end.dag_runs import (
    assert_ended,
    assert_nothing_claimed_of_an_executors_run,
    command_lines,
    errors,
    new_run,
    provider_beats,
)
from tests.running_airflow import airflow_has

EXECUTE, ON_SUBMIT_HOST = "jobmon_resume_and_execute", "on_submit_host"
pytestmark = [pytest.mark.real_airflow, pytest.mark.timeout(600)]


def executors(run: int) -> list[str]:
    return [line for line in command_lines() if "executor.py" in line and f"--workflow-run-id={run} " in line]


@pytest.mark.environment
def test_a_failed_workflow_is_resumed_and_executed(e2e_sandbox: JobmonSandbox, airflow: AirflowStack) -> None:
    workflow = e2e_sandbox.make_workflow_in("E", tasks=2, waits=True)
    conf = {"workflow_id": workflow.workflow_id, "cluster_name": "multiprocess"}
    dag_run = airflow.trigger(EXECUTE, conf)
    run = new_run(e2e_sandbox, workflow)
    wait_until(lambda: e2e_sandbox.run_status(run) == "R", 60, "the run to be RUNNING")
    lines = command_lines()
    assert [line for line in lines if f"--workflow-run-id={run}" in line]
    assert not [line for line in lines if SECRETS["password"] in line]
    workflow.release()
    assert_ended(airflow, EXECUTE, dag_run, "success")
    assert e2e_sandbox.workflow_status(workflow.workflow_id) == "D"
    assert e2e_sandbox.runs(workflow.workflow_id) == [(workflow.workflow_run_id, "E"), (run, "D")]
    log = airflow.task_log(EXECUTE, dag_run, "run")
    assert f"executor: workflow run {run} of workflow {workflow.workflow_id} ended DONE (D)" in log
    assert SECRETS["password"] not in log
    assert not errors(log)
    xcoms = {key: airflow.xcom(EXECUTE, dag_run, "run", key) for key in ("workflow_run_id", "status")}
    assert xcoms == {"workflow_run_id": run, "status": "D"}
    assert airflow.xcom(EXECUTE, dag_run, "run", "task_counts")["done"] == 2
    assert_nothing_claimed_of_an_executors_run(provider_beats(e2e_sandbox, run))


def test_a_workflow_that_is_named_is_resumed_and_executed(
    e2e_sandbox: JobmonSandbox, airflow: AirflowStack
) -> None:
    workflow = e2e_sandbox.make_workflow_in("E")
    workflow.release()
    e2e_sandbox.change("UPDATE workflow SET name = 'by its name' WHERE id = ?", workflow.workflow_id)
    dag_run = airflow.trigger("by_name", {"name": "by its name"})
    assert_ended(airflow, "by_name", dag_run, "success")
    assert e2e_sandbox.workflow_status(workflow.workflow_id) == "D"
    assert airflow.xcom("by_name", dag_run, "resume") == workflow.workflow_id
    said = f"workflow_name 'by its name', tool_name 'sandbox' is workflow {workflow.workflow_id}"
    assert said in airflow.task_log("by_name", dag_run, "run")


RETRYING = "execute_with_retry"


def executing(e2e_sandbox: JobmonSandbox, airflow: AirflowStack) -> tuple[SandboxWorkflow, str, int]:
    """Start a task that executes a run and may be tried twice, and wait until its run is RUNNING."""
    workflow = e2e_sandbox.make_workflow_in("E", waits=True)
    e2e_sandbox.post(f"/api/v2/task/{workflow.workflow_id}/set_resume_state", {"reset_if_running": True})
    dag_run = airflow.trigger(RETRYING, {"workflow_id": workflow.workflow_id})
    run = new_run(e2e_sandbox, workflow)
    wait_until(lambda: e2e_sandbox.run_status(run) == "R", 60, "the run to be RUNNING")
    return workflow, dag_run, run


def assert_second_try_goes_on(
    e2e_sandbox: JobmonSandbox, airflow: AirflowStack, workflow: SandboxWorkflow, dag_run: str, run: int
) -> None:
    # Before 3.3 Airflow does not tell the retry of it.
    known = f"an earlier try created workflow run {run}"
    said = known if airflow_has("a task state store") else "has a run in the way"

    def second_try() -> bool:
        return said in airflow.task_log(RETRYING, dag_run, "run", try_number=2)

    wait_until(second_try, 90, "the retry")
    assert e2e_sandbox.run_status(run) == "R"
    workflow.release()
    assert_ended(airflow, RETRYING, dag_run, "success")
    # A run that the server refuses stays REGISTERED (G): before 3.3, the retry has asked for others.
    runs = [(id_, status) for id_, status in e2e_sandbox.runs(workflow.workflow_id) if status != "G"]
    assert runs == [(workflow.workflow_run_id, "E"), (run, "D")]
    wait_until(lambda: not executors(run), 20, "the executor to end")


@pytest.mark.environment
def test_a_worker_that_is_killed_leaves_its_executor_at_work_though_another_task_was_cleared(
    e2e_sandbox: JobmonSandbox, airflow: AirflowStack
) -> None:
    workflow, dag_run, run = executing(e2e_sandbox, airflow)
    airflow.clear_task(RETRYING, dag_run, "another")
    os.kill(airflow.task_instance(RETRYING, dag_run, "run")["pid"], signal.SIGKILL)
    if not airflow_has("another try of a task"):
        assert_ended(airflow, RETRYING, dag_run, "failed")
        workflow.release()
        wait_until(lambda: e2e_sandbox.run_status(run) == "D", 60, "the executor to finish the run")
    else:
        assert_second_try_goes_on(e2e_sandbox, airflow, workflow, dag_run, run)


def test_a_worker_that_is_drained_leaves_its_executor_at_work(
    e2e_sandbox: JobmonSandbox, airflow: AirflowStack
) -> None:
    workflow, dag_run, run = executing(e2e_sandbox, airflow)
    task = airflow.task_instance(RETRYING, dag_run, "run")["pid"]
    supervisor = int(Path(f"/proc/{task}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(supervisor, signal.SIGTERM)
    assert_second_try_goes_on(e2e_sandbox, airflow, workflow, dag_run, run)
    log = airflow.task_log(RETRYING, dag_run, "run", try_number=1)
    assert "the task's state in Airflow is: running" in log
    assert f"workflow run {run} goes on: a retry watches it" in log


def test_clearing_the_task_itself_stops_its_run_and_makes_another(
    e2e_sandbox: JobmonSandbox, airflow: AirflowStack
) -> None:
    workflow, dag_run, run = executing(e2e_sandbox, airflow)
    airflow.clear_task(RETRYING, dag_run, "run")
    wait_until(lambda: e2e_sandbox.runs(workflow.workflow_id)[-1][0] > run, 120, "another run")
    workflow.release()
    assert_ended(airflow, RETRYING, dag_run, "success")
    _, first, second = e2e_sandbox.runs(workflow.workflow_id)
    assert first == (run, "T")
    assert second[1] == "D"
    wait_until(lambda: not executors(run), 30, "the first executor to end")


@pytest.mark.environment
def test_marking_the_task_failed_stops_run_and_executor(
    e2e_sandbox: JobmonSandbox, airflow: AirflowStack
) -> None:
    workflow = e2e_sandbox.make_workflow_in("E", waits=True)
    conf = {"workflow_id": workflow.workflow_id, "cluster_name": "multiprocess"}
    dag_run = airflow.trigger(EXECUTE, conf)
    run = new_run(e2e_sandbox, workflow)
    wait_until(lambda: e2e_sandbox.run_status(run) == "R", 60, "the run to be RUNNING")
    airflow.set_task_state(EXECUTE, dag_run, "run", "failed")
    wait_until(lambda: e2e_sandbox.run_status(run) == "T", 60, "the run to be stopped")
    wait_until(lambda: not executors(run), 30, "the executor to end")


@pytest.mark.environment
def test_a_run_is_executed_on_a_submit_host(
    e2e_sandbox: JobmonSandbox, airflow: AirflowStack, tmp_path: Path
) -> None:
    """No worker slot is held, and the executor's output is in the task's log all the same."""
    workflow = e2e_sandbox.make_workflow_in("E", tasks=2, waits=True)
    e2e_sandbox.post(f"/api/v2/task/{workflow.workflow_id}/set_resume_state", {"reset_if_running": True})
    conf = {
        "workflow_id": workflow.workflow_id,
        "cluster_name": "multiprocess",
        "greeting": "set up there",
        "folder": str(tmp_path),
    }
    dag_run = airflow.trigger(ON_SUBMIT_HOST, conf)
    airflow.wait_for_deferral(ON_SUBMIT_HOST, dag_run, "run")
    run = new_run(e2e_sandbox, workflow)
    wait_until(lambda: e2e_sandbox.run_status(run) == "R", 60, "the run to be RUNNING")
    assert airflow.task_states(ON_SUBMIT_HOST, dag_run) == {"run": "deferred"}
    workflow.release()
    assert_ended(airflow, ON_SUBMIT_HOST, dag_run, "success")
    assert e2e_sandbox.runs(workflow.workflow_id) == [(workflow.workflow_run_id, "E"), (run, "D")]
    log = airflow.task_log(ON_SUBMIT_HOST, dag_run, "run")
    for line in ("set up there", f"executor: executing workflow run {run}", "DONE (D): 2 of 2 tasks done"):
        assert log.count(line) == 1
    assert not errors(log)
    assert list((tmp_path / "runs").iterdir()) == []


def test_what_the_submit_host_cannot_execute_fails_the_task(
    e2e_sandbox: JobmonSandbox, airflow: AirflowStack, tmp_path: Path
) -> None:
    workflow = e2e_sandbox.make_workflow_in("E")
    conf = {
        "workflow_id": workflow.workflow_id,
        "cluster_name": "nowhere",
        "greeting": "hello",
        "folder": str(tmp_path),
    }
    dag_run = airflow.trigger(ON_SUBMIT_HOST, conf)
    assert_ended(airflow, ON_SUBMIT_HOST, dag_run, "failed")
    assert e2e_sandbox.runs(workflow.workflow_id)[-1][1] == "A"
    (error,) = errors(airflow.task_log(ON_SUBMIT_HOST, dag_run, "run"))
    assert "cluster 'nowhere' is unknown to Jobmon" in error

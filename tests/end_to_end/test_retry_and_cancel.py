"""Workers and triggerers that die, and users who change their minds, through the real Airflow."""

from __future__ import annotations

import pytest

from dev.airflow_stack import AirflowStack
from dev.jobmon_sandbox import JobmonSandbox, wait_until
from tests.end_to_end.dag_runs import RESUME_AND_CREATE, assert_ended, new_run, provider_beats

pytestmark = [pytest.mark.real_airflow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("dag", ["dies_before_deferring", "dies_after_deferring"])
def test_a_worker_that_is_killed_leaves_one_run_and_a_finished_workflow(
    e2e_sandbox: JobmonSandbox, airflow: AirflowStack, dag: str
) -> None:
    workflow = e2e_sandbox.make_workflow_in("E")
    workflow.release()
    e2e_sandbox.post(f"/api/v2/task/{workflow.workflow_id}/set_resume_state", {"reset_if_running": True})
    dag_run = airflow.trigger(dag, {"workflow_id": workflow.workflow_id})
    run = new_run(e2e_sandbox, workflow)
    airflow.wait_for_deferral(dag, dag_run, "run")  # where a worker died before, the retry keeps it alive
    e2e_sandbox.execute(workflow.workflow_id, run)
    assert_ended(airflow, dag, dag_run, "success")
    assert airflow.task_instance(dag, dag_run, "run")["try_number"] == 2
    assert airflow.xcom(dag, dag_run, "run") == run
    assert e2e_sandbox.runs(workflow.workflow_id) == [(workflow.workflow_run_id, "E"), (run, "D")]
    assert e2e_sandbox.workflow_status(workflow.workflow_id) == "D"
    log = airflow.task_log(dag, dag_run, "run", try_number=2)
    assert f"an earlier try created workflow run {run}" in log


def test_marking_a_deferred_task_failed_stops_the_run_that_an_executor_has(
    e2e_sandbox: JobmonSandbox, airflow: AirflowStack
) -> None:
    workflow = e2e_sandbox.make_workflow_in("E")
    dag_run = airflow.trigger(RESUME_AND_CREATE, {"workflow_id": workflow.workflow_id})
    airflow.wait_for_deferral(RESUME_AND_CREATE, dag_run, "run")
    run = new_run(e2e_sandbox, workflow)
    wait_until(lambda: provider_beats(e2e_sandbox, run), 30, "the trigger to run")
    for status in "BIOR":
        e2e_sandbox.put(f"/api/v2/workflow_run/{run}/update_status", {"status": status})
    airflow.set_task_state(RESUME_AND_CREATE, dag_run, "run", "failed")
    wait_until(lambda: e2e_sandbox.run_status(run) in "CT", 60, "the run to be stopped")


def test_a_triggerer_that_restarts_cancels_nothing_and_loses_no_run(
    e2e_sandbox: JobmonSandbox, airflow: AirflowStack
) -> None:
    dag, count = "create_many", 20
    workflows = [e2e_sandbox.make_workflow_in("E") for _ in range(count)]
    dag_run = airflow.trigger(dag, {"workflow_ids": [w.workflow_id for w in workflows]})
    runs = [new_run(e2e_sandbox, workflow) for workflow in workflows]

    def deferred() -> bool:
        return list(airflow.task_states(dag, dag_run).values()).count("deferred") == count

    wait_until(deferred, 90, "all tasks to be deferred")
    airflow.restart("triggerer")
    for run in runs:
        seen = len(provider_beats(e2e_sandbox, run))
        wait_until(
            lambda run=run, seen=seen: len(provider_beats(e2e_sandbox, run)) > seen,  # type: ignore[misc]
            60,
            "a beat",
        )
    assert {e2e_sandbox.run_status(run) for run in runs} == {"L"}
    for run in runs:
        assert not e2e_sandbox.requests(f"/workflow_run/{run}/update_status")
        for status in "BIORD":
            e2e_sandbox.put(f"/api/v2/workflow_run/{run}/update_status", {"status": status})
    assert_ended(airflow, dag, dag_run, "success")
    assert [len(e2e_sandbox.runs(w.workflow_id)) for w in workflows] == [2] * count

"""The example DAGs, through Airflow's real scheduler and triggerer, on a real Jobmon."""

from __future__ import annotations

import itertools
import re
import sqlite3

import pytest

from dev.airflow_stack import AirflowStack
from dev.jobmon_sandbox import JobmonSandbox, SandboxWorkflow, wait_until
from tests.end_to_end.conftest import EXAMPLE_DAGS, SECRETS
from tests.end_to_end.dag_runs import (
    RESUME_AND_CREATE,
    assert_ended,
    assert_nothing_claimed_of_an_executors_run,
    errors,
    new_run,
    provider_beats,
)
from tests.running_airflow import AIRFLOW_2, airflow_has

pytestmark = [pytest.mark.real_airflow, pytest.mark.timeout(600)]


@pytest.fixture(scope="package")
def done(e2e_sandbox: JobmonSandbox) -> SandboxWorkflow:
    return e2e_sandbox.make_workflow("done", tasks=1)


@pytest.mark.environment
def test_a_failed_workflow_is_resumed_and_completed(
    e2e_sandbox: JobmonSandbox, airflow: AirflowStack
) -> None:
    workflow = e2e_sandbox.make_workflow("fails", tasks=2)
    workflow.release()
    dag_run = airflow.trigger(RESUME_AND_CREATE, {"workflow_id": workflow.workflow_id})
    airflow.wait_for_deferral(RESUME_AND_CREATE, dag_run, "run")
    run = new_run(e2e_sandbox, workflow)
    assert airflow.xcom(RESUME_AND_CREATE, dag_run, "run", "workflow_run_id") == run
    assert airflow.task_states(RESUME_AND_CREATE, dag_run) == {"resume": "success", "run": "deferred"}

    window = e2e_sandbox.heartbeat_interval * e2e_sandbox.report_by_buffer
    created = next(
        r.time
        for r in e2e_sandbox.requests("/workflow_run")
        if r.path.endswith("/workflow_run")
        and r.body["workflow_id"] == workflow.workflow_id
        and "airflow" in r.query
    )
    wait_until(
        lambda: [b for b in provider_beats(e2e_sandbox, run) if b.time > created + window], 60, "late beats"
    )
    assert e2e_sandbox.run_status(run) == "L"

    e2e_sandbox.execute(workflow.workflow_id, run)
    assert_ended(airflow, RESUME_AND_CREATE, dag_run, "success")
    assert airflow.task_states(RESUME_AND_CREATE, dag_run) == {"resume": "success", "run": "success"}
    assert e2e_sandbox.workflow_status(workflow.workflow_id) == "D"
    assert e2e_sandbox.runs(workflow.workflow_id) == [(workflow.workflow_run_id, "E"), (run, "D")]
    assert airflow.xcom(RESUME_AND_CREATE, dag_run, "resume") == workflow.workflow_id
    assert airflow.xcom(RESUME_AND_CREATE, dag_run, "run") == run
    assert "LINKING (L)" in (log := airflow.task_log(RESUME_AND_CREATE, dag_run, "run"))
    assert f"workflow run {run} ended DONE (D)" in log
    assert not errors(log)

    beats = provider_beats(e2e_sandbox, run)
    bound = next(
        r.time for r in e2e_sandbox.requests(f"/workflow_run/{run}/update_status") if r.body["status"] == "B"
    )
    times = [created, *(beat.time for beat in beats if beat.time < bound), bound]
    assert max(b - a for a, b in itertools.pairwise(times)) < window
    assert_nothing_claimed_of_an_executors_run(beats)


def test_nothing_is_done_about_a_workflow_that_is_done(
    e2e_sandbox: JobmonSandbox, airflow: AirflowStack, done: SandboxWorkflow
) -> None:
    dag_run = airflow.trigger(RESUME_AND_CREATE, {"workflow_id": done.workflow_id})
    assert_ended(airflow, RESUME_AND_CREATE, dag_run, "success")
    assert airflow.task_states(RESUME_AND_CREATE, dag_run) == {"resume": "skipped", "run": "skipped"}
    log = airflow.task_log(RESUME_AND_CREATE, dag_run, "resume")
    assert f"workflow {done.workflow_id} is DONE: there is nothing left to run" in log
    assert not errors(log)
    assert e2e_sandbox.runs(done.workflow_id) == [(done.workflow_run_id, "D")]


@pytest.mark.environment
def test_the_gate_opens_when_the_run_has_ended(e2e_sandbox: JobmonSandbox, airflow: AirflowStack) -> None:
    workflow = e2e_sandbox.make_workflow("running", tasks=1)
    run = workflow.workflow_run_id
    assert run is not None
    dag_run = airflow.trigger("jobmon_gate", {"workflow_id": workflow.workflow_id})
    airflow.wait_for_deferral("jobmon_gate", dag_run, "gate")
    asked = len(e2e_sandbox.requests("is_resumable"))
    wait_until(lambda: len(e2e_sandbox.requests("is_resumable")) >= asked + 2, 30, "the trigger to ask")
    assert airflow.task_states("jobmon_gate", dag_run) == {"gate": "deferred", "archive": "none"}
    assert e2e_sandbox.run_status(run) == "R"
    workflow.release()
    assert_ended(airflow, "jobmon_gate", dag_run, "success")
    assert airflow.task_states("jobmon_gate", dag_run) == {"gate": "success", "archive": "success"}
    assert f"Workflow {workflow.workflow_id} is at rest" in airflow.task_log(
        "jobmon_gate", dag_run, "archive"
    )
    assert e2e_sandbox.runs(workflow.workflow_id) == [(run, "D")]
    assert not provider_beats(e2e_sandbox, run)


def test_many_workflows_are_resumed_at_once(
    e2e_sandbox: JobmonSandbox, airflow: AirflowStack, done: SandboxWorkflow
) -> None:
    dag, workflows = "jobmon_resume_many", [e2e_sandbox.make_workflow_in("E") for _ in range(2)]
    ids = [workflows[0].workflow_id, done.workflow_id, workflows[1].workflow_id]
    dag_run = airflow.trigger(dag, {"workflow_ids": ids})
    for index, workflow in zip((0, 2), workflows, strict=True):
        airflow.wait_for_deferral(dag, dag_run, "resume_and_run.run", map_index=index)
        workflow.release()
        e2e_sandbox.execute(workflow.workflow_id, new_run(e2e_sandbox, workflow))
    assert_ended(airflow, dag, dag_run, "success")
    tasks = [f"resume_and_run.{task}[{n}]" for task in ("resume", "run") for n in range(3)]
    assert airflow.task_states(dag, dag_run) == dict.fromkeys(["workflow_ids", *tasks], "success")
    for task, (index, workflow_id) in itertools.product(("resume", "run"), enumerate(ids)):
        instance = airflow.task_instance(dag, dag_run, f"resume_and_run.{task}", map_index=index)
        assert instance["rendered_map_index"] == f"workflow {workflow_id}"
    assert e2e_sandbox.runs(done.workflow_id) == [(done.workflow_run_id, "D")]
    for index, workflow in zip((0, 2), workflows, strict=True):
        assert e2e_sandbox.workflow_status(workflow.workflow_id) == "D"
        run, _ = e2e_sandbox.runs(workflow.workflow_id)[-1]
        assert airflow.xcom(dag, dag_run, "resume_and_run.run", map_index=index) == run


@pytest.mark.environment
def test_a_run_that_ends_badly_fails_the_task(e2e_sandbox: JobmonSandbox, airflow: AirflowStack) -> None:
    workflow = e2e_sandbox.make_workflow_in("E")  # and not released, so its tasks will fail
    dag_run = airflow.trigger(RESUME_AND_CREATE, {"workflow_id": workflow.workflow_id})
    run = new_run(e2e_sandbox, workflow)
    airflow.wait_for_deferral(RESUME_AND_CREATE, dag_run, "run")
    e2e_sandbox.execute(workflow.workflow_id, run)
    assert_ended(airflow, RESUME_AND_CREATE, dag_run, "failed")
    assert airflow.task_states(RESUME_AND_CREATE, dag_run) == {"resume": "success", "run": "failed"}
    log = airflow.task_log(RESUME_AND_CREATE, dag_run, "run")
    what = f"workflow run {run} of workflow {workflow.workflow_id} ended ERROR (E)"
    assert f"{what}: 1 of 1 task failed, 0 done" in log
    assert "Got exit_code: 1" in log
    assert "No such file or directory (task " in log
    assert len(errors(log)) == 1


def test_a_workflow_that_does_not_exist_fails_the_task_with_one_line(airflow: AirflowStack) -> None:
    dag_run = airflow.trigger(RESUME_AND_CREATE, {"workflow_id": 987654})
    assert_ended(airflow, RESUME_AND_CREATE, dag_run, "failed")
    states = airflow.task_states(RESUME_AND_CREATE, dag_run)
    assert states == {"resume": "failed", "run": "upstream_failed"}
    log = airflow.task_log(RESUME_AND_CREATE, dag_run, "resume")
    assert "telling its run to stop" not in log
    (line,) = errors(log)
    assert "987654" in line
    assert "does not exist" in line


def test_a_text_that_is_no_id_fails_the_task_with_one_line(
    e2e_sandbox: JobmonSandbox, airflow: AirflowStack
) -> None:
    dag_run = airflow.trigger("any_id", {"workflow_id": "1/../2"})
    assert_ended(airflow, "any_id", dag_run, "failed")
    for task in ("resume", "run"):
        (line,) = errors(airflow.task_log("any_id", dag_run, task))
        assert "workflow_id must be a positive integer, not '1/../2'" in line
    assert not [request for request in e2e_sandbox.requests() if ".." in request.path]


@pytest.mark.parametrize("dag", [RESUME_AND_CREATE, "gateway"])
def test_secrets_stay_where_they_are(e2e_sandbox: JobmonSandbox, airflow: AirflowStack, dag: str) -> None:
    workflow = e2e_sandbox.make_workflow_in("E")
    dag_run = airflow.trigger(dag, {"workflow_id": workflow.workflow_id})
    airflow.wait_for_deferral(dag, dag_run, "run")
    run = new_run(e2e_sandbox, workflow)
    wait_until(lambda: provider_beats(e2e_sandbox, run), 30, "the trigger to run")
    with sqlite3.connect(airflow.directory / "airflow.db") as database:
        kwargs = [kwargs for (kwargs,) in database.execute("SELECT kwargs FROM trigger")]
    assert any('"workflow_run_id"' in text for text in kwargs)
    for secret in SECRETS.values():
        assert not [text for text in kwargs if secret in text]
        holders = [
            str(file)
            for file in airflow.directory.rglob("*")
            if file.is_file() and secret.encode() in file.read_bytes()
        ]
        assert not holders


def marked_failed(sandbox: JobmonSandbox, airflow: AirflowStack) -> int:
    """Mark a deferred task failed, and return its run."""
    workflow = sandbox.make_workflow_in("E")
    dag_run = airflow.trigger(RESUME_AND_CREATE, {"workflow_id": workflow.workflow_id})
    airflow.wait_for_deferral(RESUME_AND_CREATE, dag_run, "run")
    run = new_run(sandbox, workflow)
    wait_until(lambda: provider_beats(sandbox, run), 30, "the trigger to run")
    airflow.set_task_state(RESUME_AND_CREATE, dag_run, "run", "failed")
    if airflow_has("a call of a trigger's `on_kill`"):
        ended = "trigger completed"
        wait_until(
            lambda: ended in airflow.task_log(RESUME_AND_CREATE, dag_run, "run"), 60, "the trigger to end"
        )
    return run


@pytest.mark.environment
def test_marking_a_deferred_task_failed_ends_its_run(
    e2e_sandbox: JobmonSandbox, airflow: AirflowStack
) -> None:
    """By the trigger, and by the reaper before Airflow 3.3, which does not tell a trigger of a user's act."""
    run = marked_failed(e2e_sandbox, airflow)
    if airflow_has("a call of a trigger's `on_kill`"):
        # A triggerer's first request to Airflow's API builds its routes. On a busy machine that takes longer
        # than a trigger may ask for its task's state, and then it leaves the run alone.
        run = marked_failed(e2e_sandbox, airflow)
        (abort,) = e2e_sandbox.requests(f"/workflow_run/{run}/update_status")
        assert abort.body == {"status": "A"}
        assert e2e_sandbox.run_status(run) == "A"
    else:
        wait_until(lambda: e2e_sandbox.run_status(run) == "A", 90, "the reaper")
        assert not e2e_sandbox.requests(f"/workflow_run/{run}/update_status")


@pytest.mark.environment
def test_a_time_out_holds_while_the_task_is_deferred(
    e2e_sandbox: JobmonSandbox, airflow: AirflowStack
) -> None:
    """Airflow's own does not, on 3.x. On 2.11 it fails the task on its return, before our code runs."""
    assert not airflow_has("`execution_timeout` that ends")
    workflow = e2e_sandbox.make_workflow_in("E")
    dag_run = airflow.trigger("timed_out", {"workflow_id": workflow.workflow_id})
    assert_ended(airflow, "timed_out", dag_run, "failed")
    (error,) = errors(airflow.task_log("timed_out", dag_run, "run"))
    ours = (
        rf"no executor took workflow run {new_run(e2e_sandbox, workflow)} within the \d\d s that the task had"
    )
    assert re.search("AirflowTaskTimeout" if AIRFLOW_2 else ours, error)
    ((_, before), (_, after)) = e2e_sandbox.runs(workflow.workflow_id)
    assert (before, after) == ("E", "A")


@pytest.mark.environment
def test_airflow_imports_every_example_dag(airflow: AirflowStack) -> None:
    assert airflow.dag_import_errors() == {}
    dags = [path.stem for path in EXAMPLE_DAGS.glob("*.py")]
    wait_until(lambda: all(map(airflow.is_parsed, dags)), 60, "the example DAGs")

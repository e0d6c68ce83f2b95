"""What holds of a run wherever it is executed: tests that modules with places of theirs collect."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, TaskDeferred
from airflow.triggers.base import BaseTrigger

from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator
from dev.jobmon_sandbox import JobmonSandbox, SandboxWorkflow, wait_until
from tests.airflow_task import Tries, fire, resume, run_task, stored
from tests.operators.tasks import during, last_run

Make = Callable[..., CreateWorkflowRunOperator]


PLACES = [
    pytest.param({"setup_commands": ["true"]}, id="this worker-blocking"),
    pytest.param({"deferrable": True}, id="this worker-deferrable"),
    pytest.param({"ssh_conn_id": "submit_host"}, id="submit host-blocking"),
    pytest.param({"ssh_conn_id": "submit_host", "deferrable": True}, id="submit host-deferrable"),
]


everywhere = pytest.mark.parametrize("place", PLACES)


def failed(sandbox: JobmonSandbox, *, waits: bool = False) -> SandboxWorkflow:
    """Make a workflow whose run has ended in error, and whose tasks are reset."""
    workflow = sandbox.make_workflow_in("E", tasks=2, waits=waits)
    sandbox.post(f"/api/v2/task/{workflow.workflow_id}/set_resume_state", {"reset_if_running": True})
    return workflow


@pytest.mark.environment
@everywhere
def test_the_run_is_executed_to_its_end(
    sandbox: JobmonSandbox,
    make: Make,
    folder: Path,
    place: dict[str, Any],
    logged: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workflow = failed(sandbox)
    workflow.release()
    monkeypatch.setenv("SLURM_JOB_ID", "4711")  # the worker may be a job itself
    ended = run_task(make(workflow, **{**place, "setup_commands": ["echo 'set up here' && cd /"]}))
    run, status = last_run(sandbox, workflow.workflow_id)
    assert (ended.result, status) == (run, "D")
    assert len(ended.events) == bool(place.get("deferrable"))
    assert (ended.xcoms["status"], ended.xcoms["task_counts"]["done"]) == ("D", 2)
    log = logged()
    for line in ("set up here", f"executor: executing workflow run {run}", "2 of 2 tasks done, 0 failed"):
        assert log.count(line) == 1
    assert [each.name for each in folder.iterdir() if each.is_dir()] == ["runs"]
    assert list((folder / "runs").iterdir()) == []  # nothing is left of the job
    assert not (Path.home() / "pwned").exists()


@everywhere
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"setup_commands": ["true", "module load nowhere"]}, r"setup command 2 failed: module load nowhere"),
        ({"setup_commands": ["echo 'not whole"]}, r"setup command 1 failed: echo 'not whole"),
        ({"cluster_name": "nowhere"}, r"cluster 'nowhere' is unknown to Jobmon"),
        ({"remote_dir": "/proc/none"}, r"remote_dir cannot be written there: .*/proc/none"),
    ],
    ids=["setup", "half a line", "cluster", "folder"],
)
def test_what_cannot_begin_aborts_the_run_and_says_why_first(
    sandbox: JobmonSandbox, make: Make, place: dict[str, Any], options: dict[str, Any], says: str
) -> None:
    workflow = failed(sandbox)
    with pytest.raises(AirflowException, match=rf"^[^\n]*{says}"):
        run_task(make(workflow, **{**place, **options}))
    assert last_run(sandbox, workflow.workflow_id)[1] == "A"


@everywhere
def test_a_cluster_that_jobmon_does_not_know_makes_no_retry(
    sandbox: JobmonSandbox, make: Make, place: dict[str, Any]
) -> None:
    with pytest.raises(AirflowFailException, match="cluster 'nowhere' is unknown to Jobmon"):
        run_task(make(failed(sandbox), cluster_name="nowhere", **place))


@everywhere
def test_a_python_that_is_not_there(
    sandbox: JobmonSandbox, make: Make, place: dict[str, Any], logged: Callable[[], str]
) -> None:
    workflow = failed(sandbox)
    with pytest.raises(AirflowException, match="jobmon_python: '/no/python' is not an executable file on"):
        run_task(make(workflow, jobmon_python="/no/python", **place))
    runs = sandbox.runs(workflow.workflow_id)
    assert [status for _, status in runs][1:] in ([], ["A"])  # a worker looks before there is a run


def begin(operator: CreateWorkflowRunOperator, tries: Tries) -> BaseTrigger:
    """Execute a deferrable task until it is deferred, and return its trigger as a triggerer has it."""
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(tries.next())
    return stored(deferred.value.trigger)


@everywhere
def test_a_worker_that_defers_leaves_the_output_to_the_trigger(
    sandbox: JobmonSandbox, make: Make, folder: Path, place: dict[str, Any], logged: Callable[[], str]
) -> None:
    workflow = failed(sandbox)
    begin(
        make(workflow, **{**place, "setup_commands": ["echo set up", "sleep 300"], "deferrable": True}),
        Tries(),
    )

    def written() -> str:
        return "".join(output.read_text() for output in folder.glob("runs/*/output"))

    wait_until(lambda: "set up" in written(), 30, "its first line")
    assert not {"set up", "process"} & set(logged().split())
    assert not list(folder.glob("runs/*/logged"))


@pytest.mark.environment
@everywhere
def test_a_retry_goes_on_with_the_job(
    sandbox: JobmonSandbox, make: Make, folder: Path, place: dict[str, Any], logged: Callable[[], str]
) -> None:
    workflow = failed(sandbox, waits=True)
    tries = Tries()
    begin(make(workflow, **{**place, "deferrable": True}), tries)  # its worker and its triggerer die then
    run = last_run(sandbox, workflow.workflow_id)[0]
    wait_until(lambda: sandbox.run_status(run) == "R", 60, "the run to be RUNNING")
    (before,) = (handle.read_text() for handle in folder.glob("runs/*/handle"))

    def release() -> None:
        wait_until(lambda: f"executor: executing workflow run {run}" in logged(), 60, "the output")
        (after,) = (handle.read_text() for handle in folder.glob("runs/*/handle"))
        assert before == after
        workflow.release()

    operator, context = make(workflow, **place), tries.next()
    with during(release):
        if place.get("deferrable"):
            with pytest.raises(TaskDeferred) as deferred:
                operator.execute(context)
            event = asyncio.run(fire(deferred.value.trigger))
            assert resume(operator, deferred.value, event, context) == run
        else:
            assert operator.execute(context) == run
    assert sandbox.runs(workflow.workflow_id)[1:] == [(run, "D")]
    assert logged().count("2 of 2 tasks done, 0 failed") == 1


@pytest.mark.environment
@pytest.mark.parametrize("ssh_conn_id", [None, "submit_host"], ids=["this worker", "submit host"])
def test_each_line_is_logged_once_though_a_triggerer_takes_over(
    sandbox: JobmonSandbox, make: Make, folder: Path, ssh_conn_id: str | None, logged: Callable[[], str]
) -> None:
    workflow = failed(sandbox, waits=True)
    trigger = begin(make(workflow, ssh_conn_id=ssh_conn_id, deferrable=True), Tries())
    run = last_run(sandbox, workflow.workflow_id)[0]

    async def fail_over() -> dict[str, Any]:
        first = asyncio.create_task(fire(trigger))
        await asyncio.to_thread(
            wait_until, lambda: f"executor: executing workflow run {run}" in logged(), 60, "its output"
        )
        kept = folder.glob  # how much of the output is in the log
        await asyncio.to_thread(wait_until, lambda: list(kept("runs/*/logged")), 60, "that to be kept")
        first.cancel()
        workflow.release()
        return await fire(trigger)

    event = asyncio.run(fail_over())
    assert (event["status"], event["workflow_run_status"]) == ("success", "D")
    for line in (f"executor: executing workflow run {run}", "2 of 2 tasks done, 0 failed"):
        assert logged().count(line) == 1


@everywhere
def test_a_retry_of_a_run_that_has_ended_tells_the_rest_and_leaves_nothing_behind(
    sandbox: JobmonSandbox, make: Make, folder: Path, place: dict[str, Any], logged: Callable[[], str]
) -> None:
    workflow = failed(sandbox)
    workflow.release()
    tries = Tries()
    begin(make(workflow, **{**place, "deferrable": True}), tries)  # its worker and its triggerer die then
    run = last_run(sandbox, workflow.workflow_id)[0]
    wait_until(lambda: sandbox.run_status(run) == "D", 60, "the run to be DONE")
    assert make(workflow, **place).execute(tries.next()) == run
    assert logged().count("2 of 2 tasks done, 0 failed") == 1
    assert list((folder / "runs").iterdir()) == []


@pytest.mark.parametrize("ssh_conn_id", [None, "submit_host"], ids=["this worker", "submit host"])
def test_what_was_over_before_the_trigger_began_is_told_all_the_same(
    sandbox: JobmonSandbox, make: Make, ssh_conn_id: str | None, logged: Callable[[], str]
) -> None:
    workflow = failed(sandbox)
    workflow.release()
    trigger = begin(make(workflow, ssh_conn_id=ssh_conn_id, deferrable=True), Tries())
    wait_until(lambda: last_run(sandbox, workflow.workflow_id)[1] == "D", 60, "the run to be DONE")
    event = asyncio.run(fire(trigger))
    assert event["workflow_run_status"] == "D"
    assert "2 of 2 tasks done, 0 failed" in logged()


@everywhere
def test_a_retry_that_finds_no_job_of_ours_watches_the_run_as_ever(
    sandbox: JobmonSandbox, make: Make, folder: Path, place: dict[str, Any]
) -> None:
    """Its folder was removed, say, or an older version of this provider has started the executor."""
    workflow = failed(sandbox)
    tries = Tries()
    elsewhere = CreateWorkflowRunOperator(task_id="run", workflow_id=workflow.workflow_id, deferrable=True)
    begin(elsewhere, tries)
    run = last_run(sandbox, workflow.workflow_id)[0]
    for status in "BIOR":
        sandbox.put(f"/api/v2/workflow_run/{run}/update_status", {"status": status})
    trigger: Any = begin(make(workflow, **{**place, "deferrable": True}), tries)
    assert (trigger.workflow_run_id, trigger.executor) == (run, None)
    assert not list(folder.glob("runs/*"))

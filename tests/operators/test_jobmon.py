"""Operators on a real Jobmon, blocking and deferred."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    DAG,
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    AirflowTaskTimeout,
    TaskDeferred,
)

from airflow_jobmon_provider.links.jobmon import JobmonWorkflowLink
from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator
from airflow_jobmon_provider.triggers.jobmon import WorkflowResumableTrigger, WorkflowRunHeartbeatTrigger
from dev.jobmon_sandbox import JobmonSandbox, wait_until
from tests.airflow_task import TaskInstance, Tries, run_task, stored
from tests.operators.tasks import create, died_after_creating, last_run, resume
from tests.proxy import SwallowingProxy
from tests.stub_server import Reply, StubServer
from tests.stuck_tasks import stop_with_stuck_tasks

NOBODY = 987_654_321
LINK = JobmonWorkflowLink().xcom_key

pytestmark = pytest.mark.usefixtures("connection")

both = pytest.mark.parametrize("deferrable", [False, True], ids=["blocking", "deferrable"])


def in_the_background(action: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread


def move(sandbox: JobmonSandbox, workflow_id: int, statuses: str) -> None:
    """Play the executor of the run that is made next: take it through these statuses."""
    before = len(sandbox.runs(workflow_id))
    wait_until(lambda: len(sandbox.runs(workflow_id)) > before, 20, "the new run")
    wait_until(lambda: last_run(sandbox, workflow_id)[1] == "L", 20, "the new run to be linked")
    for status in statuses:
        path = f"/api/v2/workflow_run/{last_run(sandbox, workflow_id)[0]}/update_status"
        sandbox.put(path, {"status": status})


# --- ResumeWorkflowOperator ---------------------------------------------------------------------------------


@both
def test_a_failed_workflow_is_made_ready(sandbox: JobmonSandbox, deferrable: bool) -> None:
    workflow = sandbox.make_workflow_in("E", tasks=2)
    ended = run_task(resume(str(workflow.workflow_id), deferrable=deferrable))
    assert ended.result == workflow.workflow_id
    assert sandbox.task_statuses(workflow.workflow_id) == ["G", "G"]
    assert not ended.events  # don't defer a run that has already ended


@both
def test_a_running_workflow_is_stopped_first(sandbox: JobmonSandbox, deferrable: bool) -> None:
    workflow = sandbox.make_workflow("running")
    ended = run_task(resume(workflow.workflow_id, deferrable=deferrable, resume_timeout=60))
    assert ended.result == workflow.workflow_id
    assert sandbox.run_status(workflow.workflow_run_id or 0) == "T"
    assert set(sandbox.task_statuses(workflow.workflow_id)) == {"G"}
    assert len(ended.events) == deferrable


@both
def test_a_workflow_that_stays_busy(sandbox: JobmonSandbox, deferrable: bool) -> None:
    workflow = sandbox.make_workflow_in("R")
    started = time.monotonic()
    with pytest.raises(AirflowException, match=f"workflow {workflow.workflow_id} did not become resumable"):
        run_task(resume(workflow.workflow_id, deferrable=deferrable, resume_timeout=1))
    assert time.monotonic() - started < 5
    assert sandbox.run_status(workflow.workflow_run_id or 0) == "C"


@both
@pytest.mark.parametrize(("reset_running_jobs", "status"), [(True, "C"), (False, "H")])
def test_the_signal_is_cold_or_hot_as_asked_for(
    sandbox: JobmonSandbox, deferrable: bool, reset_running_jobs: bool, status: str
) -> None:
    workflow = sandbox.make_workflow_in("R")
    task = resume(
        workflow.workflow_id,
        deferrable=deferrable,
        resume_timeout=0,
        reset_running_jobs=reset_running_jobs,
    )
    # Its one look has a second, which may be too short on a busy machine.
    with pytest.raises(AirflowException, match=r"did not become resumable|within 1 s"):
        run_task(task)
    assert sandbox.run_status(workflow.workflow_run_id or 0) == status


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, "G"),
        ({"reset_running_jobs": False}, "R"),
        ({"reset_if_running": False}, "R"),
        ({"reset_running_jobs": False, "reset_if_running": True}, "G"),
    ],
)
def test_running_tasks_are_reset_as_the_signal_was(
    sandbox: JobmonSandbox, options: dict[str, bool], left: str
) -> None:
    workflow = sandbox.make_workflow_in("E")
    sandbox.change("UPDATE task SET status = 'R' WHERE workflow_id = ?", workflow.workflow_id)
    run_task(resume(workflow.workflow_id, **options))
    assert sandbox.task_statuses(workflow.workflow_id) == [left]


def test_a_workflow_that_is_done_is_skipped_or_failed(sandbox: JobmonSandbox) -> None:
    workflow_id = sandbox.make_workflow_in("D").workflow_id
    line = f"workflow {workflow_id} is DONE: there is nothing left to run"
    with pytest.raises(AirflowSkipException, match=line):
        run_task(resume(workflow_id))
    with pytest.raises(AirflowFailException, match=line):
        run_task(resume(workflow_id, if_done="fail"))
    with pytest.raises(AirflowSkipException, match=line):
        run_task(create(workflow_id, if_done="skip"))
    with pytest.raises(AirflowFailException, match=line):
        run_task(create(workflow_id, if_done="fail"))


@both
def test_a_workflow_that_is_done_may_pass_and_nothing_is_changed(
    sandbox: JobmonSandbox, logged: Callable[[], str], deferrable: bool
) -> None:
    workflow = sandbox.make_workflow_in("D")
    workflow_id = workflow.workflow_id
    assert run_task(resume(workflow_id, if_done="pass", deferrable=deferrable)).result == workflow_id
    ended = run_task(create(workflow_id, deferrable=deferrable))
    assert ended.result is None
    assert ended.xcoms == {LINK: "", "workflow_id": workflow_id}
    assert f"workflow {workflow_id} is DONE: there is nothing left to run" in logged()
    assert sandbox.runs(workflow_id) == [(workflow.workflow_run_id, "D")]
    assert not sandbox.requests(f"/task/{workflow_id}/set_resume_state")


def test_a_run_that_finishes_the_workflow_instead_of_stopping(sandbox: JobmonSandbox) -> None:
    workflow_id = sandbox.make_workflow_in("D").workflow_id
    event = {"status": "success", "workflow_id": workflow_id, "message": "resumable"}
    with pytest.raises(AirflowSkipException, match="is DONE"):
        resume(workflow_id).execute_complete({}, event)


def test_another_client_that_was_quicker_keeps_the_workflow(sandbox: JobmonSandbox) -> None:
    workflow_id = sandbox.make_workflow_in("L").workflow_id
    event = {"status": "success", "workflow_id": workflow_id, "message": "resumable"}
    with pytest.raises(AirflowException, match="is not resumable"):
        resume(workflow_id).execute_complete({}, event)


def test_a_forced_clean_up(connection: Callable[..., None], sandbox: JobmonSandbox) -> None:
    connection(extra={"route_prefix": "/api/v3"})
    workflow_id, run = stop_with_stuck_tasks(sandbox)
    assert run_task(resume(workflow_id, force_cleanup=True)).result == workflow_id
    assert sandbox.run_status(run) == "T"


@both
def test_a_forced_clean_up_on_a_server_without_it_changes_nothing(
    sandbox: JobmonSandbox, deferrable: bool
) -> None:
    workflow = sandbox.make_workflow_in("R")
    with pytest.raises(AirflowException, match=r"this Jobmon server \(http.*\) cannot force a clean-up"):
        run_task(resume(workflow.workflow_id, force_cleanup=True, deferrable=deferrable))
    assert sandbox.run_status(workflow.workflow_run_id or 0) == "R"


def test_a_deferral_carries_plain_values_and_no_secret(sandbox: JobmonSandbox) -> None:
    workflow_id = sandbox.make_workflow_in("R").workflow_id
    with pytest.raises(TaskDeferred) as deferred:
        resume(workflow_id, deferrable=True, resume_timeout=100).execute({"ti": TaskInstance()})  # type: ignore[typeddict-item]
    trigger = deferred.value.trigger
    assert isinstance(trigger, WorkflowResumableTrigger)
    assert trigger.workflow_id == workflow_id
    assert trigger.deadline == pytest.approx(time.time() + 100, abs=5)
    assert trigger.kill_patience == pytest.approx(50, abs=3)  # half of it
    assert stored(trigger).serialize() == trigger.serialize()


@both
@pytest.mark.parametrize("wanted", [{"increase_resources": True}, {}], ids=["asked for", "by default"])
def test_resources_are_raised_once_the_workflow_is_at_rest(
    sandbox: JobmonSandbox,
    connection: Callable[..., None],
    logged: Callable[[], str],
    deferrable: bool,
    wanted: dict[str, Any],
) -> None:
    connection(extra={"route_prefix": "/api/v3"})
    workflow = sandbox.make_workflow("fails", tasks=2)
    workflow_id = workflow.workflow_id
    (first, *_) = sandbox.query("SELECT min(id) FROM task WHERE workflow_id = ?", workflow_id)[0]
    sandbox.change("UPDATE task_instance SET status = 'Z' WHERE task_id = ?", first)
    run_task(resume(workflow_id, deferrable=deferrable, **wanted))
    assert "the resources of 1 task(s) that failed for lack of them were raised" in logged()
    assert sandbox.task_statuses(workflow_id) == ["G", "G"]
    asked = [(r.method, r.path.rpartition("/")[2]) for r in sandbox.requests(f"/{workflow_id}/")]
    order = [("GET", "increase_resources"), ("GET", "is_resumable"), ("POST", "increase_resources")]
    order += [("POST", "set_resume_state")]
    assert [step for step in asked if step in order and "api" not in step][-4:] == order


@both
def test_by_default_a_server_that_cannot_raise_resources_is_said_in_one_line(
    sandbox: JobmonSandbox, logged: Callable[[], str], deferrable: bool
) -> None:
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    assert run_task(resume(workflow_id, deferrable=deferrable)).result == workflow_id
    (line,) = [line for line in logged().splitlines() if "resources" in line]
    assert f"workflow {workflow_id}: its tasks keep the resources that they have: this Jobmon server" in line
    assert not [r for r in sandbox.requests(f"/{workflow_id}/increase_resources") if r.method == "POST"]


def test_where_resources_are_not_to_be_raised_the_server_is_not_asked_for_it(
    sandbox: JobmonSandbox, connection: Callable[..., None]
) -> None:
    connection(extra={"route_prefix": "/api/v3"})
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    run_task(resume(workflow_id, increase_resources=False))
    assert not sandbox.requests(f"/{workflow_id}/increase_resources")


@both
def test_a_server_that_cannot_raise_resources_is_told_before_anything_is_changed(
    sandbox: JobmonSandbox, deferrable: bool
) -> None:
    workflow = sandbox.make_workflow_in("R")
    with pytest.raises(
        AirflowFailException, match=r"cannot raise the resources of failed tasks; needs a newer"
    ):
        run_task(resume(workflow.workflow_id, increase_resources=True, deferrable=deferrable))
    assert sandbox.run_status(workflow.workflow_run_id or 0) == "R"
    assert not sandbox.requests(f"/workflow/{workflow.workflow_id}/set_resume")


def test_another_refusal_of_the_probe_is_an_error(
    connection: Callable[..., None], stub: Callable[..., StubServer]
) -> None:
    details = Reply(200, json.dumps([{"wf_status": "F", "wf_name": "x"}]).encode())
    connection(stub(details, Reply(403, b"no")).url, extra={"route_prefix": ""})
    with pytest.raises(AirflowException, match="403"):
        run_task(resume(7, increase_resources=True))


# --- CreateWorkflowRunOperator ------------------------------------------------------------------------------


@both
def test_a_run_is_created_kept_alive_and_waited_for(sandbox: JobmonSandbox, deferrable: bool) -> None:
    workflow_id = sandbox.make_workflow_in("E").workflow_id

    def executor() -> None:
        before = len(sandbox.runs(workflow_id))
        wait_until(lambda: len(sandbox.runs(workflow_id)) > before, 20, "the new run")
        run = last_run(sandbox, workflow_id)[0]
        route = f"/workflow_run/{run}/log_heartbeat"
        wait_until(lambda: len(sandbox.requests(route)) > 4, 20, "heartbeats beyond what one is good for")
        for status in "BIORD":
            sandbox.put(f"/api/v2/workflow_run/{run}/update_status", {"status": status})

    sandbox.start_reaper(0.2)
    try:
        playing = in_the_background(executor)
        ended = run_task(create(str(workflow_id), deferrable=deferrable))
        playing.join()
    finally:
        sandbox.stop_reaper()
    run, status = last_run(sandbox, workflow_id)
    assert status == "D"
    assert ended.result == run
    assert ended.xcoms == {
        LINK: "",
        "workflow_id": workflow_id,
        "workflow_run_id": run,
        "status": "D",
        "task_counts": {"total": 1, "pending": 0, "scheduled": 0, "running": 0, "done": 0, "fatal": 1},
    }
    assert len(sandbox.runs(workflow_id)) == 2


@both
@pytest.mark.parametrize(
    ("path", "says"), [("BIORE", "1 of 1 task failed"), ("BIORS", "interrupted by a user")]
)
def test_any_other_end_fails_with_what_it_means(
    sandbox: JobmonSandbox, deferrable: bool, path: str, says: str
) -> None:
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    playing = in_the_background(lambda: move(sandbox, workflow_id, path))
    with pytest.raises(AirflowException) as caught:
        run_task(create(workflow_id, deferrable=deferrable))
    playing.join()
    run = last_run(sandbox, workflow_id)[0]
    assert f"workflow run {run} of workflow {workflow_id} ended" in str(caught.value)
    assert f"({path[-1]})" in str(caught.value)
    assert says in str(caught.value)


@both
def test_a_bad_end_names_the_tasks_that_failed_and_why(sandbox: JobmonSandbox, deferrable: bool) -> None:
    workflow = sandbox.make_workflow("fails", tasks=2)
    workflow_id = workflow.workflow_id
    context: Any = {"ti": TaskInstance()}
    resume(workflow_id).execute(context)  # and not released, so they fail again

    def executor() -> None:
        wait_until(lambda: last_run(sandbox, workflow_id)[1] == "L", 20, "the new run")
        sandbox.execute(workflow_id, last_run(sandbox, workflow_id)[0]).wait(60)

    playing = in_the_background(executor)
    ti = TaskInstance()
    with pytest.raises(AirflowException) as caught:
        run_task(create(workflow_id, deferrable=deferrable), ti)
    playing.join()
    run = last_run(sandbox, workflow_id)[0]
    first, error, advice = str(caught.value).splitlines()
    what = f"workflow run {run} of workflow {workflow_id} ended ERROR (E)"
    assert first == f"{what}: 2 of 2 tasks failed, 0 done"
    assert re.fullmatch(r"2 × Got exit_code: 1.* \(e\.g\. task \d+ 'task-1'\)", error)
    assert f"resume workflow {workflow_id}" in advice
    assert ti.xcoms["status"] == "E"
    assert ti.xcoms["task_counts"]["fatal"] == 2
    assert isinstance(caught.value, AirflowFailException)  # a retry would only find the same


def test_the_link_to_jobmons_gui(connection: Callable[..., None], sandbox: JobmonSandbox) -> None:
    connection(extra={"gui_url": "https://gui.example/"})
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    for task in (resume(workflow_id), create(workflow_id, wait_for_completion=False)):
        (link,) = task.operator_extra_links
        assert run_task(task).xcoms[link.xcom_key] == f"https://gui.example/#/workflow/{workflow_id}"


def test_without_waiting_the_id_is_returned_at_once(sandbox: JobmonSandbox) -> None:
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    ended = run_task(create(workflow_id, wait_for_completion=False))
    assert last_run(sandbox, workflow_id) == (ended.result, "L")
    assert ended.xcoms == {LINK: "", "workflow_id": workflow_id, "workflow_run_id": ended.result}


@both
def test_a_run_that_no_executor_takes_is_aborted(sandbox: JobmonSandbox, deferrable: bool) -> None:
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    with pytest.raises(AirflowException) as caught:
        run_task(create(workflow_id, deferrable=deferrable, handoff_timeout=1))
    run, status = last_run(sandbox, workflow_id)
    assert status == "A"
    what = f"no executor took workflow run {run} within 1 s (handoff_timeout), so it was aborted"
    assert str(caught.value).startswith(what)
    assert not isinstance(caught.value, AirflowFailException)  # a retry creates another


def test_a_run_that_waits_for_an_executor_tells_the_command_that_executes_it(
    sandbox: JobmonSandbox, logged: Callable[[], str]
) -> None:
    workflow = sandbox.make_workflow_in("E")
    workflow_id = workflow.workflow_id
    workflow.release()
    run_task(resume(workflow_id))
    run_task(create(workflow_id, wait_for_completion=False))
    assert "waits for an executor, and has to be kept alive by another task" in logged()
    (command,) = re.findall(r"JOBMON__HTTP__SERVICE_URL=.*--cluster-name=CLUSTER", logged())
    command = command.replace(" python ", f" {shlex.quote(str(sandbox.python))} ").replace(
        "CLUSTER", "multiprocess"
    )
    env = {name: value for name, value in sandbox.environment().items() if "__HTTP__" not in name}
    subprocess.run(command, shell=True, check=True, env=env, timeout=120)  # noqa: S602  # as a user pastes it
    assert last_run(sandbox, workflow_id)[1] == "D"


def test_the_id_is_pushed_before_the_wait(sandbox: JobmonSandbox, logged: Callable[[], str]) -> None:
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    ti = TaskInstance()
    context: Any = {"ti": ti}
    with pytest.raises(TaskDeferred) as deferred:
        create(workflow_id, deferrable=True, execution_timeout=timedelta(hours=5)).execute(context)
    run = last_run(sandbox, workflow_id)[0]
    assert ti.xcoms == {LINK: "", "workflow_id": workflow_id, "workflow_run_id": run}
    kept_alive = "waits for an executor, and is kept alive for up to 3600 s (handoff_timeout)"
    assert f"workflow run {run} {kept_alive}" in logged()
    trigger = deferred.value.trigger
    assert trigger.workflow_id == workflow_id
    assert isinstance(trigger, WorkflowRunHeartbeatTrigger)
    assert trigger.workflow_run_id == run
    assert trigger.handoff_deadline == pytest.approx(time.time() + 3600, abs=5)
    assert trigger.deadline == pytest.approx(time.time() + 5 * 3600, abs=5)
    assert stored(trigger).serialize() == trigger.serialize()
    assert deferred.value.timeout is None


class BrokenTaskInstance(TaskInstance):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def xcom_push(self, key: str, value: Any) -> None:
        if key == "workflow_run_id":
            raise self.error


@pytest.mark.parametrize("error", [RuntimeError("API server error"), AirflowTaskTimeout("time is over")])
def test_giving_up_before_the_hand_off_leaves_no_run_behind(
    sandbox: JobmonSandbox, error: BaseException
) -> None:
    """Rule 2."""
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    with pytest.raises(type(error)):
        run_task(create(workflow_id), BrokenTaskInstance(error))
    assert last_run(sandbox, workflow_id)[1] == "A"


def test_a_kill_aborts_a_run_that_nobody_has(sandbox: JobmonSandbox) -> None:
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    task = create(workflow_id, wait_for_completion=False)
    task.on_kill()  # before anything was created
    run_task(task, TaskInstance(in_airflow={-1: "failed"}))
    task.on_kill()
    assert last_run(sandbox, workflow_id)[1] == "A"


@pytest.mark.parametrize(("cancel", "left"), [(True, "C"), (False, "R")])
def test_a_kill_stops_a_run_that_an_executor_has_if_wanted(
    sandbox: JobmonSandbox, cancel: bool, left: str
) -> None:
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    task = create(workflow_id, wait_for_completion=False, cancel_on_kill=cancel)
    run = run_task(task, TaskInstance(in_airflow={-1: "failed"})).result
    for status in "BIOR":
        sandbox.put(f"/api/v2/workflow_run/{run}/update_status", {"status": status})
    task.on_kill()
    assert last_run(sandbox, workflow_id) == (run, left)


def test_an_abort_that_fails_hides_nothing(
    connection: Callable[..., None], stub: Callable[..., StubServer], logged: Callable[[], str]
) -> None:
    server = stub(Reply(401, b"who?"))
    connection(server.url)
    event = {"status": "error", "workflow_run_id": 5, "workflow_run_status": None, "message": "401 who?"}
    context: Any = {"ti": TaskInstance()}
    with pytest.raises(AirflowException, match=r"401 who\?"):
        create(7).execute_complete(context, event)
    assert f"workflow run 5 could not be stopped: PUT {server.url}" in logged()


def test_a_run_that_is_out_of_reach_is_said(
    connection: Callable[..., None], logged: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_jobmon_provider.operators._attempt.ON_KILL_TIMEOUT", 0.5)
    connection("http://127.0.0.1:9")
    event = {"status": "timeout", "workflow_run_id": 5, "workflow_run_status": None, "message": "time"}
    context: Any = {"ti": TaskInstance()}
    with pytest.raises(AirflowException, match="time"):
        create(7).execute_complete(context, event)
    assert "workflow run 5 is now out of reach" in logged()


@both
@pytest.mark.parametrize("status", ["L", "R"])
def test_a_busy_workflow_gets_no_run_and_the_servers_words(
    sandbox: JobmonSandbox, deferrable: bool, status: str
) -> None:
    workflow = sandbox.make_workflow_in(status)
    with pytest.raises(AirflowException, match="linking"):
        run_task(create(workflow.workflow_id, deferrable=deferrable))
    assert sandbox.run_status(workflow.workflow_run_id or 0) == status


# --- retries and clears -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["", "B", "BIOR"])
def test_a_retry_goes_on_with_the_run_while_it_lives(sandbox: JobmonSandbox, status: str) -> None:
    tries = Tries()
    workflow_id, run = died_after_creating(sandbox, tries, status)
    context = tries.next()
    with pytest.raises(TaskDeferred) as deferred:
        create(workflow_id, deferrable=True).execute(context)
    assert deferred.value.trigger.workflow_run_id == run
    assert context["ti"].xcoms == {LINK: "", "workflow_id": workflow_id, "workflow_run_id": run}
    assert len(sandbox.runs(workflow_id)) == 2


@both
def test_a_retry_that_finds_the_run_done_succeeds_at_once(sandbox: JobmonSandbox, deferrable: bool) -> None:
    tries = Tries()
    workflow_id, run = died_after_creating(sandbox, tries, "BIORD")
    assert create(workflow_id, deferrable=deferrable).execute(tries.next()) == run
    assert len(sandbox.runs(workflow_id)) == 2


def test_a_retry_reports_a_bad_end_again(sandbox: JobmonSandbox) -> None:
    tries = Tries()
    workflow_id, run = died_after_creating(sandbox, tries, "BIORE")
    context = tries.next()
    with pytest.raises(AirflowFailException) as caught:
        create(workflow_id).execute(context)
    first, *_, advice = str(caught.value).splitlines()
    assert (
        first == f"workflow run {run} of workflow {workflow_id} ended ERROR (E): 1 of 1 task failed, 0 done"
    )
    assert "resume_on_retry=True" in advice
    assert context["ti"].xcoms.keys() >= {LINK, "workflow_id", "workflow_run_id", "status", "task_counts"}
    assert len(sandbox.runs(workflow_id)) == 2


def test_a_retry_that_comes_to_nothing_tells_of_the_earlier_run(
    sandbox: JobmonSandbox, connection: Callable[..., None]
) -> None:
    tries = Tries()
    workflow_id, run = died_after_creating(sandbox, tries, "BIOR")
    context = tries.next()
    connection("http://127.0.0.1:9", extra={"gui_url": "http://gui"})
    tries.kept["jobmon_workflow_run"]["server"] = "http://127.0.0.1:9/api/v2"
    with pytest.raises(AirflowException, match=r"127\.0\.0\.1:9"):
        create(workflow_id, create_timeout=0.5).execute(context)
    assert context["ti"].xcoms == {
        LINK: f"http://gui/#/workflow/{workflow_id}",
        "workflow_id": workflow_id,
        "workflow_run_id": run,
    }


def test_a_retry_resumes_after_a_bad_end_if_wanted(sandbox: JobmonSandbox) -> None:
    tries = Tries()
    workflow_id, run = died_after_creating(sandbox, tries, "BIORE")
    sandbox.change("UPDATE task SET status = 'F' WHERE workflow_id = ?", workflow_id)
    with pytest.raises(TaskDeferred) as deferred:
        create(workflow_id, deferrable=True, resume_on_retry=True).execute(tries.next())
    assert deferred.value.trigger.workflow_run_id > run
    assert sandbox.task_statuses(workflow_id) == ["G"]


def test_a_retry_does_not_stop_what_another_user_has_resumed(sandbox: JobmonSandbox) -> None:
    tries = Tries()
    workflow_id, _ = died_after_creating(sandbox, tries, "BIORE")
    others = run_task(create(workflow_id, wait_for_completion=False)).result
    for status in "BIOR":
        sandbox.put(f"/api/v2/workflow_run/{others}/update_status", {"status": status})
    with pytest.raises(AirflowException, match="a run of it is still alive"):
        create(workflow_id, resume_on_retry=True).execute(tries.next())
    assert sandbox.run_status(others) == "R"


def test_a_run_that_is_done_is_done_even_if_nothing_else_can_be_told(
    connection: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_JOBMON_DEFAULT")
    event = {"status": "success", "workflow_run_id": 5, "workflow_run_status": "D", "message": "done"}
    ti = TaskInstance()
    context: Any = {"ti": ti}
    assert create(7).execute_complete(context, event) == 5
    assert ti.xcoms == {"status": "D"}


def test_a_retry_replaces_a_run_that_no_executor_ever_had(sandbox: JobmonSandbox) -> None:
    tries = Tries()
    workflow_id, run = died_after_creating(sandbox, tries, "A")
    with pytest.raises(TaskDeferred) as deferred:
        create(workflow_id, deferrable=True).execute(tries.next())
    assert deferred.value.trigger.workflow_run_id > run


def test_a_run_that_the_server_has_forgotten_is_replaced(sandbox: JobmonSandbox) -> None:
    tries = Tries()
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    tries.set(
        "jobmon_workflow_run", {"workflow_id": workflow_id, "workflow_run_id": NOBODY, "clear_number": 0}
    )
    with pytest.raises(TaskDeferred):
        create(workflow_id, deferrable=True).execute(tries.next())
    assert last_run(sandbox, workflow_id)[1] == "L"


def test_the_run_of_another_workflow_is_none_of_ours(sandbox: JobmonSandbox) -> None:
    tries = Tries()
    died_after_creating(sandbox, tries)
    other = sandbox.make_workflow_in("E").workflow_id
    with pytest.raises(TaskDeferred):
        create(other, deferrable=True).execute(tries.next())
    assert last_run(sandbox, other)[1] == "L"


@pytest.mark.parametrize("status", ["", "BIORD", "BIORE"])
def test_a_user_who_clears_the_task_gets_another_run(sandbox: JobmonSandbox, status: str) -> None:
    tries = Tries()
    workflow_id, run = died_after_creating(sandbox, tries, status)
    if status.endswith("D"):  # the workflow is to be done again, too
        sandbox.change("UPDATE workflow SET status = 'F' WHERE id = ?", workflow_id)
    tries.clear()
    with pytest.raises(TaskDeferred) as deferred:
        create(workflow_id, deferrable=True).execute(tries.next())
    assert deferred.value.trigger.workflow_run_id > run
    assert [s for _, s in sandbox.runs(workflow_id)][1] == (status[-1:] or "A")


def test_a_user_who_clears_the_task_but_wants_nothing_cancelled_goes_on(sandbox: JobmonSandbox) -> None:
    tries = Tries()
    workflow_id, run = died_after_creating(sandbox, tries, "BIOR")
    tries.clear()
    with pytest.raises(TaskDeferred) as deferred:
        create(workflow_id, deferrable=True, cancel_on_kill=False).execute(tries.next())
    assert deferred.value.trigger.workflow_run_id == run
    assert sandbox.run_status(run) == "R"


@pytest.mark.parametrize("prefix", ["/api/v2", "/api/v3"])
def test_a_lost_run_is_waited_for_without_any_memory(
    sandbox: JobmonSandbox, connection: Callable[..., None], logged: Callable[[], str], prefix: str
) -> None:
    """The reply was lost, so nobody knows the run; 3.7 lets us reap it, on 3.4.8 Jobmon's reaper does."""
    connection(extra={"route_prefix": prefix})
    workflow = sandbox.make_workflow_in("L", good_for=1)
    tries = Tries()
    tries.next()
    if prefix == "/api/v2":
        sandbox.start_reaper(0.5)
    try:
        with pytest.raises(TaskDeferred) as deferred:
            create(workflow.workflow_id, deferrable=True).execute(tries.next(remembers=False))
    finally:
        sandbox.stop_reaper()
    (lost, lost_status), (run, status) = (r for r in sandbox.runs(workflow.workflow_id) if r[1] != "G")
    assert (lost, lost_status) == (workflow.workflow_run_id, "A")
    assert (run, status) == (deferred.value.trigger.workflow_run_id, "L")
    assert f"workflow {workflow.workflow_id} has a run in the way" in logged()


@pytest.mark.parametrize("prefix", ["/api/v2", "/api/v3"])
def test_a_reply_that_is_lost_on_the_way_ends_in_one_live_run(
    sandbox: JobmonSandbox, connection: Callable[..., None], prefix: str
) -> None:
    """A proxy swallows the reply: the server has created the run, and the client never hears of it."""
    workflow_id = sandbox.make_workflow_in("E").workflow_id

    def first_creation(method: str, path: str) -> bool:
        return method == "POST" and "/workflow_run?" in path and not proxy.swallowed

    if prefix == "/api/v2":
        sandbox.start_reaper(0.5)
    try:
        with SwallowingProxy(sandbox.url, first_creation) as proxy:
            connection(proxy.url, extra={"route_prefix": prefix})
            run = run_task(create(workflow_id, wait_for_completion=False)).result
    finally:
        sandbox.stop_reaper()
    assert len(proxy.swallowed) == 1
    _, (lost, lost_status), *others = (r for r in sandbox.runs(workflow_id) if r[1] != "G")
    assert lost_status == "A"
    assert others == [(run, "L")]
    assert run > lost


def test_two_tasks_at_the_same_moment_get_one_run(sandbox: JobmonSandbox) -> None:
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    barrier = threading.Barrier(2)
    results: list[Any] = []

    def compete() -> None:
        task = create(workflow_id, wait_for_completion=False)
        barrier.wait()
        try:
            results.append(run_task(task).result)
        except AirflowException as error:
            results.append(str(error))

    tasks = [in_the_background(compete), in_the_background(compete)]
    for task in tasks:
        task.join()
    (run,) = [result for result in results if isinstance(result, int)]
    (refusal,) = [result for result in results if isinstance(result, str)]
    assert f"refused workflow {workflow_id}" in refusal
    assert [r for r in sandbox.runs(workflow_id) if r[1] == "L"] == [(run, "L")]


def test_a_run_in_the_way_that_lives_is_another_clients(sandbox: JobmonSandbox) -> None:
    workflow = sandbox.make_workflow_in("L")
    tries = Tries()
    tries.next()
    with pytest.raises(AirflowException, match="linking"):
        create(workflow.workflow_id, create_timeout=1).execute(tries.next())
    assert sandbox.run_status(workflow.workflow_run_id or 0) == "L"


# --- both ---------------------------------------------------------------------------------------------------

BAD_IDS = ["abc", -1, "", "1/../2", True, 3.5, None]


@pytest.mark.parametrize("make", [resume, create])
@pytest.mark.parametrize("value", BAD_IDS)
def test_a_bad_literal_id_is_refused_in_the_dag_file(make: Callable[..., Any], value: Any) -> None:
    says = "must be given" if value is None else "must be a positive integer"
    with pytest.raises(ValueError, match=f"^workflow_id.* {says}"):
        make(value)


@pytest.mark.parametrize("make", [resume, create])
@pytest.mark.parametrize("value", BAD_IDS)
def test_a_bad_id_from_a_template_is_refused_at_run_time(
    sandbox: JobmonSandbox, make: Callable[..., Any], value: Any
) -> None:
    task = make("{{ params.workflow_id }}")
    task.workflow_id = value  # what rendering does
    before = len(sandbox.requests())
    with pytest.raises(ValueError, match="workflow_id must be a positive integer") as caught:
        run_task(task)
    assert repr(value) in str(caught.value)
    assert not [request for request in sandbox.requests()[before:] if request.is_ours]


def test_templates_are_rendered() -> None:
    with DAG("templates", schedule=None):
        task = create("{{ workflow }}", jobmon_conn_id="jobmon_{{ site }}")
    task.render_template_fields({"workflow": 7, "site": "north"})  # type: ignore[typeddict-unknown-key]
    assert (task.workflow_id, task.jobmon_conn_id) == ("7", "jobmon_north")


@pytest.mark.parametrize(
    ("make", "options", "says"),
    [
        (resume, {"resume_timeout": -1}, "resume_timeout must be a number"),
        (resume, {"resume_timeout": float("nan")}, "resume_timeout must be a number"),
        (resume, {"if_done": "ignore"}, "if_done must be one of 'skip', 'fail'"),
        (create, {"workflow_run_heartbeat_interval": 0}, "interval must be larger than 0"),
        (create, {"workflow_run_heartbeat_interval": -1}, "workflow_run_heartbeat_interval must be a number"),
        (create, {"heartbeat_report_by_buffer": 1}, "every heartbeat would come too late"),
        (create, {"heartbeat_report_by_buffer": "3"}, "heartbeat_report_by_buffer must be a number"),
        (create, {"handoff_timeout": 0}, "handoff_timeout must be larger than 0"),
        (create, {"handoff_timeout": float("inf")}, "handoff_timeout must be a number"),
        (create, {"poll_interval": 0}, "poll_interval must be larger than 0"),
        (create, {"keep_alive": "never"}, "keep_alive must be one of 'until_bound', 'until_done'"),
    ],
)
def test_bad_arguments_are_refused_in_the_dag_file(
    make: Callable[..., Any], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        make(7, **options)


@both
@pytest.mark.parametrize("make", [resume, create])
def test_a_workflow_that_does_not_exist(
    sandbox: JobmonSandbox, deferrable: bool, make: Callable[..., Any]
) -> None:
    with pytest.raises(AirflowException, match=f"workflow {NOBODY} does not exist") as caught:
        run_task(make(NOBODY, deferrable=deferrable))
    assert sandbox.url in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [resume, create])
def test_no_connection(make: Callable[..., Any]) -> None:
    with pytest.raises(AirflowException, match="connection 'nowhere' is not defined"):
        run_task(make(7, jobmon_conn_id="nowhere"))


@pytest.mark.parametrize("make", [resume, create])
def test_a_server_that_is_down_fails_the_task_with_one_line(
    connection: Callable[..., None], make: Callable[..., Any]
) -> None:
    connection("http://127.0.0.1:9", password="s3cret")
    options = {"create_timeout": 0} if make is create else {}
    with pytest.raises(AirflowException, match="Connection refused; is the server up") as caught:
        run_task(make(7, **options))
    assert "http://127.0.0.1:9/api/v2" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_connection_whose_heartbeat_would_come_too_late(
    connection: Callable[..., None], sandbox: JobmonSandbox
) -> None:
    connection(extra={"workflow_run_heartbeat_interval": 0})
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    task = CreateWorkflowRunOperator(task_id="run", workflow_id=workflow_id)
    with pytest.raises(ValueError, match="workflow_run_heartbeat_interval must be larger than 0"):
        run_task(task)
    assert len(sandbox.runs(workflow_id)) == 1


def test_events_are_plain_json(sandbox: JobmonSandbox) -> None:
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    playing = in_the_background(lambda: move(sandbox, workflow_id, "BIORD"))
    (event,) = run_task(create(workflow_id, deferrable=True)).events
    playing.join()
    ids = {"workflow_id", "workflow_run_id", "server"}
    assert set(event) == {"status", "workflow_run_status", "message", "exit_code", *ids}
    assert json.loads(json.dumps(event)) == event

"""What ResumeWorkflowOperator has decided and what a user has limited, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    AirflowTaskTimeout,
    TaskDeferred,
)

from airflow_jobmon_provider.client.protocol import routes
from airflow_jobmon_provider.operators.jobmon import ResumeWorkflowOperator
from dev.jobmon_sandbox import JobmonSandbox, wait_until
from tests.airflow_task import TaskInstance, fire, run_task
from tests.proxy import SwallowingProxy

NOBODY = 987_654_321

pytestmark = pytest.mark.usefixtures("connection")

both = pytest.mark.parametrize("deferrable", [False, True], ids=["blocking", "deferrable"])


def resume(workflow_id: Any, **options: Any) -> ResumeWorkflowOperator:
    return ResumeWorkflowOperator(task_id="resume", workflow_id=workflow_id, **options)


def deferral(task: Any, context: Any = None) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as deferred:
        task.execute(context or {"ti": TaskInstance()})
    return deferred.value


def come_back(task: Any, deferred: TaskDeferred, event: Any, context: Any = None) -> Any:
    kwargs = {"event": event, **(deferred.kwargs or {})}
    return task.resume_execution(deferred.method_name, kwargs, context or {"ti": TaskInstance()})


def move(sandbox: JobmonSandbox, run: int | None, statuses: str) -> None:
    for status in statuses:
        sandbox.put(f"/api/v2/workflow_run/{run}/update_status", {"status": status})


def signals(sandbox: JobmonSandbox, workflow_id: int) -> int:
    return len(sandbox.requests(f"/workflow/{workflow_id}/set_resume"))


class Store(dict[str, Any]):
    """Airflow's task_state_store, as far as it is used."""

    def set(self, key: str, value: Any) -> None:
        self[key] = value

    def delete(self, key: str) -> None:
        self.pop(key, None)


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


# --- what was decided before deferring ----------------------------------------------------------------------


@pytest.mark.parametrize("rendered", [None, "", "other", "nonsense"])
def test_ids_connection_and_settings_are_those_of_the_deferral(
    sandbox: JobmonSandbox, rendered: str | None
) -> None:
    workflow = sandbox.make_workflow_in("R")
    other = sandbox.make_workflow_in("E").workflow_id if rendered == "other" else rendered
    sandbox.change("UPDATE task SET status = 'R' WHERE workflow_id = ?", workflow.workflow_id)
    task = resume(workflow.workflow_id, deferrable=True, reset_running_jobs=False)
    deferred = deferral(task)
    move(sandbox, workflow.workflow_run_id, "T")
    event = asyncio.run(fire(deferred.trigger))
    again = resume("{{ gone }}", jobmon_conn_id="{{ gone }}", if_done="fail", increase_resources=True)
    again.workflow_id = other
    again.jobmon_conn_id = rendered  # type: ignore[assignment]
    assert come_back(again, deferred, event) == workflow.workflow_id
    assert sandbox.task_statuses(workflow.workflow_id) == ["R"]  # not reset_if_running
    if rendered == "other":
        assert not sandbox.requests(f"/task/{other}/")


def test_a_done_workflow_is_treated_as_was_decided(sandbox: JobmonSandbox) -> None:
    workflow = sandbox.make_workflow_in("R")
    deferred = deferral(resume(workflow.workflow_id, deferrable=True))
    sandbox.change("UPDATE workflow SET status = 'D' WHERE id = ?", workflow.workflow_id)
    sandbox.change("UPDATE workflow_run SET status = 'D' WHERE id = ?", workflow.workflow_run_id)
    event = asyncio.run(fire(deferred.trigger))
    with pytest.raises(AirflowSkipException, match="is DONE"):
        come_back(resume(1, if_done="fail"), deferred, event)


def test_a_connection_that_names_another_server_by_then(
    sandbox: JobmonSandbox, connection: Callable[..., None], silent: str
) -> None:
    workflow = sandbox.make_workflow_in("R")
    task = resume(workflow.workflow_id, deferrable=True)
    deferred = deferral(task)
    move(sandbox, workflow.workflow_run_id, "T")
    event = asyncio.run(fire(deferred.trigger))
    connection(silent)
    with pytest.raises(AirflowException, match="names the server"):
        come_back(task, deferred, event)


@pytest.mark.parametrize("event", [None, {}, {"message": "old"}, "success", {"status": "success"}])
def test_an_event_that_says_nothing_is_one_clear_line(event: Any) -> None:
    with pytest.raises(AirflowException, match="clear it to begin anew"):
        resume(5).execute_complete({}, event)


def test_an_older_versions_deferral_goes_on_with_what_it_has(sandbox: JobmonSandbox) -> None:
    workflow = sandbox.make_workflow_in("E")
    event = {"status": "success", "workflow_id": workflow.workflow_id, "message": "resumable"}
    task = resume("{{ gone }}")
    task.workflow_id = None
    assert task.execute_complete({}, event) == workflow.workflow_id
    assert sandbox.task_statuses(workflow.workflow_id) == ["G"]


# --- limits -------------------------------------------------------------------------------------------------


@both
def test_execution_timeout_holds_and_is_named(sandbox: JobmonSandbox, deferrable: bool) -> None:
    workflow_id = sandbox.make_workflow_in("R").workflow_id
    task = resume(
        workflow_id, deferrable=deferrable, resume_timeout=120, execution_timeout=timedelta(seconds=3)
    )
    started = time.monotonic()
    with pytest.raises(AirflowTaskTimeout, match="execution_timeout is over: workflow"):
        run_task(task)
    assert 2 < time.monotonic() - started < 10


@both
def test_the_shorter_limit_is_the_one_that_is_named(sandbox: JobmonSandbox, deferrable: bool) -> None:
    workflow_id = sandbox.make_workflow_in("R").workflow_id
    # Time enough for a busy server to answer before it is over.
    limits = {"resume_timeout": timedelta(seconds=6), "execution_timeout": timedelta(hours=1)}
    with pytest.raises(AirflowException, match="did not become resumable within"):
        run_task(resume(workflow_id, deferrable=deferrable, **limits))


def test_execution_timeout_counts_from_the_tasks_start(sandbox: JobmonSandbox) -> None:
    workflow_id = sandbox.make_workflow_in("R").workflow_id
    ti: Any = TaskInstance()
    ti.start_date = datetime.now(timezone.utc) - timedelta(seconds=50)
    task = resume(workflow_id, deferrable=True, resume_timeout=500, execution_timeout=timedelta(seconds=100))
    deferred = deferral(task, {"ti": ti})
    assert deferred.trigger.serialize()[1]["deadline"] == pytest.approx(time.time() + 50, abs=20)


def test_execution_timeout_holds_after_the_return(sandbox: JobmonSandbox) -> None:
    workflow = sandbox.make_workflow_in("R")
    task = resume(workflow.workflow_id, deferrable=True, execution_timeout=timedelta(seconds=1000))
    deferred = deferral(task)
    assert deferred.kwargs is not None
    deferred.kwargs["decided"]["execution_deadline"] = time.time() - 1
    move(sandbox, workflow.workflow_run_id, "T")
    event = {"status": "success", "workflow_id": workflow.workflow_id, "message": "resumable"}
    with pytest.raises(AirflowTaskTimeout, match="execution_timeout is over before workflow"):
        come_back(task, deferred, event)
    assert not sandbox.requests(f"/task/{workflow.workflow_id}/set_resume_state")


@both
@pytest.mark.parametrize("execution_timeout", [None, timedelta(seconds=1)])
def test_limits_hold_while_the_server_refuses_connections(
    connection: Callable[..., None], deferrable: bool, execution_timeout: timedelta | None
) -> None:
    connection("http://127.0.0.1:9", extra={"retries_timeout": 300})
    resume_timeout = 120 if execution_timeout else 1
    task = resume(
        7, deferrable=deferrable, resume_timeout=resume_timeout, execution_timeout=execution_timeout
    )
    started = time.monotonic()
    with pytest.raises((AirflowException, AirflowTaskTimeout), match="Connection refused"):
        run_task(task)
    assert time.monotonic() - started < 5


@both
@pytest.mark.parametrize("execution_timeout", [None, timedelta(seconds=1)])
def test_limits_hold_while_the_server_is_silent(
    connection: Callable[..., None], silent: str, deferrable: bool, execution_timeout: timedelta | None
) -> None:
    connection(silent, extra={"retries_timeout": 300})
    resume_timeout = 120 if execution_timeout else 1
    expected: Any = AirflowTaskTimeout if execution_timeout else AirflowException
    task = resume(
        7, deferrable=deferrable, resume_timeout=resume_timeout, execution_timeout=execution_timeout
    )
    started = time.monotonic()
    with pytest.raises(expected, match="no reply within"):
        run_task(task)
    assert time.monotonic() - started < 6


def test_limits_hold_for_the_reset_on_the_return(
    sandbox: JobmonSandbox, connection: Callable[..., None]
) -> None:
    workflow = sandbox.make_workflow_in("R")
    with SwallowingProxy(sandbox.url, lambda method, path: False) as proxy:
        connection(proxy.url, extra={"retries_timeout": 300})
        task = resume(workflow.workflow_id, deferrable=True, resume_timeout=1)
        deferred = deferral(task)
        assert deferred.kwargs is not None
    # The server is gone by the time the task comes back.
    event = {"status": "success", "workflow_id": workflow.workflow_id, "message": "resumable"}
    started = time.monotonic()
    with pytest.raises(AirflowException):
        come_back(task, deferred, event)
    assert time.monotonic() - started < 6


# --- runs that Jobmon does not count as alive ---------------------------------------------------------------


@both
@pytest.mark.parametrize(("statuses", "left"), [("BI", "OR"), ("BIO", "R"), ("", "BIOR")])
def test_a_run_that_takes_no_signal_yet_is_stopped_once_it_runs(
    sandbox: JobmonSandbox, deferrable: bool, statuses: str, left: str
) -> None:
    workflow = sandbox.make_workflow_in("L")
    workflow_id, run = workflow.workflow_id, workflow.workflow_run_id or 0
    move(sandbox, run, statuses)
    sandbox.change("UPDATE task SET status = 'F' WHERE workflow_id = ?", workflow_id)
    before: list[list[str]] = []

    def executor() -> None:
        wait_until(lambda: signals(sandbox, workflow_id) >= 2, 60, "the signal to be sent again")
        before.append(sandbox.task_statuses(workflow_id))
        move(sandbox, run, left)
        wait_until(lambda: sandbox.run_status(run) == "C", 60, "the run to be told to stop")
        move(sandbox, run, "T")

    thread = threading.Thread(target=executor, daemon=True)
    thread.start()
    assert run_task(resume(workflow_id, deferrable=deferrable, resume_timeout=100)).result == workflow_id
    thread.join()
    assert before == [["F"]]  # nothing was reset under the executor
    assert sandbox.run_status(run) == "T"
    assert sandbox.task_statuses(workflow_id) == ["G"]


@both
def test_an_executor_that_is_dead_before_it_began_is_one_clear_line(
    sandbox: JobmonSandbox, deferrable: bool
) -> None:
    workflow = sandbox.make_workflow_in("L")
    move(sandbox, workflow.workflow_run_id, "BIO")
    sandbox.change("UPDATE task SET status = 'F' WHERE workflow_id = ?", workflow.workflow_id)
    with pytest.raises(AirflowException) as caught:
        run_task(resume(workflow.workflow_id, deferrable=deferrable, resume_timeout=1))
    assert "INSTANTIATED or LAUNCHED" in str(caught.value)
    assert 'update_status with {"status": "E"}' in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sandbox.task_statuses(workflow.workflow_id) == ["F"]
    move(sandbox, workflow.workflow_run_id, "E")  # what the line says
    run_task(resume(workflow.workflow_id, deferrable=deferrable))


def test_a_run_that_is_made_between_event_and_return_is_left_alone(sandbox: JobmonSandbox) -> None:
    workflow = sandbox.make_workflow_in("R")
    task = resume(workflow.workflow_id, deferrable=True, increase_resources=False)
    deferred = deferral(task)
    move(sandbox, workflow.workflow_run_id, "T")
    event = asyncio.run(fire(deferred.trigger))
    body = {"user": "other", "jobmon_version": "x", "next_report_increment": 100}
    made = sandbox.post("/api/v2/workflow_run", {"workflow_id": workflow.workflow_id, **body})
    move(sandbox, made["workflow_run_id"], "BIO")
    with pytest.raises(AirflowException, match="is not resumable any more"):
        come_back(task, deferred, event)
    assert sandbox.run_status(made["workflow_run_id"]) == "O"
    assert not sandbox.requests(f"/task/{workflow.workflow_id}/set_resume_state")


# --- resources are raised once ------------------------------------------------------------------------------


def raised(sandbox: JobmonSandbox, workflow_id: int) -> int:
    asked = sandbox.requests(f"/workflow/{workflow_id}/increase_resources")
    return len([request for request in asked if request.method == "POST"])


@both
@pytest.mark.parametrize("lost", ["set_resume_state", "increase_resources"])
def test_a_retry_does_not_raise_the_same_tasks_again(
    sandbox: JobmonSandbox, connection: Callable[..., None], deferrable: bool, lost: str
) -> None:
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    swallowing = [True]
    store = Store()
    task = resume(workflow_id, increase_resources=True, deferrable=deferrable)
    with SwallowingProxy(
        sandbox.url, lambda method, path: method == "POST" and swallowing[0] and lost in path
    ) as proxy:
        connection(proxy.url, extra={"route_prefix": "/api/v3"})
        with pytest.raises(AirflowException):
            task.execute({"ti": TaskInstance(), "task_state_store": store})  # type: ignore[typeddict-item]
        swallowing[0] = False
        task.execute({"ti": TaskInstance(2), "task_state_store": store})  # type: ignore[typeddict-item]
    assert raised(sandbox, workflow_id) == 1
    assert not store
    assert sandbox.task_statuses(workflow_id) == ["G"]


def test_another_run_that_failed_since_is_raised_again(
    sandbox: JobmonSandbox, connection: Callable[..., None]
) -> None:
    connection(extra={"route_prefix": "/api/v3"})
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    store = Store(
        jobmon_resources_raised={
            "workflow_id": workflow_id,
            "server": f"{sandbox.url}/api/v3",
            "status_since": "2001-01-01",
        }
    )
    context: Any = {"ti": TaskInstance(), "task_state_store": store}
    resume(workflow_id, increase_resources=True).execute(context)
    assert raised(sandbox, workflow_id) == 1


def test_without_a_memory_no_retry_raises_them_again(
    sandbox: JobmonSandbox, connection: Callable[..., None]
) -> None:
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    with SwallowingProxy(sandbox.url, lambda method, path: "set_resume_state" in path) as proxy:
        connection(proxy.url, extra={"route_prefix": "/api/v3"})
        with pytest.raises(AirflowFailException, match="resume the workflow with increase_resources=False"):
            run_task(resume(workflow_id, increase_resources=True))


@pytest.mark.parametrize("store", [None, Store()])
def test_what_was_certainly_not_raised_is_raised_by_the_retry(
    sandbox: JobmonSandbox, connection: Callable[..., None], monkeypatch: pytest.MonkeyPatch, store: Any
) -> None:
    connection(extra={"route_prefix": "/api/v3"})
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    task = resume(workflow_id, increase_resources=True)
    context: Any = {"ti": TaskInstance(), "task_state_store": store}
    with monkeypatch.context() as patch:
        nowhere = replace(routes.increase_resources(workflow_id), route="/nowhere")
        patch.setattr(routes, "increase_resources", lambda workflow_id: nowhere)
        with pytest.raises(AirflowException, match="cannot raise the resources") as caught:
            task.execute(context)
        assert "may have been raised" not in str(caught.value)
    assert not store
    task.execute(context)
    assert raised(sandbox, workflow_id) == 1


# --- before anything is changed -----------------------------------------------------------------------------


@both
def test_an_unknown_workflow_is_told_nothing(
    sandbox: JobmonSandbox, logged: Callable[[], str], deferrable: bool
) -> None:
    before = signals(sandbox, NOBODY)
    with pytest.raises(AirflowException, match=f"workflow {NOBODY} does not exist"):
        run_task(resume(NOBODY, deferrable=deferrable))
    assert signals(sandbox, NOBODY) == before
    assert "telling its run to stop" not in logged()


@both
def test_a_reset_without_an_answer_says_what_may_be_done(
    sandbox: JobmonSandbox, connection: Callable[..., None], deferrable: bool
) -> None:
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    with SwallowingProxy(sandbox.url, lambda method, path: "set_resume_state" in path) as proxy:
        connection(proxy.url, extra={"retries_timeout": 300})
        with pytest.raises(AirflowException, match="may still be resetting the tasks of workflow"):
            run_task(resume(workflow_id, deferrable=deferrable))
    assert len(sandbox.requests(f"/task/{workflow_id}/set_resume_state")) == 1  # not sent twice

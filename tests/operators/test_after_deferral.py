"""What was decided before deferring holds after it, whatever templates say then (docs/rules.md, rule 9)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowException, AirflowTaskTimeout, TaskDeferred

from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator
from dev.jobmon_sandbox import JobmonSandbox
from tests.airflow_task import ApiTaskInstance, DatabaseTaskInstance, TaskInstance, resume
from tests.operators.tasks import create, last_run
from tests.stub_server import StubServer

pytestmark = pytest.mark.usefixtures("connection")

COUNTS = {"tasks": 2, "PENDING": 0, "SCHEDULED": 0, "RUNNING": 0, "DONE": 1, "FATAL": 1}


def defer(sandbox: JobmonSandbox, **options: Any) -> tuple[int, int, TaskDeferred]:
    """Defer a task; return its workflow and run, and what Airflow gets to keep."""
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    context: Any = {"ti": TaskInstance()}
    with pytest.raises(TaskDeferred) as deferred:
        create(workflow_id, deferrable=True, **options).execute(context)
    return workflow_id, last_run(sandbox, workflow_id)[0], deferred.value


def comes_back(
    deferred: TaskDeferred, event: Any, workflow_id: Any, **options: Any
) -> tuple[Any, TaskInstance]:
    """Let the task come back as another process runs it, with what its templates are rendered to now."""
    task = create("{{ var.value.workflow }}", deferrable=True, **options)
    task.workflow_id = workflow_id  # what rendering does
    ti = TaskInstance(next_method="execute_complete")
    return resume(task, deferred, event, {"ti": ti}), ti


def event_of(run: int, status: str = "success", code: str | None = "D", **more: Any) -> dict[str, Any]:
    message = f"workflow run {run}: {status}"
    return {"status": status, "workflow_run_id": run, "workflow_run_status": code, "message": message, **more}


@pytest.mark.parametrize("rendered", [None, "", "None", "{{ gone }}", 987_654_321])
def test_a_run_that_is_done_is_a_success_whatever_the_template_says(
    sandbox: JobmonSandbox, rendered: Any
) -> None:
    _workflow_id, run, deferred = defer(sandbox)
    before = len(sandbox.requests("/987654321"))
    result, ti = comes_back(deferred, event_of(run), rendered)
    assert result == run
    assert ti.xcoms["status"] == "D"
    assert ti.xcoms["task_counts"]["total"] == 1
    assert len(sandbox.requests("/987654321")) == before


def test_the_tasks_that_failed_are_those_of_the_runs_own_workflow(sandbox: JobmonSandbox) -> None:
    workflow_id, run, deferred = defer(sandbox)
    other = sandbox.make_workflow_in("D", tasks=3).workflow_id
    with pytest.raises(AirflowException, match=f"resume workflow {workflow_id}"):
        comes_back(deferred, event_of(run, "failed", "E"), other)


def test_a_hand_off_that_was_not_seen_in_time_stops_no_executor(sandbox: JobmonSandbox) -> None:
    """Jobmon was out of reach at the hand-off limit, and an executor had taken the run before that."""
    _workflow_id, run, deferred = defer(sandbox, execution_timeout=timedelta(hours=1))
    for status in "BIOR":
        sandbox.put(f"/api/v2/workflow_run/{run}/update_status", {"status": status})
    with pytest.raises(AirflowException, match=f"{run}: timeout"):
        comes_back(deferred, event_of(run, "timeout", None), None)
    assert sandbox.run_status(run) == "R"


@pytest.mark.parametrize("keeps_kwargs", [True, False])
def test_a_time_out_stops_the_runs_own_workflow(sandbox: JobmonSandbox, keeps_kwargs: bool) -> None:
    workflow_id, run, deferred = defer(sandbox, execution_timeout=timedelta(hours=1))
    other = sandbox.make_workflow_in("R")
    for status in "BIOR":
        sandbox.put(f"/api/v2/workflow_run/{run}/update_status", {"status": status})
    assert deferred.kwargs is not None
    deferred.kwargs["own"]["deadline"] = time.time()
    event = event_of(run, "timeout", "R", workflow_id=workflow_id)
    if not keeps_kwargs:
        deferred.kwargs = {}
    with pytest.raises(AirflowException, match="timeout"):
        comes_back(deferred, event, other.workflow_id)
    assert sandbox.run_status(run) == "C"
    assert sandbox.run_status(other.workflow_run_id or 0) == "R"


def test_cancel_on_kill_is_that_of_the_deferral(sandbox: JobmonSandbox) -> None:
    _workflow_id, run, deferred = defer(sandbox, cancel_on_kill=False)
    for status in "BIOR":
        sandbox.put(f"/api/v2/workflow_run/{run}/update_status", {"status": status})
    with pytest.raises(AirflowException, match="timeout"):
        comes_back(deferred, event_of(run, "timeout", "R"), None, cancel_on_kill=True)
    assert sandbox.run_status(run) == "R"


def test_the_connection_is_that_of_the_deferral(
    sandbox: JobmonSandbox, connection: Callable[..., None], stub: Callable[..., StubServer]
) -> None:
    _workflow_id, run, deferred = defer(sandbox)
    other = stub({})
    connection(other.url, conn_id="jobmon_other")
    with pytest.raises(AirflowException, match="1 × no error was kept"):
        comes_back(deferred, event_of(run, "failed", "E"), None, jobmon_conn_id="jobmon_other")
    assert other.requests == []


@pytest.mark.parametrize("status", ["failed", "timeout", "error", "success"])
def test_nothing_is_sent_to_another_server_behind_the_same_connection(
    sandbox: JobmonSandbox,
    connection: Callable[..., None],
    stub: Callable[..., StubServer],
    logged: Callable[[], str],
    status: str,
) -> None:
    workflow_id, run, deferred = defer(sandbox)
    other = stub({"status": "A"})
    connection(other.url)
    event = event_of(run, status, {"failed": "E", "success": "D"}.get(status))
    if status == "success":
        assert comes_back(deferred, event, workflow_id)[0] == run
    else:
        with pytest.raises(AirflowException, match=f"workflow run {run}: {status}") as caught:
            comes_back(deferred, event, workflow_id)
        assert f"names the server {other.url}" in str(caught.value) + logged()
    assert other.requests == []


def test_a_connection_that_is_gone_does_not_hide_how_the_run_ended(
    sandbox: JobmonSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run, deferred = defer(sandbox)
    monkeypatch.delenv("AIRFLOW_CONN_JOBMON_DEFAULT")
    with pytest.raises(
        AirflowException, match=rf"workflow run {run}: failed\nWhy it failed could not be asked: .*not"
    ):
        comes_back(deferred, event_of(run, "failed", "E"), None)


@pytest.mark.parametrize("event", [None, {}, "done", {"status": "success"}])
def test_an_event_that_tells_of_no_run_is_one_clear_line(event: Any) -> None:
    context: Any = {"ti": TaskInstance()}
    with pytest.raises(AirflowException, match="without an event that tells of a workflow run; clear it"):
        create(7).execute_complete(context, event)


@pytest.mark.parametrize("code", ["E", "A"])
def test_an_older_deferral_ends_with_what_is_known(sandbox: JobmonSandbox, code: str) -> None:
    context: Any = {"ti": TaskInstance()}
    with pytest.raises(AirflowException, match=r"^workflow run 5: failed$"):
        create(7).execute_complete(context, event_of(5, "failed", code))
    context = {"ti": TaskInstance()}
    assert create(7).execute_complete(context, event_of(5)) == 5


def test_an_older_deferral_that_timed_out_says_that_no_executor_is_stopped(
    sandbox: JobmonSandbox, logged: Callable[[], str]
) -> None:
    workflow = sandbox.make_workflow_in("R")
    context: Any = {"ti": TaskInstance()}
    with pytest.raises(AirflowException, match="timeout"):
        create(7).execute_complete(context, event_of(workflow.workflow_run_id or 0, "timeout", "R"))
    assert sandbox.run_status(workflow.workflow_run_id or 0) == "R"
    assert "is not known, so an executor is not told to stop" in logged()


def test_a_newer_version_may_have_kept_more(sandbox: JobmonSandbox) -> None:
    _, run, deferred = defer(sandbox)
    (deferred.kwargs or {})["own"]["a_newer_name"] = 1
    assert comes_back(deferred, event_of(run, more="news"), None)[0] == run


def test_what_airflow_keeps_is_plain_json_without_a_secret(
    sandbox: JobmonSandbox, connection: Callable[..., None]
) -> None:
    connection(login="user", password="pass-5e4f21c0", extra={"headers": {"X-Key": "head-77aa03b9"}})
    workflow_id, run, deferred = defer(sandbox, execution_timeout=timedelta(hours=1))
    kept = json.dumps(deferred.kwargs)
    assert "pass-5e4f21c0" not in kept
    assert "head-77aa03b9" not in kept
    own = json.loads(kept)["own"]
    assert (own["workflow_run_id"], own["workflow_id"]) == (run, workflow_id)
    assert own["server"] == f"{sandbox.url}/api/v2"
    assert deferred.trigger.serialize()[1]["server"] == own["server"]
    assert deferred.trigger.serialize()[1]["startup_timeout"] == 3600


def test_no_time_is_spent_on_the_reasons_once_the_tasks_time_is_over(sandbox: JobmonSandbox) -> None:
    _, run, deferred = defer(sandbox, execution_timeout=timedelta(hours=1))
    (deferred.kwargs or {})["own"]["deadline"] = time.time() - 1
    before = len(sandbox.requests("viz"))
    with pytest.raises(AirflowException, match=rf"^workflow run {run}: failed\nTo go on"):
        comes_back(deferred, event_of(run, "failed", "E"), None)
    assert len(sandbox.requests("viz")) == before


def test_a_time_out_after_the_deferral_stops_the_run(
    sandbox: JobmonSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow 3 counts anew when a task comes back."""
    _workflow_id, run, deferred = defer(sandbox)
    for status in "BIOR":
        sandbox.put(f"/api/v2/workflow_run/{run}/update_status", {"status": status})

    def time_out(*_: object, **__: object) -> None:
        raise AirflowTaskTimeout("Timeout, PID: 5")

    monkeypatch.setattr(TaskInstance, "xcom_push", time_out)
    with pytest.raises(AirflowTaskTimeout):
        comes_back(deferred, event_of(run, "error", None), None)
    assert sandbox.run_status(run) == "C"


# --- templates that cannot be rendered any more -------------------------------------------------------------


class FromServer:
    """What Airflow 3's API server says when it starts a task that comes back."""

    next_method = "execute_complete"


def render(ti: Any, *, mapped: bool) -> CreateWorkflowRunOperator:
    with DAG("templates", schedule=None):
        task = CreateWorkflowRunOperator(task_id="run", workflow_id="{{ var['gone'].deeper }}")
    if mapped:
        context: Any = {"ti": ti, "var": {}}
        task._do_render_template_fields(
            parent=task,
            template_fields=task.template_fields,
            context=context,
            jinja_env=task.get_template_env(),
            seen_oids=set(),
        )
    else:
        task.render_template_fields({"ti": ti, "var": {}})
    return task


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("airflow", [2, 3])
def test_a_template_that_names_what_is_gone_is_no_failure_after_the_deferral(
    airflow: int, mapped: bool
) -> None:
    ti: Any = DatabaseTaskInstance(next_method="execute_complete") if airflow == 2 else ApiTaskInstance()
    if airflow == 3:
        ti._ti_context_from_server = FromServer()
    assert render(ti, mapped=mapped).workflow_id == "{{ var['gone'].deeper }}"


def test_a_template_that_names_what_is_gone_is_a_failure_before_the_deferral() -> None:
    with pytest.raises(Exception, match="gone"):
        render(TaskInstance(start_date=datetime.now(timezone.utc)), mapped=False)


class Subclass(CreateWorkflowRunOperator):
    """What users have written for themselves."""

    def execute_complete(self, context: Any, event: Any) -> int:  # type: ignore[override]
        return -super().execute_complete(context, event)


def test_a_subclass_may_still_have_its_own_execute_complete(sandbox: JobmonSandbox) -> None:
    _, run, deferred = defer(sandbox)
    task = Subclass(task_id="run", workflow_id=7)
    assert resume(task, deferred, event_of(run), {"ti": TaskInstance()}) == -run

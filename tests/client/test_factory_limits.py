"""WorkflowRunFactory keeps to its resume_timeout, and changes nothing under an executor about to begin."""

from __future__ import annotations

import socket
import time

import pytest

from airflow_jobmon_provider.client.exceptions import RouteNotSupported, ServerUnreachable, WorkflowBusy
from airflow_jobmon_provider.client.requester import Requester
from airflow_jobmon_provider.client.workflow_run import WorkflowRunFactory
from dev.jobmon_sandbox import JobmonSandbox


@pytest.mark.parametrize("force_cleanup", [False, True])
def test_resume_timeout_holds_while_the_server_refuses_connections(force_cleanup: bool) -> None:
    factory = WorkflowRunFactory(7, Requester("http://127.0.0.1:9", retries_timeout=300))
    started = time.monotonic()
    with pytest.raises(ServerUnreachable):
        factory.set_workflow_resume(resume_timeout=1, force_cleanup=force_cleanup)
    assert time.monotonic() - started < 4


@pytest.mark.parametrize("force_cleanup", [False, True])
def test_resume_timeout_holds_while_the_server_is_silent(force_cleanup: bool) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        factory = WorkflowRunFactory(7, Requester(f"http://127.0.0.1:{silent.getsockname()[1]}"))
        started = time.monotonic()
        with pytest.raises(ServerUnreachable):
            factory.set_workflow_resume(resume_timeout=1, force_cleanup=force_cleanup)
        assert time.monotonic() - started < 6


@pytest.mark.parametrize("status", ["I", "O"])
def test_nothing_is_changed_under_an_executor_that_is_about_to_begin(
    sandbox: JobmonSandbox, status: str
) -> None:
    requester = Requester(f"{sandbox.url}/api/v3", retries_timeout=0)
    workflow = sandbox.make_workflow_in("L")
    for step in "BIO"[: "BIO".index(status) + 1]:
        path = f"/api/v2/workflow_run/{workflow.workflow_run_id}/update_status"
        sandbox.put(path, {"status": step})
    factory = WorkflowRunFactory(workflow.workflow_id, requester)
    for change in (factory.reset_task_statuses, factory.increase_resources):
        with pytest.raises(WorkflowBusy, match="about to begin"):
            change()
    assert not sandbox.requests(f"/task/{workflow.workflow_id}/set_resume_state")
    assert not sandbox.requests(f"/workflow/{workflow.workflow_id}/increase_resources")


def test_resources_of_a_workflow_that_runs_are_left_alone(sandbox: JobmonSandbox) -> None:
    requester = Requester(f"{sandbox.url}/api/v3", retries_timeout=0)
    workflow = sandbox.make_workflow_in("R")
    with pytest.raises(WorkflowBusy, match="a run of it is alive"):
        WorkflowRunFactory(workflow.workflow_id, requester).increase_resources()
    assert not sandbox.requests(f"/workflow/{workflow.workflow_id}/increase_resources")


def test_a_signal_alone_waits_for_nothing(sandbox: JobmonSandbox) -> None:
    workflow = sandbox.make_workflow_in("R")
    requester = Requester(f"{sandbox.url}/api/v2", retries_timeout=0)
    WorkflowRunFactory(workflow.workflow_id, requester).signal_resume(reset_running_jobs=False)
    assert sandbox.run_status(workflow.workflow_run_id or 0) == "H"


def test_a_forced_clean_up_of_a_workflow_at_rest_signals_nothing(sandbox: JobmonSandbox) -> None:
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    factory = WorkflowRunFactory(workflow_id, Requester(f"{sandbox.url}/api/v3", retries_timeout=0))
    factory.set_workflow_resume(force_cleanup=True)
    assert factory.workflow_is_resumable
    assert not sandbox.requests(f"/workflow/{workflow_id}/set_resume")


def test_resources_of_a_workflow_at_rest_are_raised_where_the_server_can(sandbox: JobmonSandbox) -> None:
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    factory = WorkflowRunFactory(workflow_id, Requester(f"{sandbox.url}/api/v3", retries_timeout=0))
    factory.check_increase_resources()
    assert factory.increase_resources() == 0
    older = WorkflowRunFactory(workflow_id, Requester(f"{sandbox.url}/api/v2", retries_timeout=0))
    with pytest.raises(RouteNotSupported, match="cannot raise the resources"):
        older.check_increase_resources()

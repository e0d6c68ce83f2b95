"""WorkflowRunFactory keeps to its resume_timeout, and changes nothing under an executor about to begin."""

from __future__ import annotations

import socket
import time

import pytest

from airflow_jobmon_provider.client.exceptions import ServerUnreachable, WorkflowBusy
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

"""Jobmon before 3.4 is refused in one sentence by whatever asks it, before anything is changed there.

The servers reply what real ones of 3.2.4 and 3.3.1 did. Both do most of what they are asked and answer as
3.4 does; ``set_resume`` and ``set_resume_state`` answer ``null``, after the change. 3.2.4 has no
``/api_version``; 3.3.1 has, and says ``v2`` as 3.4.8 does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_jobmon_provider.hooks.jobmon import JobmonHook
from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator, ResumeWorkflowOperator
from airflow_jobmon_provider.sensors.jobmon import WorkflowResumableSensor, WorkflowRunSensor
from tests.airflow_task import run_task
from tests.contract.recorded_server import RecordedServer
from tests.contract.recordings import TOO_OLD

WORKFLOWS = {
    "failed": (),
    "alive": ("is_resumable: no", "workflow_details: a refused run"),
    "never run": ("workflow_details: no run",),
    "unknown": ("workflow_details: unknown", "is_resumable: unknown"),
}
"""The cases that tell of a workflow in some state."""

MakeTask = Callable[[], Any]
RUN: dict[str, Any] = {"task_id": "task", "workflow_run_id": 5}
WORKFLOW: dict[str, Any] = {"task_id": "task", "workflow_id": 7}
TASKS: dict[str, MakeTask] = {
    "resume": lambda: ResumeWorkflowOperator(**WORKFLOW),
    "resume, deferred": lambda: ResumeWorkflowOperator(**WORKFLOW, deferrable=True),
    "resume, hot": lambda: ResumeWorkflowOperator(**WORKFLOW, reset_running_jobs=False),
    "resume with a clean-up": lambda: ResumeWorkflowOperator(**WORKFLOW, force_cleanup=True),
    "resume with more resources": lambda: ResumeWorkflowOperator(**WORKFLOW, increase_resources=True),
    "create": lambda: CreateWorkflowRunOperator(**WORKFLOW),
    "create, deferred": lambda: CreateWorkflowRunOperator(**WORKFLOW, deferrable=True),
    "create and not wait": lambda: CreateWorkflowRunOperator(**WORKFLOW, wait_for_completion=False),
    "wait for a workflow": lambda: WorkflowResumableSensor(**WORKFLOW),
    "wait for a workflow, rescheduled": lambda: WorkflowResumableSensor(**WORKFLOW, mode="reschedule"),
    "wait for a workflow, deferred": lambda: WorkflowResumableSensor(**WORKFLOW, deferrable=True),
    "wait for a workflow with a clean-up": lambda: WorkflowResumableSensor(**WORKFLOW, force_cleanup=True),
    "wait for a run": lambda: WorkflowRunSensor(**RUN),
    "wait for a run, rescheduled": lambda: WorkflowRunSensor(**RUN, mode="reschedule"),
    "wait for a run, deferred": lambda: WorkflowRunSensor(**RUN, deferrable=True),
    "keep a run alive": lambda: WorkflowRunSensor(**RUN, keep_alive="until_bound"),
    "keep a run alive, deferred": lambda: WorkflowRunSensor(**RUN, keep_alive="until_done", deferrable=True),
}
"""Everything that a DAG has of this provider."""

Serve = Callable[..., RecordedServer]


@pytest.fixture
def serve(connection: Callable[..., None]) -> Iterator[Serve]:
    """Start an old server and let the connection name it."""
    servers: list[RecordedServer] = []

    def start(version: str, *cases: str, route_prefix: str | None = None) -> RecordedServer:
        server = RecordedServer(version, *cases, prefix=TOO_OLD[version])
        servers.append(server)
        given = TOO_OLD[version] if route_prefix is None else route_prefix
        connection(server.url, extra={"route_prefix": given})
        return server

    yield start
    for server in servers:
        server.close()


def check_refusal(line: str, server: RecordedServer) -> None:
    """Check that a line names the server, what was found and what is needed, and that nothing was changed."""
    assert server.url in line
    assert re.search(r"older than 3\.4|before 3\.4", line)
    assert re.search(r"needs (Jobmon 3\.4 or|a) newer", line)
    assert "\n" not in line
    assert len(line) < 300
    assert {request.method for request in server.requests} == {"GET"}


@pytest.mark.parametrize("make", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("workflow", WORKFLOWS)
@pytest.mark.parametrize("version", TOO_OLD)
def test_a_task_fails_for_good_and_has_changed_nothing(
    version: str, workflow: str, make: MakeTask, serve: Serve
) -> None:
    server = serve(version, *WORKFLOWS[workflow])
    with pytest.raises(AirflowFailException) as caught:
        run_task(make())
    check_refusal(str(caught.value), server)
    assert len(server.requests) <= 3


@pytest.mark.parametrize("make", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("version", TOO_OLD)
def test_below_a_wrong_prefix_too_it_is_told_that_the_server_is_old(
    version: str, make: MakeTask, serve: Serve
) -> None:
    server = serve(version, route_prefix="/api/v3")
    with pytest.raises(AirflowException) as caught:
        run_task(make())
    check_refusal(str(caught.value), server)


@pytest.mark.parametrize("route_prefix", [None, "/api/v3"], ids=["its prefix", "the default prefix"])
@pytest.mark.parametrize("version", TOO_OLD)
def test_the_button_of_the_connection_form_says_it(
    version: str, route_prefix: str | None, serve: Serve
) -> None:
    server = serve(version, route_prefix=route_prefix)
    healthy, line = JobmonHook().test_connection()
    assert not healthy
    check_refusal(line, server)

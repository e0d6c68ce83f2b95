"""The operators as tests make them, and what became of their runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator, ResumeWorkflowOperator
from dev.jobmon_sandbox import JobmonSandbox
from tests.airflow_task import Tries


def resume(workflow_id: Any, **options: Any) -> ResumeWorkflowOperator:
    return ResumeWorkflowOperator(task_id="resume", workflow_id=workflow_id, **options)


def create(workflow_id: Any, **options: Any) -> CreateWorkflowRunOperator:
    """The operator in a hurry: a heartbeat each second that is good for three."""
    hurry = {"workflow_run_heartbeat_interval": 1, "heartbeat_report_by_buffer": 3.0, "poll_interval": 0.5}
    return CreateWorkflowRunOperator(task_id="run", workflow_id=workflow_id, **{**hurry, **options})


def last_run(sandbox: JobmonSandbox, workflow_id: int) -> tuple[int, str]:
    return sandbox.runs(workflow_id)[-1]


def died_after_creating(sandbox: JobmonSandbox, tries: Tries, status: str = "") -> tuple[int, int]:
    """Make a workflow whose task died once it had created a run; an executor then took the run this far."""
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    with pytest.raises(TaskDeferred):
        create(workflow_id, deferrable=True).execute(tries.next())
    run = last_run(sandbox, workflow_id)[0]
    for step in status:
        sandbox.put(f"/api/v2/workflow_run/{run}/update_status", {"status": step})
    return workflow_id, run


@contextlib.contextmanager
def during(act: Callable[[], None]) -> Iterator[None]:
    """Do something in a thread meanwhile; what it raises is raised."""
    errors: list[BaseException] = []

    def go() -> None:
        try:
            act()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=go)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        if errors:
            raise errors[0]

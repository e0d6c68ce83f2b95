"""Runs that jobs of a real Slurm execute, and the Airflow tasks that wait for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeAlias

from airflow.providers.common.compat.sdk import TaskDeferred
from airflow.triggers.base import BaseTrigger

from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator
from dev.jobmon_sandbox import CLUSTER, JobmonSandbox, SandboxWorkflow, wait_until
from tests.airflow_task import Tries, fire, resume, stored

Make: TypeAlias = Callable[..., CreateWorkflowRunOperator]
"""Makes the operator for a workflow, with options."""

PASSWORD = "not-for-slurm"  # noqa: S105  # of the sandbox, which asks for none


def failed(
    jobmon: JobmonSandbox, *, tasks: int = 2, cluster: str = CLUSTER, waits: bool = False
) -> SandboxWorkflow:
    """Make a workflow that has failed and was reset."""
    workflow = jobmon.make_workflow_in("E", tasks=tasks, cluster=cluster, waits=waits)
    jobmon.post(f"/api/v2/task/{workflow.workflow_id}/set_resume_state", {"reset_if_running": True})
    return workflow


class Task:
    """A task that is under way: executed, or deferred and in its trigger."""

    def __init__(self, operator: CreateWorkflowRunOperator) -> None:
        self._operator = operator
        self._context = Tries().next()
        self.xcoms = self._context["ti"].xcoms

    async def run(self) -> Any:
        try:
            return await _in_a_daemon(lambda: self._operator.execute(self._context))
        except TaskDeferred as deferred:
            event = await fire(deferred.trigger)
            return resume(self._operator, deferred, event, self._context)


async def _in_a_daemon(call: Callable[[], Any]) -> Any:
    """Return what a call returns. A test that has failed does not wait for it: it may wait for the test."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return await asyncio.wrap_future(future)


def run_while(operator: CreateWorkflowRunOperator, act: Callable[[], object]) -> Any:
    """Run a task to its end, and do something meanwhile."""

    async def go() -> Any:
        task = asyncio.create_task(Task(operator).run())
        await asyncio.to_thread(act)
        return await task

    return asyncio.run(go())


def deferred(operator: CreateWorkflowRunOperator, tries: Tries | None = None) -> BaseTrigger:
    """Execute a try of a task until it defers, and return its trigger."""
    try:
        operator.execute((tries or Tries()).next())
    except TaskDeferred as defers:
        return stored(defers.trigger)
    raise AssertionError("the task has not deferred")


def newest_run(jobmon: JobmonSandbox, workflow: SandboxWorkflow, status: str) -> int:
    """Wait until the workflow's newest run has a status, and return its id."""
    wait_until(lambda: jobmon.runs(workflow.workflow_id)[-1][1] == status, 60, f"a run in {status}")
    return jobmon.runs(workflow.workflow_id)[-1][0]


def job_number(folder: Path) -> str:
    """Wait for the only job and return its number."""
    handle = wait_until(lambda: next(iter(folder.glob("runs/*/handle")), None), 60, "a job")
    assert handle is not None
    return handle.read_text().strip()

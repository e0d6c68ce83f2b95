"""Jobmon closes a connection after an error of its own, and does not say so: nothing is lost on it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from airflow_jobmon_provider.client.async_requester import AsyncRequester
from airflow_jobmon_provider.client.exceptions import WorkflowBusy, WorkflowRunNotFound
from airflow_jobmon_provider.client.lifecycle import RunStatus
from airflow_jobmon_provider.client.protocol import Call, routes
from airflow_jobmon_provider.client.requester import Requester, ask
from airflow_jobmon_provider.client.settings import Settings
from dev.jobmon_sandbox import JobmonSandbox

NOBODY = 987_654_321
TIMES = 40  # without this rule, every second one is lost


def calls(sandbox: JobmonSandbox) -> list[Call[Any]]:
    """One that may be sent again, and one that may not: the workflow has a run in the way."""
    workflow = sandbox.make_workflow_in("L")
    assert workflow.workflow_run_id is not None
    return [
        routes.log_heartbeat(workflow.workflow_run_id, RunStatus.LINKING, 60),
        routes.create_workflow_run(workflow.workflow_id, "me", 60),
    ]


@pytest.mark.parametrize("kind", [0, 1], ids=["idempotent", "not idempotent"])
def test_the_next_request_is_answered(sandbox: JobmonSandbox, requester: Requester, kind: int) -> None:
    call = calls(sandbox)[kind]
    for _ in range(TIMES):
        with pytest.raises(WorkflowRunNotFound):
            ask(requester, routes.peek_status(NOBODY), tenacious=False)
        with contextlib.suppress(WorkflowBusy):
            ask(requester, call, tenacious=False)


@pytest.mark.parametrize("kind", [0, 1], ids=["idempotent", "not idempotent"])
def test_the_next_request_is_answered_in_an_event_loop(
    sandbox: JobmonSandbox, prefix: str, kind: int
) -> None:
    call = calls(sandbox)[kind]

    async def go() -> None:
        async with AsyncRequester(Settings(sandbox.url + prefix, request_timeout=10)) as requester:
            for _ in range(TIMES):
                with pytest.raises(WorkflowRunNotFound):
                    await requester.ask(routes.peek_status(NOBODY))
                with contextlib.suppress(WorkflowBusy):
                    await requester.ask(call)

    asyncio.run(go())

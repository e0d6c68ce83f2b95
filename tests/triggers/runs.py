"""Triggers that watch runs, and what they say of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from airflow_jobmon_provider.client.protocol import CLIENT_VERSION
from airflow_jobmon_provider.triggers.jobmon import WorkflowRunHeartbeatTrigger
from dev.jobmon_sandbox import JobmonSandbox, SeenRequest
from dev.launcher import BUSY


def beats(sandbox: JobmonSandbox, run: int | None) -> list[SeenRequest]:
    """What this provider said of a run."""
    return [r for r in sandbox.requests(f"/workflow_run/{run}/log_heartbeat") if CLIENT_VERSION in r.query]


async def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + BUSY * 20
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what}"
        await asyncio.sleep(0.02)


def trigger(run: int | None, **options: Any) -> WorkflowRunHeartbeatTrigger:
    """A trigger in a hurry: a heartbeat each second that is good for three."""
    defaults = {"workflow_run_heartbeat_interval": 1, "heartbeat_report_by_buffer": 3.0, "poll_interval": 0.5}
    return WorkflowRunHeartbeatTrigger(run or 0, **{**defaults, **options})

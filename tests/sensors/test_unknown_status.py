"""Sensors of a run in a status that only a newer server knows (issue 9)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from airflow_jobmon_provider.sensors.jobmon import WorkflowRunSensor
from tests.airflow_task import run_task
from tests.stub_server import StubServer

pytestmark = pytest.mark.usefixtures("connection")


@pytest.mark.parametrize(
    "mode", [{"mode": "poke", "poke_interval": 0.05}, {"deferrable": True, "poll_interval": 0.05}]
)
@pytest.mark.parametrize("keep_alive", ["never", "until_done"])
def test_the_run_is_waited_for_and_the_status_is_warned_of_once_by_each_watcher(
    connection: Callable[..., None],
    stub: Callable[..., StubServer],
    logged: Callable[[], str],
    mode: dict[str, Any],
    keep_alive: str,
) -> None:
    server = stub(*[{"status": "X"}] * 3, {"status": "D"})
    connection(server.url)
    run_task(WorkflowRunSensor(task_id="ended", workflow_run_id=5, keep_alive=keep_alive, **mode))
    warnings = [line for line in logged().splitlines() if "UNKNOWN (X)" in line and "warning" in line]
    assert len(warnings) == (2 if "deferrable" in mode else 1)
    assert {request.body["status"] for request in server.requests} == {"G"}

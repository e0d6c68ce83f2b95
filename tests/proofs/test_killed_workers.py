"""A worker that is killed at every step, as in ``tests/operators``, with real executors and real tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dev.jobmon_sandbox import JobmonSandbox
from dev.submit_host import SubmitHost
from tests.operators.killed import CREATED, Deaths, failed_workflow, steps_of

pytestmark = [pytest.mark.timeout(1200), pytest.mark.usefixtures("connection")]


@pytest.mark.parametrize("ssh_conn_id", [None, "submit_host"], ids=["this worker", "submit host"])
def test_one_run_one_job_and_finished_tasks_wherever_a_worker_dies(
    sandbox: JobmonSandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ssh_conn_id: str | None
) -> None:
    with SubmitHost(sandbox.environment()) as host:
        monkeypatch.setenv("AIRFLOW_CONN_SUBMIT_HOST", json.dumps(host.connection))
        deaths = Deaths(sandbox, tmp_path, python=sandbox.python, workflow=lambda: failed_workflow(sandbox))
        place: dict[str, Any] = {"ssh_conn_id": ssh_conn_id, "deferrable": True}
        steps = steps_of(deaths, place)
        assert {"before command 1", "amid command 1", "after command 1", "deferred", CREATED} < set(steps)
        try:
            deaths.happen(steps, place)
        finally:
            deaths.kill_what_is_left()

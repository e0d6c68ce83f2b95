"""Outages with many runs deferred, and clocks that jump, on a real Jobmon."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from airflow_jobmon_provider.triggers.jobmon import WorkflowRunHeartbeatTrigger
from dev.jobmon_sandbox import JobmonSandbox
from tests.airflow_task import fire
from tests.faults.runs import linking_runs
from tests.triggers.runs import beats, until

pytestmark = [pytest.mark.usefixtures("connection"), pytest.mark.timeout(180)]


def trigger(run: int, **options: Any) -> WorkflowRunHeartbeatTrigger:
    return WorkflowRunHeartbeatTrigger(
        run, workflow_run_heartbeat_interval=2, heartbeat_report_by_buffer=60, poll_interval=2, **options
    )


async def test_many_runs_outlive_an_outage_and_those_reaped_meanwhile_end(
    sandbox: JobmonSandbox, logged: Callable[[], str]
) -> None:
    runs = linking_runs(sandbox, 50)
    reaped, alive = runs[:10], runs[10:]
    firing = {run: asyncio.create_task(fire(trigger(run))) for run in runs}
    await until(lambda: all(beats(sandbox, run) for run in runs), "a heartbeat of each")
    sandbox.stop_server()
    try:
        for run in reaped:  # by a reaper that reaches the database
            sandbox.change("UPDATE workflow_run SET status = 'A' WHERE id = ?", run)
        await until(lambda: logged().count("Jobmon is not answering") == 50, "a warning of each")
        assert not [task for task in firing.values() if task.done()]
        down = {run: len(beats(sandbox, run)) for run in runs}
    finally:
        await asyncio.to_thread(sandbox.start_server)
    for run in reaped:
        event = await asyncio.wait_for(firing[run], 30)
        assert (event["status"], event["workflow_run_status"]) == ("failed", "A")
        assert f"workflow run {run} ended ABORTED (A)" in event["message"]
    await until(lambda: all(len(beats(sandbox, run)) > down[run] + 1 for run in alive), "beats of the others")
    assert {sandbox.run_status(run) for run in alive} == {"L"}
    assert logged().count("Jobmon is not answering; will keep trying") == 50
    assert logged().count("Jobmon is answering again after") == 50
    for run in alive:
        sandbox.put(f"/api/v2/workflow_run/{run}/update_status", {"status": "A"})
    assert [(await firing[run])["workflow_run_status"] for run in alive] == ["A"] * 40


@pytest.mark.parametrize("jump", [-3600, 3600])
async def test_a_clock_that_is_set_anew_moves_no_deadline_and_no_beat(
    sandbox: JobmonSandbox, monkeypatch: pytest.MonkeyPatch, jump: int
) -> None:
    (run,) = linking_runs(sandbox, 1)
    started = time.monotonic()
    firing = asyncio.create_task(fire(trigger(run, handoff_deadline=time.time() + 6)))
    await until(lambda: beats(sandbox, run), "a heartbeat")
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + jump)
    event = await firing
    assert event["status"] == "timeout"
    assert 5.5 < time.monotonic() - started < 20
    assert len(beats(sandbox, run)) >= 3
    assert sandbox.run_status(run) == "A"

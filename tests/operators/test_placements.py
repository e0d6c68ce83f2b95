"""A run executed on this worker or a submit host, watched by the worker or in a trigger: the same in all.

The submit host is a real SSH server, whose sessions are real shells; Slurm's jobs are in tests/stack.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator
from dev.jobmon_sandbox import JobmonSandbox, SandboxWorkflow, wait_until
from dev.launcher import free_ports
from dev.submit_host import SubmitHost
from tests.airflow_task import Tries, fire, run_task
from tests.airflow_task import kill as kill_trigger
from tests.execution.conftest import group_members
from tests.operators.placements import (  # noqa: F401  # the tests are collected here, too
    Make,
    begin,
    everywhere,
    failed,
    test_a_cluster_that_jobmon_does_not_know_makes_no_retry,
    test_a_python_that_is_not_there,
    test_a_retry_goes_on_with_the_job,
    test_a_retry_of_a_run_that_has_ended_tells_the_rest_and_leaves_nothing_behind,
    test_a_retry_that_finds_no_job_of_ours_watches_the_run_as_ever,
    test_a_worker_that_defers_leaves_the_output_to_the_trigger,
    test_each_line_is_logged_once_though_a_triggerer_takes_over,
    test_the_run_is_executed_to_its_end,
    test_what_cannot_begin_aborts_the_run_and_says_why_first,
    test_what_was_over_before_the_trigger_began_is_told_all_the_same,
)
from tests.operators.tasks import during, last_run

pytestmark = [pytest.mark.executes, pytest.mark.timeout(240), pytest.mark.usefixtures("connection")]


@pytest.fixture(scope="module")
def host(sandbox: JobmonSandbox) -> Iterator[SubmitHost]:
    with SubmitHost(sandbox.environment()) as host:
        yield host


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the jobs; its name is no friend of shells."""
    return tmp_path / "a b;$(touch pwned)'"


@pytest.fixture
def make(
    sandbox: JobmonSandbox, host: SubmitHost, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Make]:
    """Make the operator for a workflow; what its executors leave behind is killed."""
    monkeypatch.setenv("AIRFLOW_CONN_SUBMIT_HOST", json.dumps(host.connection))

    def operator(workflow: SandboxWorkflow, **options: Any) -> CreateWorkflowRunOperator:
        options = {
            "cluster_name": "multiprocess",
            "jobmon_python": str(sandbox.python),
            "remote_dir": str(folder),
            "workflow_run_heartbeat_interval": 2,
            "heartbeat_report_by_buffer": 20,
            "poll_interval": 1,
            **options,
        }
        return CreateWorkflowRunOperator(task_id="run", workflow_id=workflow.workflow_id, **options)

    yield operator
    for handle in folder.glob("runs/*/handle"):
        kill(int(handle.read_text().split()[0]), group=True)


def kill(pid: int, *, group: bool = False) -> None:
    with contextlib.suppress(ProcessLookupError):
        (os.killpg if group else os.kill)(pid, signal.SIGKILL)


@everywhere
def test_a_killed_executor_is_told_of_first(
    sandbox: JobmonSandbox, make: Make, folder: Path, place: dict[str, Any], logged: Callable[[], str]
) -> None:
    workflow = failed(sandbox, waits=True)
    operator = make(workflow, heartbeat_report_by_buffer=3, **place)

    def kill_it() -> None:
        wait_until(lambda: last_run(sandbox, workflow.workflow_id)[1] == "R", 60, "the run to be RUNNING")
        (handle,) = folder.glob("runs/*/handle")
        kill(int(handle.read_text().split()[0]), group=True)
        wait_until(lambda: "Jobmon's reaper" in logged(), 30, "the task to notice")

        def reaped() -> bool:
            sandbox.reap()
            return last_run(sandbox, workflow.workflow_id)[1] == "E"

        wait_until(reaped, 60, "Jobmon's reaper to end the run")

    with during(kill_it), pytest.raises(AirflowFailException, match=r"^process \d+ on \S+ was killed, or"):
        run_task(operator)


@pytest.mark.environment
@pytest.mark.parametrize("ssh_conn_id", [None, "submit_host"], ids=["this worker", "submit host"])
def test_a_job_whose_task_timed_out_is_ended_unless_it_ends_by_itself(
    sandbox: JobmonSandbox,
    make: Make,
    folder: Path,
    ssh_conn_id: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its run is told to stop, of which a hung executor takes no notice."""
    for patience in ("STOP_PATIENCE", "KILL_PATIENCE"):
        monkeypatch.setattr(f"airflow_jobmon_provider.execution.deferred.{patience}", 1)
    workflow = failed(sandbox, waits=True)
    trigger: Any = begin(make(workflow, ssh_conn_id=ssh_conn_id, deferrable=True), Tries())
    run = last_run(sandbox, workflow.workflow_id)[0]
    wait_until(lambda: sandbox.run_status(run) == "R", 60, "the run to be RUNNING")
    (handle,) = folder.glob("runs/*/handle")
    pid = int(handle.read_text().split()[0])
    os.killpg(pid, signal.SIGSTOP)
    trigger.deadline = time.time() + 3
    assert asyncio.run(fire(trigger))["status"] == "timeout"
    wait_until(lambda: not group_members(pid), 30, "the job to be killed")


def test_a_time_out_is_told_in_time_though_the_submit_host_is_silent(
    sandbox: JobmonSandbox, make: Make, monkeypatch: pytest.MonkeyPatch, logged: Callable[[], str]
) -> None:
    workflow = failed(sandbox, waits=True)
    trigger: Any = begin(make(workflow, ssh_conn_id="submit_host", deferrable=True), Tries())
    run = last_run(sandbox, workflow.workflow_id)[0]
    wait_until(lambda: sandbox.run_status(run) == "R", 60, "the run to be RUNNING")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and says nothing
        away = {**json.loads(os.environ["AIRFLOW_CONN_SUBMIT_HOST"]), "port": silent.getsockname()[1]}
        monkeypatch.setenv("AIRFLOW_CONN_SUBMIT_HOST", json.dumps(away))
        monkeypatch.setattr("airflow_jobmon_provider.triggers.jobmon._END_PATIENCE", 0.5)
        trigger.deadline = time.time() + 2
        assert asyncio.run(fire(trigger))["status"] == "timeout"
    assert "the executor could not be ended: its host did not answer within" in logged()


@pytest.mark.environment
@everywhere
def test_marking_the_task_failed_ends_the_job(
    sandbox: JobmonSandbox, make: Make, folder: Path, place: dict[str, Any]
) -> None:
    """A run that nobody has taken is aborted; its job has nothing to do any more, and ends at once."""
    workflow = failed(sandbox)
    slow = make(workflow, **{**place, "setup_commands": ["sleep 300"], "deferrable": True})
    trigger = begin(slow, Tries())
    (handle,) = folder.glob("runs/*/handle")
    pid = int(handle.read_text().split()[0])
    assert last_run(sandbox, workflow.workflow_id)[1] == "L"
    asyncio.run(kill_trigger(trigger))
    assert last_run(sandbox, workflow.workflow_id)[1] == "A"
    wait_until(lambda: not group_members(pid), 20, "the job to end")


@pytest.mark.parametrize("ssh_conn_id", [None, "submit_host"], ids=["this worker", "submit host"])
def test_a_try_after_a_clear_ends_the_job_of_the_run_that_it_stops(
    sandbox: JobmonSandbox, make: Make, folder: Path, ssh_conn_id: str | None
) -> None:
    """Airflow tells the trigger of a clear from 3.3 on only; a job may wait in its queue for days."""
    workflow, tries = failed(sandbox), Tries()
    slow = {"ssh_conn_id": ssh_conn_id, "setup_commands": ["sleep 300"], "deferrable": True}
    begin(make(workflow, **slow), tries)
    (first,) = folder.glob("runs/*/handle")
    pid, run = int(first.read_text().split()[0]), last_run(sandbox, workflow.workflow_id)[0]
    tries.clear()
    begin(make(workflow, **slow), tries)
    assert sandbox.run_status(run) == "A"
    wait_until(lambda: not group_members(pid), 20, "the job to end")
    (second,) = folder.glob("runs/*/handle")
    assert second != first


@pytest.mark.environment
def test_a_submit_host_that_does_not_answer_costs_nothing_but_two_lines(
    sandbox: JobmonSandbox,
    make: Make,
    host: SubmitHost,
    monkeypatch: pytest.MonkeyPatch,
    logged: Callable[[], str],
) -> None:
    """The task is deferred all the same; the trigger keeps the run alive, and starts the job later."""
    monkeypatch.setattr("airflow_jobmon_provider.operators._watcher._START_PATIENCE", 1.0)
    (port,) = free_ports(1)
    away = {**host.connection, "port": port}
    monkeypatch.setenv("AIRFLOW_CONN_SUBMIT_HOST", json.dumps(away))
    workflow = failed(sandbox)
    workflow.release()
    trigger = begin(make(workflow, ssh_conn_id="submit_host", deferrable=True), Tries())
    run = last_run(sandbox, workflow.workflow_id)[0]
    # The SSH provider before 7 tries three times by itself.
    line = "submit_host does not answer, which changes nothing about the run"
    wait_until(lambda: line in logged(), 30, "the worker to say so")

    async def come_back() -> dict[str, Any]:
        first = asyncio.create_task(fire(trigger))
        says = "submit_host does not answer"  # the worker, and then the trigger
        await asyncio.to_thread(wait_until, lambda: logged().count(says) == 2, 60, "both to say so")
        os.environ["AIRFLOW_CONN_SUBMIT_HOST"] = json.dumps(host.connection)
        return await first

    event = asyncio.run(come_back())
    assert (event["workflow_run_id"], event["workflow_run_status"]) == (run, "D")
    assert logged().count("submit_host answers again, after") == 1


def test_a_submit_host_that_is_never_reached_has_the_hand_off_limit(
    sandbox: JobmonSandbox, make: Make, host: SubmitHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_jobmon_provider.operators._watcher._START_PATIENCE", 1.0)
    (port,) = free_ports(1)
    monkeypatch.setenv("AIRFLOW_CONN_SUBMIT_HOST", json.dumps({**host.connection, "port": port}))
    workflow = failed(sandbox)
    away = make(workflow, ssh_conn_id="submit_host", deferrable=True, handoff_timeout=6)
    event = asyncio.run(fire(begin(away, Tries())))
    assert (event["status"], event["workflow_run_status"]) == ("timeout", "A")
    assert "(handoff_timeout)" in event["message"]

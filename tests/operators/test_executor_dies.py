"""CreateWorkflowRunOperator when its executor ends before its time: only what was its own is ended."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import AirflowException

from airflow_jobmon_provider.execution.process import Execution
from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator
from dev.jobmon_sandbox import JobmonSandbox, SandboxWorkflow, wait_until
from tests.airflow_task import Ended, run_task
from tests.execution.conftest import group_members

pytestmark = [pytest.mark.executes, pytest.mark.timeout(180), pytest.mark.usefixtures("connection")]

# Stands in for an executor: it moves the run by hand and ends as a test says.
EXECUTOR = """#!{python}
import json, os, pathlib, signal, subprocess, sys, time, urllib.request

run = next(each.partition("=")[2] for each in sys.argv if each.startswith("--workflow-run-id="))
lifeline = int(sys.argv[-1])
go = pathlib.Path({go!r})


def move(status):
    url = f"{url}/api/v2/workflow_run/{{run}}/update_status"
    body = json.dumps({{"status": status}}).encode()
    request = urllib.request.Request(url, body, {{"Content-Type": "application/json"}}, method="PUT")
    urllib.request.build_opener(urllib.request.ProxyHandler({{}})).open(request, timeout=60).read()


{program}
"""


class Task:
    """The operator at work in a thread, with such an executor."""

    def __init__(self, sandbox: JobmonSandbox, folder: Path, program: str) -> None:
        self.sandbox = sandbox
        self.go = folder / "go"
        self.workflow: SandboxWorkflow = sandbox.make_workflow_in("E")
        body = {"reset_if_running": True}
        sandbox.post(f"/api/v2/task/{self.workflow.workflow_id}/set_resume_state", body)
        script = folder / "executor"
        script.write_text(
            EXECUTOR.format(python=sys.executable, url=sandbox.url, go=str(self.go), program=program)
        )
        script.chmod(0o755)
        self.operator = CreateWorkflowRunOperator(
            task_id="run",
            workflow_id=self.workflow.workflow_id,
            cluster_name="multiprocess",
            jobmon_python=str(script),
            poll_interval=0.5,
        )
        self.error: BaseException | None = None
        self.ended: Ended | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.ended = run_task(self.operator)
        except BaseException as error:
            self.error = error

    def wait(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()

    @property
    def execution(self) -> Execution | None:
        execution = self.operator._attempt.execution if self.operator._attempt is not None else None
        assert execution is None or isinstance(execution, Execution)
        return execution

    @property
    def run(self) -> int:
        return self.sandbox.runs(self.workflow.workflow_id)[-1][0]

    @property
    def status(self) -> str:
        return self.sandbox.run_status(self.run)

    def move(self, *codes: str) -> None:
        for code in codes:
            self.sandbox.put(f"/api/v2/workflow_run/{self.run}/update_status", {"status": code})


@pytest.fixture
def task(sandbox: JobmonSandbox, tmp_path: Path) -> Iterator[Callable[[str], Task]]:
    started: list[Task] = []

    def make(program: str) -> Task:
        started.append(Task(sandbox, tmp_path, program))
        return started[-1]

    yield make
    for each in started:
        if each.execution is not None:
            for pid in group_members(each.execution._process.pid):
                os.kill(pid, signal.SIGKILL)


NOT_TAKEN = "move('B'); print('executor: workflow run is BOUND (B), not LINKING (L)'); sys.exit(8)"


def test_a_run_that_another_executor_has_is_watched_to_its_end(
    task: Callable[[str], Task], logged: Callable[[], str]
) -> None:
    watched = task(NOT_TAKEN)
    wait_until(lambda: "is not this task's to execute; will keep watching it" in logged(), 60, "exit 8")
    assert watched.status == "B"
    watched.move("I", "O", "R")
    wait_until(lambda: "is RUNNING (R)" in logged(), 30, "the watch to see it run")
    watched.move("D")
    watched.wait()
    assert watched.error is None
    assert watched.ended is not None
    assert watched.ended.result == watched.run


def test_how_our_executor_ended_is_no_reason_for_another_ones_failure(
    task: Callable[[str], Task], logged: Callable[[], str]
) -> None:
    watched = task(NOT_TAKEN)
    wait_until(lambda: "will keep watching it" in logged(), 60, "exit 8")
    watched.move("I", "O", "R", "E")
    watched.wait()
    assert isinstance(watched.error, AirflowException)
    assert "ended ERROR (E)" in str(watched.error)
    assert "the executor" not in str(watched.error)


@pytest.mark.parametrize("status", ["B", "I", "O", "R"])
def test_an_executor_that_dies_before_it_takes_the_run_leaves_another_ones_alone(
    task: Callable[[str], Task], logged: Callable[[], str], status: str
) -> None:
    path = "BIOR"[: "BIOR".index(status) + 1]
    watched = task(f"[move(status) for status in {path!r}]; os.kill(os.getpid(), signal.SIGKILL)")
    wait_until(lambda: "another one has workflow run" in logged(), 60, "its death")
    assert watched.status == status
    watched.move(*"BIOR", "D")
    watched.wait()
    assert watched.error is None


@pytest.mark.parametrize("status", ["B", "I", "O"])
def test_an_executor_that_dies_after_it_has_taken_the_run_has_it_ended(
    task: Callable[[str], Task], status: str
) -> None:
    path = "BIO"[: "BIO".index(status) + 1]
    watched = task(
        f"os.write(lifeline, b'T'); [move(status) for status in {path!r}];"
        " os.kill(os.getpid(), signal.SIGKILL)"
    )
    watched.wait()
    assert watched.status == "E"
    assert "ended ERROR (E)" in str(watched.error)
    assert "the executor was killed by SIGKILL" in str(watched.error)


def test_an_executor_that_dies_before_anything_has_its_run_aborted(task: Callable[[str], Task]) -> None:
    watched = task("sys.exit(6)")
    watched.wait()
    assert watched.status == "A"
    assert "the executor ended with exit code 6; it has written nothing" in str(watched.error)


def test_an_outage_at_the_executors_death_is_outlived_and_nothing_goes_on_meanwhile(
    sandbox: JobmonSandbox,
    task: Callable[[str], Task],
    logged: Callable[[], str],
    connection: Callable[..., None],
) -> None:
    connection(extra={"request_timeout": 1})
    watched = task(
        "os.write(lifeline, b'T'); move('B')\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "print('child', child.pid, flush=True)\n"
        "while not go.exists(): time.sleep(0.05)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    wait_until(lambda: "child " in logged(), 60, "the executor to have the run")
    execution = watched.execution
    assert execution is not None
    sandbox.pause_server()
    try:
        watched.go.touch()
        wait_until(lambda: not group_members(execution._process.pid), 30, "what it has started to end")
        wait_until(lambda: "is not answering; will keep trying" in logged(), 30, "the outage")
    finally:
        sandbox.resume_server()
    watched.wait()
    assert watched.status == "E"
    assert "ended ERROR (E)" in str(watched.error)

"""CreateWorkflowRunOperator that executes the run itself, with a real Jobmon client on its real cluster."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, AirflowTaskTimeout

from airflow_jobmon_provider.execution.process import Execution
from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator
from dev.jobmon_sandbox import JobmonSandbox, SandboxWorkflow, wait_until
from tests.airflow_task import Ended, TaskInstance, run_task
from tests.execution.conftest import group_members
from tests.operators.tasks import last_run

pytestmark = [pytest.mark.executes, pytest.mark.timeout(180), pytest.mark.usefixtures("connection")]


@pytest.fixture
def failed(sandbox: JobmonSandbox) -> Callable[..., SandboxWorkflow]:
    """Make a workflow whose run has ended in error, and whose tasks are reset, but not released."""

    def make(*, tasks: int = 2, waits: bool = False) -> SandboxWorkflow:
        workflow = sandbox.make_workflow_in("E", tasks=tasks, waits=waits)
        body = {"reset_if_running": True}
        sandbox.post(f"/api/v2/task/{workflow.workflow_id}/set_resume_state", body)
        return workflow

    return make


@pytest.fixture
def execute(
    sandbox: JobmonSandbox, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., CreateWorkflowRunOperator]]:
    """Make the operator for a workflow; what its executor leaves behind is killed."""
    monkeypatch.setenv("JOBMON__HEARTBEAT__TASK_INSTANCE_INTERVAL", "5")  # by which tasks learn of their end
    made: list[CreateWorkflowRunOperator] = []

    def make(workflow: SandboxWorkflow, **options: Any) -> CreateWorkflowRunOperator:
        options = {
            "cluster_name": "multiprocess",
            "jobmon_python": str(sandbox.python),
            "workflow_run_heartbeat_interval": sandbox.heartbeat_interval,
            "heartbeat_report_by_buffer": sandbox.report_by_buffer,
            "poll_interval": 1,
            **options,
        }
        made.append(CreateWorkflowRunOperator(task_id="run", workflow_id=workflow.workflow_id, **options))
        return made[-1]

    yield make
    for operator in made:
        if operator._attempt is not None and operator._attempt.execution is not None:
            for pid in group_members(executor_pid(operator)):
                os.kill(pid, signal.SIGKILL)


class Background:
    """A task that runs in a thread."""

    def __init__(self, operator: CreateWorkflowRunOperator) -> None:
        self.error: BaseException | None = None
        self.ended: Ended | None = None
        self.ti = TaskInstance()
        self._operator = operator
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.ended = run_task(self._operator, self.ti)
        except BaseException as error:
            self.error = error

    def wait(self, timeout: float = 90) -> None:
        self._thread.join(timeout)
        assert not self._thread.is_alive()


def executor_pid(operator: CreateWorkflowRunOperator) -> int:
    assert operator._attempt is not None
    assert isinstance(operator._attempt.execution, Execution)
    return operator._attempt.execution._process.pid


def wait_until_running(sandbox: JobmonSandbox, workflow: SandboxWorkflow) -> int:
    """Return the id of the new run once its tasks are being executed."""
    wait_until(lambda: last_run(sandbox, workflow.workflow_id)[1] == "R", 60, "the run to be RUNNING")
    wait_until(lambda: "R" in sandbox.task_statuses(workflow.workflow_id), 60, "a task to run")
    return last_run(sandbox, workflow.workflow_id)[0]


@pytest.mark.environment
def test_the_worker_executes_the_run(
    sandbox: JobmonSandbox,
    failed: Callable[..., SandboxWorkflow],
    execute: Callable[..., CreateWorkflowRunOperator],
    logged: Callable[[], str],
) -> None:
    workflow = failed()
    workflow.release()
    operator = execute(workflow)
    ended = run_task(operator)
    run, status = last_run(sandbox, workflow.workflow_id)
    assert (ended.result, status) == (run, "D")
    assert sandbox.workflow_status(workflow.workflow_id) == "D"
    assert ended.xcoms["status"] == "D"
    assert ended.xcoms["task_counts"]["done"] == 2
    log = logged()
    assert f"executor: executing workflow run {run}" in log
    assert "ended DONE (D): 2 of 2 tasks done, 0 failed" in log
    wait_until(
        lambda: not group_members(executor_pid(operator)), 10, "the executor and its distributor to end"
    )


def test_the_connection_names_the_python(
    sandbox: JobmonSandbox,
    failed: Callable[..., SandboxWorkflow],
    execute: Callable[..., CreateWorkflowRunOperator],
    connection: Callable[..., None],
) -> None:
    connection(extra={"jobmon_python": str(sandbox.python)}, login="user", password="pass-5e4f21c0")
    workflow = failed(tasks=1)
    workflow.release()
    run_task(execute(workflow, jobmon_python=None))
    assert last_run(sandbox, workflow.workflow_id)[1] == "D"


def test_tasks_that_fail_are_named(
    sandbox: JobmonSandbox,
    failed: Callable[..., SandboxWorkflow],
    execute: Callable[..., CreateWorkflowRunOperator],
) -> None:
    workflow = failed(tasks=1)
    with pytest.raises(AirflowException, match=r"ended ERROR \(E\)") as caught:
        run_task(execute(workflow))
    assert "ended ERROR (E): 1 of 1 task failed, 0 done" in str(caught.value)
    assert "task-0" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"cluster_name": "nowhere"},
            "cluster 'nowhere' is unknown to Jobmon; it knows multiprocess, sequential"
            " (the executor's exit code: 4)",
        ),
        ({"jobmon_python": sys.executable}, f"{sys.executable} has no Jobmon client: "),
    ],
    ids=["unknown cluster", "no client"],
)
def test_what_cannot_be_executed_is_aborted(
    sandbox: JobmonSandbox,
    failed: Callable[..., SandboxWorkflow],
    execute: Callable[..., CreateWorkflowRunOperator],
    options: dict[str, Any],
    says: str,
) -> None:
    workflow = failed()
    started = time.monotonic()
    with pytest.raises(AirflowException) as caught:
        run_task(execute(workflow, **options))
    message = str(caught.value)
    assert "ended ABORTED (A)" in message
    assert message.startswith(says)  # the cause first
    # No retry finds a cluster that Jobmon does not know; another worker may have the client.
    assert isinstance(caught.value, AirflowFailException) == ("cluster_name" in options)
    assert "\n" not in message
    assert last_run(sandbox, workflow.workflow_id)[1] == "A"
    assert time.monotonic() - started < 60


def test_a_distributor_that_dies_at_start_aborts_the_run(
    sandbox: JobmonSandbox,
    failed: Callable[..., SandboxWorkflow],
    execute: Callable[..., CreateWorkflowRunOperator],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JOBMON__HEARTBEAT__TASK_INSTANCE_INTERVAL", "often")  # only the distributor reads it
    workflow = failed()
    with pytest.raises(
        AirflowException,
        match=r"Jobmon's distributor did not start: .*often.* \(the executor's exit code: 5\)",
    ):
        run_task(execute(workflow))
    assert last_run(sandbox, workflow.workflow_id)[1] == "A"


@pytest.mark.environment
@pytest.mark.parametrize(
    ("options", "extra", "says"),
    [
        ({"jobmon_python": "/no/such/python"}, {}, "is not an executable file on this worker"),
        ({}, {"headers": {"X-Gateway": "head-77aa03b9"}}, "cannot send the connection's X-Gateway"),
    ],
    ids=["no python", "headers"],
)
def test_what_cannot_work_is_refused_before_there_is_a_run(
    sandbox: JobmonSandbox,
    failed: Callable[..., SandboxWorkflow],
    execute: Callable[..., CreateWorkflowRunOperator],
    connection: Callable[..., None],
    options: dict[str, Any],
    extra: dict[str, Any],
    says: str,
) -> None:
    connection(extra=extra)
    workflow = failed()
    with pytest.raises(AirflowException, match=says):
        run_task(execute(workflow, **options))
    assert len(sandbox.runs(workflow.workflow_id)) == 1


@pytest.mark.environment
def test_executing_without_waiting_is_refused() -> None:
    with pytest.raises(ValueError, match="cluster_name needs wait_for_completion=True"):
        CreateWorkflowRunOperator(
            task_id="run", workflow_id=1, cluster_name="slurm", wait_for_completion=False
        )


def test_a_killed_executor_is_left_to_the_reaper(
    sandbox: JobmonSandbox,
    failed: Callable[..., SandboxWorkflow],
    execute: Callable[..., CreateWorkflowRunOperator],
    logged: Callable[[], str],
) -> None:
    workflow = failed(waits=True)
    # an opt-out of the rule that only an executor beats: not for an executor that is known to be dead
    operator = execute(workflow, keep_alive="until_done")
    task = Background(operator)
    run = wait_until_running(sandbox, workflow)
    os.kill(executor_pid(operator), signal.SIGKILL)
    killed_at = time.time()
    wait_until(lambda: "Jobmon's reaper" in logged(), 30, "the operator to notice")
    window = sandbox.heartbeat_interval * sandbox.report_by_buffer

    def reaped() -> bool:
        sandbox.reap()
        return sandbox.run_status(run) == "E"

    wait_until(reaped, window + 20, "Jobmon's reaper to end the run")
    task.wait()
    assert isinstance(task.error, AirflowException)
    assert "the executor was killed by SIGKILL" in str(task.error)
    beats = [
        request
        for request in sandbox.requests(f"/workflow_run/{run}/log_heartbeat")
        if request.time > killed_at + 3 and request.body["status"] != "G"
    ]
    assert beats == []


@pytest.mark.environment
def test_cancelling_stops_run_tasks_and_executor(
    sandbox: JobmonSandbox,
    failed: Callable[..., SandboxWorkflow],
    execute: Callable[..., CreateWorkflowRunOperator],
) -> None:
    workflow = failed(waits=True)
    operator = execute(workflow)
    task = Background(operator)
    run = wait_until_running(sandbox, workflow)
    task.ti.in_airflow = {-1: "failed"}
    operator.on_kill()
    assert sandbox.run_status(run) == "T"
    task.wait()
    assert "ended TERMINATED (T)" in str(task.error)
    wait_until(
        lambda: not group_members(executor_pid(operator)), 10, "the executor and its distributor to end"
    )
    assert not running_tasks(workflow)


def running_tasks(workflow: SandboxWorkflow) -> list[str]:
    """Return the command lines of processes that wait for the workflow's marker."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(file.read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return [line for line in lines if f"test -e {workflow.marker}" in line]


def test_cancelling_can_leave_the_run_alone(
    sandbox: JobmonSandbox,
    failed: Callable[..., SandboxWorkflow],
    execute: Callable[..., CreateWorkflowRunOperator],
) -> None:
    workflow = failed(waits=True)
    operator = execute(workflow, cancel_on_kill=False)
    task = Background(operator)
    run = wait_until_running(sandbox, workflow)
    task.ti.in_airflow = {-1: "failed"}
    operator.on_kill()
    assert sandbox.run_status(run) == "R"
    workflow.release()
    wait_until(lambda: sandbox.run_status(run) == "D", 60, "the executor to finish")
    task.wait()


@pytest.mark.environment
def test_a_time_out_stops_the_run(
    sandbox: JobmonSandbox,
    failed: Callable[..., SandboxWorkflow],
    execute: Callable[..., CreateWorkflowRunOperator],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workflow = failed(waits=True)
    operator = execute(workflow)

    def time_out(*_: object) -> None:
        raise AirflowTaskTimeout("too long")

    # as Airflow does: an alarm whose handler raises, wherever the task is just then
    before = signal.signal(signal.SIGALRM, time_out)

    def alarm() -> None:
        wait_until_running(sandbox, workflow)
        os.kill(os.getpid(), signal.SIGALRM)

    try:
        thread = threading.Thread(target=alarm)
        thread.start()
        with pytest.raises(AirflowTaskTimeout):
            run_task(operator)
        thread.join()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert last_run(sandbox, workflow.workflow_id)[1] == "T"
    wait_until(
        lambda: not group_members(executor_pid(operator)), 10, "the executor and its distributor to end"
    )


@pytest.mark.parametrize(("state", "cancel"), [("failed", True), ("failed", False), ("running", True)])
def test_an_executor_outlives_an_outage_in_which_its_task_is_told_to_end(
    sandbox: JobmonSandbox,
    failed: Callable[..., SandboxWorkflow],
    execute: Callable[..., CreateWorkflowRunOperator],
    connection: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    cancel: bool,
) -> None:
    monkeypatch.setattr("airflow_jobmon_provider.operators._attempt.ON_KILL_TIMEOUT", 0.5)
    connection(extra={"request_timeout": 0.5})
    workflow = failed(tasks=1, waits=True)
    operator = execute(workflow, cancel_on_kill=cancel)
    task = Background(operator)
    run = wait_until_running(sandbox, workflow)
    task.ti.in_airflow = {-1: state}
    sandbox.pause_server()
    try:
        operator.on_kill()
    finally:
        sandbox.resume_server()
    assert sandbox.run_status(run) == "R"
    assert group_members(executor_pid(operator))
    workflow.release()
    wait_until(lambda: sandbox.run_status(run) == "D", 60, "the executor to finish")
    task.wait()

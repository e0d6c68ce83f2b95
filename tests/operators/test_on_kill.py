"""A task's process is told to end: by a user, a drained worker or a limit; and Airflow is asked which."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from airflow.exceptions import AirflowTaskTerminated
from airflow.providers.common.compat.sdk import AirflowException, AirflowTaskTimeout, TaskDeferred

from airflow_jobmon_provider.operators._watcher import Watcher
from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator
from airflow_jobmon_provider.task import state as task_state
from dev.jobmon_sandbox import JobmonSandbox, wait_until
from tests.airflow_2 import task_instance_in_database
from tests.airflow_task import ApiTaskInstance, DatabaseTaskInstance, TaskInstance, Tries, run_task
from tests.operators.tasks import create, last_run
from tests.running_airflow import AIRFLOW_2
from tests.stub_server import Reply, StubServer

pytestmark = pytest.mark.usefixtures("connection")

DETAILS = [{"wf_status": "F", "wf_name": "w", "wf_created_date": "2026-11-25T01:02:03"}]

ENDED = ["failed", "skipped", "removed", "upstream_failed", "restarting"]
GOES_ON = ["success", "running", "queued", "scheduled", "up_for_retry", "deferred", None]


def move_run(sandbox: JobmonSandbox, run: int, statuses: str) -> None:
    for status in statuses:
        sandbox.put(f"/api/v2/workflow_run/{run}/update_status", {"status": status})


def killed(sandbox: JobmonSandbox, ti: Any, path: str = "BIOR", **options: Any) -> str:
    """Let on_kill be called for a task whose run an executor has brought this far; return its status then."""
    task = create(sandbox.make_workflow_in("E").workflow_id, wait_for_completion=False, **options)
    run: int = run_task(task, ti).result
    move_run(sandbox, run, path)
    task.on_kill()
    return sandbox.run_status(run)


# --- what Airflow says --------------------------------------------------------------------------------------

Make = Callable[..., Any]


def of_airflow_3(states: dict[int, str | None], map_index: int = -1) -> ApiTaskInstance:
    return ApiTaskInstance(map_index=map_index, in_airflow=states)


def of_airflow_2(states: dict[int, str | None], map_index: int = -1) -> Any:
    """The real one where Airflow 2 runs the tests."""
    if AIRFLOW_2:
        return task_instance_in_database(states, map_index)
    return DatabaseTaskInstance(map_index=map_index, in_airflow=states)


kinds = pytest.mark.parametrize("make", [of_airflow_3, of_airflow_2])


@kinds
@pytest.mark.parametrize("state", ENDED)
def test_a_run_is_stopped_if_the_task_is_over_or_was_ended(
    sandbox: JobmonSandbox, state: str, make: Make
) -> None:
    assert killed(sandbox, make({-1: state})) == "C"


@kinds
@pytest.mark.parametrize("path", ["", "BIOR"])
@pytest.mark.parametrize("state", GOES_ON)
def test_a_run_is_let_go_if_the_task_goes_on_or_counts_as_done(
    sandbox: JobmonSandbox, state: str | None, path: str, make: Make
) -> None:
    expected = (path or "L")[-1]
    assert killed(sandbox, make({-1: state}), path) == expected


@kinds
@pytest.mark.parametrize(("own", "others", "left"), [("running", "failed", "R"), ("failed", "running", "C")])
def test_a_mapped_task_is_ended_by_its_own_state(
    sandbox: JobmonSandbox, own: str, others: str, left: str, make: Make
) -> None:
    assert killed(sandbox, make({2: others, 3: own, 30: others}, 3)) == left


@kinds
def test_a_task_instance_that_was_deleted_is_over(sandbox: JobmonSandbox, make: Make) -> None:
    assert killed(sandbox, make({})) == "C"


def fails() -> str:
    raise RuntimeError("API server error")


def test_a_run_is_let_go_if_airflow_does_not_tell(
    sandbox: JobmonSandbox, monkeypatch: pytest.MonkeyPatch, logged: Callable[[], str]
) -> None:
    assert killed(sandbox, TaskInstance(in_airflow=fails)) == "R"
    silence = threading.Event()
    monkeypatch.setattr(task_state.state_of, "__defaults__", (0.2,))

    def is_silent() -> str:
        silence.wait(60)
        return "failed"

    try:
        assert killed(sandbox, TaskInstance(in_airflow=is_silent)) == "R"
    finally:
        silence.set()
    assert "is let go: a retry goes on with it" in logged()


def test_cancel_on_kill_false_leaves_the_run_alone_whoever_ended_the_task(sandbox: JobmonSandbox) -> None:
    ti = TaskInstance(in_airflow={-1: "failed"})
    assert killed(sandbox, ti, cancel_on_kill=False) == "R"
    assert killed(sandbox, ti, "", cancel_on_kill=False) == "A"


def test_a_connection_that_names_another_server_by_now_gets_no_signal(
    sandbox: JobmonSandbox,
    connection: Callable[..., None],
    stub: Callable[..., StubServer],
    logged: Callable[[], str],
) -> None:
    task = create(sandbox.make_workflow_in("E").workflow_id, wait_for_completion=False)
    run_task(task, TaskInstance(in_airflow={-1: "failed"}))
    other = stub({})
    connection(other.url)
    task.on_kill()
    assert other.requests == []
    assert "could not be stopped: connection 'jobmon_default' now names" in logged()


# --- signals, as Airflow sends them -------------------------------------------------------------------------


@pytest.fixture
def airflow_3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[CreateWorkflowRunOperator], None]]:
    """Handle SIGTERM as Airflow 3's task runner does: call on_kill, and go on."""
    before = signal.getsignal(signal.SIGTERM)

    def install(task: CreateWorkflowRunOperator) -> None:
        signal.signal(signal.SIGTERM, lambda *_: task.on_kill())

    yield install
    signal.signal(signal.SIGTERM, before)


def terminate_when_running(sandbox: JobmonSandbox, workflow_id: int) -> threading.Thread:
    """Take the next run to RUNNING, and then send this process SIGTERM."""

    def play() -> None:
        before = len(sandbox.runs(workflow_id))
        wait_until(lambda: len(sandbox.runs(workflow_id)) > before, 20, "the new run")
        run = last_run(sandbox, workflow_id)[0]
        wait_until(lambda: sandbox.requests(f"/workflow_run/{run}/log_heartbeat"), 20, "the watch")
        move_run(sandbox, run, "BIOR")
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=play)
    thread.start()
    return thread


def test_a_drained_worker_ends_the_try_and_a_retry_goes_on_with_the_run(
    sandbox: JobmonSandbox, airflow_3: Callable[[CreateWorkflowRunOperator], None]
) -> None:
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    tries = Tries()
    task = create(workflow_id)
    airflow_3(task)
    terminating = terminate_when_running(sandbox, workflow_id)
    with pytest.raises(AirflowException, match=r"workflow run \d+ goes on: a retry watches it"):
        task.execute(tries.next())
    terminating.join()
    run, status = last_run(sandbox, workflow_id)
    assert status == "R"
    task.on_kill()  # what comes after it changes nothing any more
    with pytest.raises(TaskDeferred) as deferred:
        create(workflow_id, deferrable=True).execute(tries.next())
    assert deferred.value.trigger.workflow_run_id == run
    assert sandbox.run_status(run) == "R"


def test_a_user_who_ends_the_task_ends_the_run_while_it_is_waited_for(
    sandbox: JobmonSandbox, airflow_3: Callable[[CreateWorkflowRunOperator], None]
) -> None:
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    task = create(workflow_id)
    airflow_3(task)
    sandbox.start_reaper(0.3)
    terminating = terminate_when_running(sandbox, workflow_id)
    context: Any = {"ti": TaskInstance(in_airflow={-1: "failed"})}

    def executor() -> None:
        terminating.join()
        wait_until(lambda: last_run(sandbox, workflow_id)[1] == "C", 20, "the signal")
        move_run(sandbox, last_run(sandbox, workflow_id)[0], "T")

    playing = threading.Thread(target=executor)
    playing.start()
    try:
        with pytest.raises(AirflowException, match=r"ended TERMINATED \(T\)"):
            task.execute(context)
    finally:
        sandbox.stop_reaper()
        playing.join()


class TalksWithAirflow(ApiTaskInstance):
    """Is told to end while a request to Airflow is under way, which no other request may come between."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.is_talking = False

    def xcom_push(self, key: str, value: Any) -> None:
        self.is_talking = True
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)  # the handler runs at the latest here
        super().xcom_push(key, value)
        self.is_talking = False

    def get_task_states(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        assert not self.is_talking
        return super().get_task_states(*args, **kwargs)


@pytest.mark.parametrize("options", [{}, {"deferrable": True}, {"wait_for_completion": False}])
@pytest.mark.parametrize(("state", "left"), [("running", "L"), ("failed", "A")])
def test_a_kill_amid_a_request_to_airflow_is_heeded_after_it(
    sandbox: JobmonSandbox,
    airflow_3: Callable[[CreateWorkflowRunOperator], None],
    options: dict[str, Any],
    state: str,
    left: str,
) -> None:
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    task = create(workflow_id, **options)
    airflow_3(task)
    ti = TalksWithAirflow(in_airflow={-1: state})
    try:
        run_task(task, ti)
    except AirflowException as error:
        assert "a retry watches it" in str(error) or "ABORTED" in str(error)
    assert last_run(sandbox, workflow_id)[1] == left
    assert ti.xcoms["workflow_run_id"] == last_run(sandbox, workflow_id)[0]


def test_a_kill_while_the_run_is_being_created_ends_the_wait(
    sandbox: JobmonSandbox, airflow_3: Callable[[CreateWorkflowRunOperator], None]
) -> None:
    workflow = sandbox.make_workflow_in("L")
    task = create(workflow.workflow_id, create_timeout=60)
    airflow_3(task)
    route = "/workflow_run"

    def kill() -> None:
        wait_until(lambda: len(mine()) > 1, 20, "a second try to create it")
        os.kill(os.getpid(), signal.SIGTERM)

    def mine() -> list[Any]:
        return [
            r
            for r in sandbox.requests(route)
            if r.method == "POST" and r.path.endswith(route)
            # Another test's client may have hung up before its body had arrived.
            if isinstance(r.body, dict) and r.body["workflow_id"] == workflow.workflow_id
        ]

    killing = threading.Thread(target=kill)
    killing.start()
    started = time.monotonic()
    with pytest.raises(AirflowException, match="told to end before it had a workflow run to wait for"):
        task.execute({"ti": TaskInstance(try_number=2)})  # type: ignore[typeddict-item]
    killing.join()
    assert time.monotonic() - started < 50
    assert sandbox.run_status(workflow.workflow_run_id or 0) == "L"


@pytest.mark.parametrize(("state", "left"), [("running", "R"), ("failed", "C")])
def test_airflow_2_ends_the_task_by_an_exception_after_on_kill(
    sandbox: JobmonSandbox, state: str, left: str
) -> None:
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    task = create(workflow_id)
    before = signal.getsignal(signal.SIGTERM)

    def handle(*_: object) -> None:
        task.on_kill()
        raise AirflowTaskTerminated("Task received SIGTERM signal")

    signal.signal(signal.SIGTERM, handle)
    terminating = terminate_when_running(sandbox, workflow_id)
    try:
        with pytest.raises((AirflowTaskTerminated, AirflowException)):
            run_task(task, DatabaseTaskInstance(in_airflow={-1: state}))
    finally:
        signal.signal(signal.SIGTERM, before)
        terminating.join()
    assert last_run(sandbox, workflow_id)[1] == left


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), AirflowTaskTerminated("terminated")])
@pytest.mark.parametrize(("state", "left"), [("running", "R"), ("failed", "C"), ("restarting", "C")])
def test_a_termination_without_on_kill_follows_the_same_rule(
    sandbox: JobmonSandbox, monkeypatch: pytest.MonkeyPatch, error: BaseException, state: str, left: str
) -> None:
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    task = create(workflow_id)

    def terminate(*_: object, **__: object) -> None:
        move_run(sandbox, last_run(sandbox, workflow_id)[0], "BIOR")
        raise error

    monkeypatch.setattr(Watcher, "_watch", terminate)
    with pytest.raises(type(error)):
        run_task(task, TaskInstance(in_airflow={-1: state}))
    assert last_run(sandbox, workflow_id)[1] == left


@pytest.mark.parametrize(("cancel", "left"), [(True, "C"), (False, "R")])
def test_a_time_out_is_the_users_limit_though_airflow_says_running(
    sandbox: JobmonSandbox, monkeypatch: pytest.MonkeyPatch, cancel: bool, left: str
) -> None:
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    task = create(workflow_id, cancel_on_kill=cancel)

    def time_out(*_: object, **__: object) -> None:
        move_run(sandbox, last_run(sandbox, workflow_id)[0], "BIOR")
        raise AirflowTaskTimeout("Timeout, PID: 5")

    monkeypatch.setattr(Watcher, "_watch", time_out)
    with pytest.raises(AirflowTaskTimeout):
        run_task(task)
    task.on_kill()  # as Airflow does then
    assert last_run(sandbox, workflow_id)[1] == left


# --- our own executor ---------------------------------------------------------------------------------------


class Executor:
    """What becomes of the executor's process."""

    def __init__(self) -> None:
        self.fate: list[str] = []

    def let_go(self) -> None:
        self.fate.append("let go")

    def stop(self, patience: float = 0.0) -> None:
        self.fate.append(f"stopped after {patience:g} s")


@pytest.mark.parametrize(
    ("reply", "state", "cancel", "fate"),
    [
        (Reply(503, b"down"), "failed", True, "let go"),
        (Reply(503, b"down"), "failed", False, "let go"),
        (Reply(401, b"who?"), "failed", True, "let go"),
        ({"status": "R"}, "failed", False, "let go"),
        ({"status": "C"}, "failed", True, "stopped after 120 s"),
        ({"status": "A"}, "failed", True, "stopped after 0 s"),
        ({"status": "A"}, "failed", False, "stopped after 0 s"),
        ({"status": "D"}, "failed", False, "stopped after 30 s"),
        ({"status": "A"}, "running", True, "let go"),
    ],
)
def test_only_a_status_that_justifies_it_ends_the_executor(
    connection: Callable[..., None],
    stub: Callable[..., StubServer],
    monkeypatch: pytest.MonkeyPatch,
    reply: Any,
    state: str,
    cancel: bool,
    fate: str,
) -> None:
    monkeypatch.setattr("airflow_jobmon_provider.operators._attempt.ON_KILL_TIMEOUT", 0.2)
    server = stub(DETAILS, {"workflow_run_id": 5, "status": "L"}, reply)
    connection(server.url, extra={"route_prefix": ""})
    task = create(7, wait_for_completion=False, cancel_on_kill=cancel)
    run_task(task, TaskInstance(in_airflow={-1: state}))
    executor: Any = Executor()
    assert task._attempt is not None
    task._attempt.execution = executor
    task.on_kill()
    assert executor.fate == [fate]


@pytest.mark.parametrize("cancel", [True, False])
def test_a_time_out_amid_an_outage_lets_the_executor_go_on(
    connection: Callable[..., None],
    stub: Callable[..., StubServer],
    monkeypatch: pytest.MonkeyPatch,
    cancel: bool,
) -> None:
    monkeypatch.setattr("airflow_jobmon_provider.operators._attempt.ON_KILL_TIMEOUT", 0.2)
    server = stub(DETAILS, {"workflow_run_id": 5, "status": "L"}, Reply(503, b"down"))
    connection(server.url, extra={"route_prefix": ""})
    task = create(7, cancel_on_kill=cancel)
    executor: Any = Executor()

    def time_out(*_: object, **__: object) -> None:
        assert task._attempt is not None
        task._attempt.execution = executor
        raise AirflowTaskTimeout("Timeout, PID: 5")

    monkeypatch.setattr(Watcher, "_watch", time_out)
    with pytest.raises(AirflowTaskTimeout):
        run_task(task)
    assert executor.fate == ["let go"]

"""What a retry does with the run of an earlier try: no healthy one is stopped, on no server a stranger's."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, TaskDeferred

from airflow_jobmon_provider.client.lifecycle import RunStatus, WorkflowStatus
from airflow_jobmon_provider.operators._retry import Preparation, Step, next_step, preparation
from dev.jobmon_sandbox import JobmonSandbox, SandboxWorkflow, wait_until
from tests.airflow_task import (
    ApiTaskInstance,
    DatabaseTaskInstance,
    TaskInstance,
    Tries,
    execute,
    run_task,
)
from tests.operators.tasks import create, died_after_creating, last_run
from tests.stub_server import Reply, StubServer

pytestmark = pytest.mark.usefixtures("connection")

KEY = "jobmon_workflow_run"


def move_run(sandbox: JobmonSandbox, run: int, statuses: str) -> None:
    for status in statuses:
        sandbox.put(f"/api/v2/workflow_run/{run}/update_status", {"status": status})


def retried(workflow_id: int, context: Any, **options: Any) -> int:
    """Run the next try up to its deferral, and return the run that it waits for."""
    with pytest.raises(TaskDeferred) as deferred:
        create(workflow_id, deferrable=True, **options).execute(context)
    run: int = deferred.value.trigger.workflow_run_id
    return run


# --- cleared, or not ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["", "B", "BIO", "BIOR"])
def test_a_run_goes_on_when_another_task_was_cleared(sandbox: JobmonSandbox, status: str) -> None:
    tries = Tries()
    workflow_id, run = died_after_creating(sandbox, tries, status)
    tries.clear_another_task()
    assert retried(workflow_id, tries.next()) == run
    assert sandbox.run_status(run) == (status or "L")[-1]
    assert not sandbox.requests(f"/workflow/{workflow_id}/set_resume")


def test_a_run_that_is_done_is_a_success_though_another_task_was_cleared(sandbox: JobmonSandbox) -> None:
    tries = Tries()
    workflow_id, run = died_after_creating(sandbox, tries, "BIORD")
    tries.clear_another_task()
    assert create(workflow_id).execute(tries.next()) == run


def test_what_an_older_version_remembered_is_no_evidence_of_a_clear(sandbox: JobmonSandbox) -> None:
    tries = Tries()
    workflow_id, run = died_after_creating(sandbox, tries, "BIOR")
    tries.set(KEY, {"workflow_id": workflow_id, "workflow_run_id": run, "clear_number": 0})
    tries.clear()
    assert retried(workflow_id, tries.next()) == run
    assert sandbox.run_status(run) == "R"


@pytest.mark.parametrize("kept", [None, [], "run", {}, {"workflow_run_id": "x", "workflow_id": 1}])
def test_a_memory_that_cannot_be_read_is_none(sandbox: JobmonSandbox, kept: Any) -> None:
    tries = Tries()
    tries.set(KEY, kept)
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    assert retried(workflow_id, tries.next()) == last_run(sandbox, workflow_id)[0]


def test_a_dag_that_grants_fewer_retries_by_now_is_no_evidence_of_a_clear(sandbox: JobmonSandbox) -> None:
    tries = Tries(retries=5)
    workflow_id, run = died_after_creating(sandbox, tries, "BIOR")
    tries.max_tries = 1
    tries.clear_another_task()
    assert retried(workflow_id, tries.next()) == run
    assert sandbox.run_status(run) == "R"


def test_a_second_retry_still_knows_that_nothing_was_cleared(sandbox: JobmonSandbox) -> None:
    tries = Tries(retries=3)
    workflow_id, run = died_after_creating(sandbox, tries, "BIOR")
    for _ in range(2):
        tries.clear_another_task()
        assert retried(workflow_id, tries.next()) == run


def test_a_clear_is_heeded_once(sandbox: JobmonSandbox) -> None:
    tries = Tries()
    workflow_id, run = died_after_creating(sandbox, tries)
    tries.clear()
    second = retried(workflow_id, tries.next())
    assert second > run
    assert retried(workflow_id, tries.next()) == second


class Refusing(Tries):
    """Refuses what is to be kept for a task instance that has another id by now, as Airflow 3.3 does."""

    refuses = False

    def set(self, key: str, value: Any) -> None:
        if self.refuses:
            raise RuntimeError("404: task instance not found")
        super().set(key, value)


@pytest.mark.parametrize("refuses", [False, True], ids=["remembered", "refused"])
def test_a_clear_of_a_task_that_runs_is_told_by_its_kill(sandbox: JobmonSandbox, refuses: bool) -> None:
    """Airflow restarts it without more tries, if its executor says that it has failed."""
    tries = Refusing()
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    context = tries.next()
    task = create(workflow_id, wait_for_completion=False)
    run = task.execute(context)
    assert run is not None
    move_run(sandbox, run, "BIOR")
    context["ti"].in_airflow = {-1: "restarting"}
    tries.refuses = refuses
    task.on_kill()
    assert sandbox.run_status(run) == "C"
    move_run(sandbox, run, "T")
    tries.refuses = False
    tries.clear_another_task()  # which is all that the next try sees of a clear of its own, too
    assert retried(workflow_id, tries.next()) > run


# --- another server, another workflow -----------------------------------------------------------------------


@pytest.mark.parametrize("status", ["", "BIORD"])
def test_a_run_on_another_server_is_none_of_ours(
    sandbox: JobmonSandbox, connection: Callable[..., None], logged: Callable[[], str], status: str
) -> None:
    tries = Tries()
    workflow_id, run = died_after_creating(sandbox, tries, status)
    sandbox.change("UPDATE workflow SET status = 'F' WHERE id = ?", workflow_id)
    if not status:  # else it would be in the way: it is the same server, by another name
        sandbox.put(f"/api/v2/workflow_run/{run}/update_status", {"status": "A"})
    before = len(sandbox.requests(f"/workflow_run/{run}/"))
    connection(sandbox.url.replace("127.0.0.1", "localhost"))
    tries.clear()
    assert retried(workflow_id, tries.next()) > run
    assert len(sandbox.requests(f"/workflow_run/{run}/")) == before
    (line,) = [line for line in logged().splitlines() if "is left alone" in line or "left alone, and" in line]
    assert "127.0.0.1" in line
    assert "localhost" in line


def test_another_spelling_of_the_servers_address_is_no_other_server(
    sandbox: JobmonSandbox, connection: Callable[..., None]
) -> None:
    connection(sandbox.url.replace("127.0.0.1", "localhost"))
    tries = Tries()
    workflow_id, run = died_after_creating(sandbox, tries, "BIORD")
    connection(sandbox.url.replace("127.0.0.1", "LOCALHOST"))
    assert create(workflow_id).execute(tries.next()) == run


def test_a_template_that_names_another_workflow_leaves_the_earlier_run_alone(
    sandbox: JobmonSandbox, logged: Callable[[], str]
) -> None:
    tries = Tries()
    workflow_id, run = died_after_creating(sandbox, tries, "BIOR")
    other = sandbox.make_workflow_in("E").workflow_id
    tries.clear()
    assert retried(other, tries.next()) == last_run(sandbox, other)[0]
    assert sandbox.run_status(run) == "R"
    assert f"run {run} of workflow {workflow_id}; this try is for workflow {other}" in logged()


# --- no reset under a living executor -----------------------------------------------------------------------


@pytest.mark.parametrize(("path", "stays"), [("BI", "INSTANTIATED"), ("BIO", "LAUNCHED")])
def test_a_clear_resets_no_task_under_an_executor_that_is_starting(
    sandbox: JobmonSandbox, path: str, stays: str
) -> None:
    tries = Tries()
    workflow_id, run = died_after_creating(sandbox, tries, path)
    sandbox.change("UPDATE task SET status = 'F' WHERE workflow_id = ?", workflow_id)
    tries.clear()
    with pytest.raises(AirflowException, match=rf"run {run} .* is still {stays} .* after 1 s") as caught:
        create(workflow_id, create_timeout=1).execute(tries.next())
    assert "\n" not in str(caught.value)
    assert sandbox.task_statuses(workflow_id) == ["F"]
    assert last_run(sandbox, workflow_id) == (run, path[-1])


def test_a_clear_waits_until_the_run_has_ended(sandbox: JobmonSandbox) -> None:
    tries = Tries()
    workflow_id, run = died_after_creating(sandbox, tries, "BIO")

    def executor() -> None:
        wait_until(
            lambda: sandbox.requests(f"/workflow_run/{run}/update_status"), 20, "the first try to stop it"
        )
        move_run(sandbox, run, "R")
        wait_until(lambda: sandbox.run_status(run) == "C", 20, "the cold signal")
        assert not sandbox.requests(f"/task/{workflow_id}/set_resume_state")
        move_run(sandbox, run, "T")

    playing = threading.Thread(target=executor)
    playing.start()
    tries.clear()
    assert retried(workflow_id, tries.next(), create_timeout=60) > run
    playing.join()
    assert sandbox.run_status(run) == "T"


@pytest.mark.parametrize("path", ["BI", "BIO"])
def test_a_resuming_retry_resets_no_task_under_another_executor(sandbox: JobmonSandbox, path: str) -> None:
    tries = Tries()
    workflow_id, _ = died_after_creating(sandbox, tries, "BIORE")
    others = run_task(create(workflow_id, wait_for_completion=False)).result
    move_run(sandbox, others, path)
    sandbox.change("UPDATE task SET status = 'R' WHERE workflow_id = ?", workflow_id)
    with pytest.raises(AirflowException, match="an executor has taken a run of it and not begun"):
        create(workflow_id, resume_on_retry=True).execute(tries.next())
    assert sandbox.run_status(others) == path[-1]
    assert sandbox.task_statuses(workflow_id) == ["R"]


# --- Airflow remembers nothing (2.11 to 3.2) ----------------------------------------------------------------


@pytest.fixture(params=["2.11", "3.2"])
def second_try(request: pytest.FixtureRequest) -> Any:
    """Return the context of a second try where there is no task store."""
    makes = {"2.11": DatabaseTaskInstance(try_number=2), "3.2": ApiTaskInstance(try_number=2)}
    return {"ti": makes[request.param]}


def failed_workflow(sandbox: JobmonSandbox, status: str = "E") -> SandboxWorkflow:
    workflow = sandbox.make_workflow_in("E")
    sandbox.change("UPDATE task SET status = 'F' WHERE workflow_id = ?", workflow.workflow_id)
    return workflow


def test_a_resuming_retry_resets_the_tasks_without_a_memory(sandbox: JobmonSandbox, second_try: Any) -> None:
    workflow = failed_workflow(sandbox)
    run = retried(workflow.workflow_id, second_try, resume_on_retry=True)
    assert last_run(sandbox, workflow.workflow_id) == (run, "L")
    assert sandbox.task_statuses(workflow.workflow_id) == ["G"]


@pytest.mark.parametrize("status", ["R", "O", "B"])
def test_a_resuming_retry_without_a_memory_never_stops_a_run(
    sandbox: JobmonSandbox, second_try: Any, status: str
) -> None:
    workflow = sandbox.make_workflow_in(status)
    alive = "a run of it is still alive|an executor has taken a run of it and not begun"
    with pytest.raises(AirflowException, match=alive):
        create(workflow.workflow_id, resume_on_retry=True, create_timeout=1).execute(second_try)
    assert sandbox.runs(workflow.workflow_id) == [(workflow.workflow_run_id, status)]
    assert not sandbox.requests(f"/task/{workflow.workflow_id}/set_resume_state")


@pytest.mark.parametrize("resume_on_retry", [True, False])
def test_a_retry_without_a_memory_succeeds_on_a_workflow_that_is_done(
    sandbox: JobmonSandbox, second_try: Any, resume_on_retry: bool
) -> None:
    workflow = sandbox.make_workflow_in("D")
    assert create(workflow.workflow_id, resume_on_retry=resume_on_retry).execute(second_try) is None
    assert sandbox.runs(workflow.workflow_id) == [(workflow.workflow_run_id, "D")]


def test_a_retry_without_a_memory_succeeds_once_the_run_in_the_way_has_made_the_workflow_done(
    sandbox: JobmonSandbox, second_try: Any
) -> None:
    workflow = sandbox.make_workflow("running", tasks=1)
    before = len(sandbox.requests())

    def refused() -> bool:
        return "/api/v2/workflow_run" in [request.path for request in sandbox.requests()[before:]]

    def release_once_refused() -> None:
        wait_until(refused, 30, "a run to be refused")
        workflow.release()

    with ThreadPoolExecutor() as pool:
        releasing = pool.submit(release_once_refused)
        assert execute(create(workflow.workflow_id), second_try) is None
        releasing.result()
    assert sandbox.run_status(workflow.workflow_run_id or 0) == "D"


def test_a_refusal_stays_the_error_where_the_server_does_not_answer_afterwards(
    connection: Callable[..., None], stub: Callable[..., StubServer]
) -> None:
    details = {"wf_status": "F", "wf_name": "w", "wf_created_date": "2026-11-25T01:02:03"}
    refusal = {"workflow_run_id": None, "err_msg": "Workflow 7 is not in a resume-able state"}
    connection(stub([details], refusal, Reply(503)).url)
    with pytest.raises(AirflowException, match=r"Jobmon refused workflow 7: .* not in a resume-able state"):
        execute(create(7, create_timeout=1), {"ti": TaskInstance()})


def test_a_retry_without_a_memory_says_what_it_does_not_do(
    sandbox: JobmonSandbox, second_try: Any, logged: Callable[[], str]
) -> None:
    workflow = failed_workflow(sandbox)
    retried(workflow.workflow_id, second_try)
    assert sandbox.task_statuses(workflow.workflow_id) == ["F"]
    assert "resume_on_retry=True" in logged()


def test_a_lost_run_that_is_linking_is_reset_by_nobody(sandbox: JobmonSandbox, second_try: Any) -> None:
    workflow = sandbox.make_workflow_in("L", good_for=1)
    sandbox.start_reaper(0.5)
    try:
        run = retried(workflow.workflow_id, second_try, resume_on_retry=True, create_timeout=60)
    finally:
        sandbox.stop_reaper()
    assert sandbox.run_status(workflow.workflow_run_id or 0) == "A"
    assert last_run(sandbox, workflow.workflow_id) == (run, "L")


def test_a_first_try_resets_nothing(sandbox: JobmonSandbox) -> None:
    workflow = failed_workflow(sandbox)
    retried(workflow.workflow_id, {"ti": TaskInstance()}, resume_on_retry=True)
    assert sandbox.task_statuses(workflow.workflow_id) == ["F"]


# --- limits -------------------------------------------------------------------------------------------------


@pytest.fixture(params=["refuses", "is silent"])
def broken(request: pytest.FixtureRequest, connection: Callable[..., None]) -> Iterator[None]:
    """Point the connection to a server that does not answer."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if request.param == "is silent":
            listening.listen(50)
        extra = {"retries_timeout": 300, "retries_attempts": 10, "request_timeout": 1}
        connection(f"http://127.0.0.1:{listening.getsockname()[1]}", extra=extra)
        yield


@pytest.mark.parametrize("remembers", [True, False])
@pytest.mark.usefixtures("broken")
def test_create_timeout_holds_for_a_retry_whose_server_does_not_answer(
    connection: Callable[..., None], remembers: bool
) -> None:
    tries = Tries()
    tries.next()
    tries.set(KEY, {"workflow_id": 7, "workflow_run_id": 5})
    started = time.monotonic()
    with pytest.raises(AirflowException):
        create(7, create_timeout=2, resume_on_retry=True).execute(tries.next(remembers=remembers))
    assert time.monotonic() - started < 12


def test_the_time_for_the_hand_off_and_the_task_counts_from_their_starts(sandbox: JobmonSandbox) -> None:
    tries = Tries()
    workflow_id, _ = died_after_creating(sandbox, tries)
    created = tries.kept[KEY]["created_at"] - 100
    tries.kept[KEY]["created_at"] = created
    context = tries.next()
    started = datetime.now(timezone.utc) - timedelta(hours=1)
    context["ti"].start_date = started
    task = create(workflow_id, deferrable=True, execution_timeout=timedelta(hours=5), handoff_timeout=3600)
    with pytest.raises(TaskDeferred) as deferred:
        task.execute(context)
    trigger: Any = deferred.value.trigger
    assert trigger.handoff_deadline == created + 3600
    assert trigger.deadline == pytest.approx(started.timestamp() + 5 * 3600)
    assert trigger.created_at == created


def test_a_blocking_retry_gives_the_hand_off_no_more_time_than_is_left(sandbox: JobmonSandbox) -> None:
    tries = Tries()
    workflow_id, run = died_after_creating(sandbox, tries)
    tries.kept[KEY]["created_at"] -= 100
    with pytest.raises(AirflowException, match="no executor took workflow run"):
        create(workflow_id, handoff_timeout=50).execute(tries.next())
    assert last_run(sandbox, workflow_id) == (run, "A")


def test_a_retry_after_a_hand_off_that_never_came_creates_another_run(sandbox: JobmonSandbox) -> None:
    tries = Tries()
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    with pytest.raises(AirflowException, match="no executor took workflow run"):
        create(workflow_id, handoff_timeout=0.5).execute(tries.next())
    run = last_run(sandbox, workflow_id)[0]
    assert retried(workflow_id, tries.next()) > run


# --- the decision -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", list(RunStatus))
@pytest.mark.parametrize("resume_on_retry", [True, False])
@pytest.mark.parametrize("cancel_on_kill", [True, False])
def test_without_a_clear_no_run_is_stopped(
    status: RunStatus, cancel_on_kill: bool, resume_on_retry: bool
) -> None:
    step = next_step(status, cleared=False, cancel_on_kill=cancel_on_kill, resume_on_retry=resume_on_retry)
    assert step is not Step.STOP
    assert (step is Step.GO_ON) == (not status.is_terminal or status is RunStatus.DONE)


@pytest.mark.parametrize("resume_on_retry", [True, False])
@pytest.mark.parametrize("status", [None, *WorkflowStatus])
def test_without_memory_a_workflow_is_resumed_only_where_the_user_wants_it(
    status: WorkflowStatus | None, resume_on_retry: bool
) -> None:
    what = preparation(status, resume_on_retry=resume_on_retry)
    ready = status in (None, WorkflowStatus.REGISTERING, WorkflowStatus.DONE)
    if resume_on_retry or status is WorkflowStatus.DONE:
        assert what is (Preparation.NOTHING if ready else Preparation.RESUME)
    else:
        assert what is Preparation.WARN

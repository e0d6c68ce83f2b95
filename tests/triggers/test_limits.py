"""Limits, first looks and stops of the heartbeat trigger, on a real Jobmon and where there is none."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_jobmon_provider.client.protocol import CLIENT_VERSION
from airflow_jobmon_provider.hooks.jobmon import JobmonHook
from airflow_jobmon_provider.triggers.jobmon import WorkflowRunHeartbeatTrigger
from dev.jobmon_sandbox import JobmonSandbox
from tests.airflow_task import fire, kill
from tests.stub_server import Reply, StubServer

pytestmark = pytest.mark.usefixtures("connection")

NOT_FOUND = Reply(500, {"error": {"type": "NoResultFound"}})
SLACK = (
    10  # seconds that a busy machine may take for what takes milliseconds; without the limit it is for ever
)


def trigger(run: int | None = 5, **options: Any) -> WorkflowRunHeartbeatTrigger:
    defaults = {"workflow_run_heartbeat_interval": 1, "heartbeat_report_by_buffer": 3.0, "poll_interval": 0.5}
    return WorkflowRunHeartbeatTrigger(run or 0, **{**defaults, **options})


def said(sandbox: JobmonSandbox, run: int | None) -> list[str]:
    """What this provider's heartbeats said of a run."""
    requests = sandbox.requests(f"/workflow_run/{run}/log_heartbeat")
    return [request.body["status"] for request in requests if CLIENT_VERSION in request.query]


async def watched_until(trigger: WorkflowRunHeartbeatTrigger, condition: Callable[[], object]) -> None:
    """Let a trigger watch until something has happened, and end it as a triggerer that shuts down does."""
    firing = asyncio.create_task(fire(trigger))
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    firing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await firing


def refused_run(sandbox: JobmonSandbox) -> tuple[int, int]:
    """Return a run that is LINKING, and one in G that the server made of the request that it refused."""
    workflow = sandbox.make_workflow_in("L")
    body = {"workflow_id": workflow.workflow_id, "user": "bob", "jobmon_version": "sandbox"}
    assert (
        sandbox.post("/api/v2/workflow_run", {**body, "next_report_increment": 60})["workflow_run_id"] is None
    )
    sql = "SELECT id FROM workflow_run WHERE workflow_id = ? AND status = 'G'"
    ((left,),) = sandbox.query(sql, workflow.workflow_id)
    return workflow.workflow_run_id or 0, left


# --- The first look -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("owned", [True, False])
async def test_watching_what_a_refused_create_left_makes_no_second_live_run_of_it(
    sandbox: JobmonSandbox, owned: bool
) -> None:
    linking, left = refused_run(sandbox)
    await watched_until(trigger(left, owned=owned), lambda: len(said(sandbox, left)) >= 3)
    assert (sandbox.run_status(linking), sandbox.run_status(left)) == ("L", "G")
    assert set(said(sandbox, left)) == {"G"}


async def test_a_heartbeat_follows_at_once_where_the_run_is_linking(sandbox: JobmonSandbox) -> None:
    run = sandbox.make_workflow_in("L", good_for=2).workflow_run_id or 0
    lost_at = sandbox.heartbeat_date(run)
    await watched_until(trigger(run), lambda: len(said(sandbox, run)) >= 2)
    assert said(sandbox, run)[:2] == ["G", "L"]
    assert sandbox.heartbeat_date(run) > lost_at


async def test_a_status_of_a_newer_server_is_watched_on(
    connection: Callable[..., None], stub: Callable[..., StubServer], logged: Callable[[], str]
) -> None:
    server = stub({"status": "R"}, {"status": "X"}, {"status": "X"}, {"status": "D"})
    connection(server.url)
    event = await fire(trigger(owned=True, keep_alive="until_done"))
    assert (event["status"], event["workflow_run_status"]) == ("success", "D")
    assert logged().count("workflow run 5 is UNKNOWN (X)") == 1
    assert [request.body["status"] for request in server.requests] == ["G", "R", "G", "G"]


async def test_such_a_status_at_the_deadline_is_in_the_event(
    connection: Callable[..., None], stub: Callable[..., StubServer]
) -> None:
    connection(stub({"status": "X"}).url)
    event = await fire(trigger(deadline=time.time()))
    assert (event["status"], event["workflow_run_status"]) == ("timeout", "X")


async def test_a_run_of_ours_that_the_server_has_not_committed_yet_is_asked_for_again(
    connection: Callable[..., None], stub: Callable[..., StubServer]
) -> None:
    connection(stub(NOT_FOUND, NOT_FOUND, {"status": "L"}, {"status": "D"}).url)
    assert (await fire(trigger(owned=True)))["status"] == "success"


# --- Limits on servers that are none ------------------------------------------------------------------------


@pytest.fixture
def refusing() -> Iterator[str]:
    """An address at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


# On Airflow 2 nothing comes after the trigger, so it goes on trying to stop the run: for 20 s, or as here.
A_SHORT_LAST_CHANCE = ("airflow_jobmon_provider.client.conversations.release._LAST_CHANCE", 2.0)


@pytest.mark.parametrize("limit", ["handoff_deadline", "deadline"])
async def test_a_limit_fires_while_the_server_refuses_connections(
    connection: Callable[..., None], refusing: str, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*A_SHORT_LAST_CHANCE)
    connection(refusing)
    started = time.monotonic()
    limits: dict[str, Any] = {limit: time.time() + 1}
    firing = fire(trigger(owned=True, workflow_id=7, cancel_on_kill=True, **limits))
    event = await asyncio.wait_for(firing, SLACK)
    assert time.monotonic() - started >= 0.9
    assert (event["status"], event["workflow_run_status"]) == ("timeout", None)
    assert "could not be aborted" in event["message"]


@pytest.fixture
def silent() -> Iterator[str]:
    """An address at which connections are taken, and nothing is ever replied."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("limit", ["handoff_deadline", "deadline"])
async def test_a_limit_fires_while_the_server_never_replies(
    connection: Callable[..., None], silent: str, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*A_SHORT_LAST_CHANCE)
    connection(silent, extra={"request_timeout": 4})
    limits: dict[str, Any] = {limit: time.time() + 1}
    firing = fire(trigger(owned=True, workflow_id=7, cancel_on_kill=True, **limits))
    event = await asyncio.wait_for(firing, SLACK)
    assert (event["status"], event["workflow_run_status"]) == ("timeout", None)
    assert "could not be aborted" in event["message"]


# --- Stopping at the deadline -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "options", "left"),
    [
        ("B", {}, "C"),
        ("R", {}, "C"),
        ("R", {"cancel_on_kill": False}, "R"),
        ("R", {"owned": False}, "R"),
        ("L", {"cancel_on_kill": False}, "A"),
    ],
)
async def test_the_deadline_stops_the_run_before_the_event(
    sandbox: JobmonSandbox, status: str, options: dict[str, Any], left: str
) -> None:
    """On Airflow 2.11 no code of ours is sure to run after it."""
    workflow = sandbox.make_workflow_in(status)
    run, terms = workflow.workflow_run_id or 0, {"owned": True, "cancel_on_kill": True, **options}
    event = await fire(trigger(run, deadline=time.time(), workflow_id=workflow.workflow_id, **terms))
    assert (event["status"], event["workflow_run_status"]) == ("timeout", left)
    assert sandbox.run_status(run) == left


@pytest.mark.parametrize("status", "BIO")
async def test_a_run_whose_executor_does_not_begin_is_moved_to_error(
    sandbox: JobmonSandbox, status: str, logged: Callable[[], str]
) -> None:
    run = sandbox.make_workflow_in(status).workflow_run_id or 0
    event = await fire(trigger(run, owned=True, startup_timeout=0.5))
    assert (event["status"], event["workflow_run_status"]) == ("failed", "E")
    assert "did not start it" in event["message"]
    assert sandbox.run_status(run) == "E"
    assert "has not begun" in logged()


async def test_a_starting_run_of_another_task_is_not_moved(sandbox: JobmonSandbox) -> None:
    run = sandbox.make_workflow_in("O").workflow_run_id or 0
    event = await fire(trigger(run, startup_timeout=0.2, deadline=time.time() + 0.8))
    assert (event["status"], sandbox.run_status(run)) == ("timeout", "O")


def test_the_limit_must_be_a_time() -> None:
    with pytest.raises(ValueError, match="startup_timeout must be larger than 0"):
        trigger(startup_timeout=0)


# --- on_kill ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [RuntimeError("API server error"), OSError("gone"), KeyError("x"), TimeoutError()]
)
async def test_a_kill_raises_nothing_and_warns_once_where_the_connection_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, logged: Callable[[], str], error: Exception
) -> None:
    async def failing(self: JobmonHook) -> Any:
        raise error

    monkeypatch.setattr(JobmonHook, "aserver", failing)
    monkeypatch.setattr("airflow_jobmon_provider.triggers.jobmon._CONNECTION_TRIES", 1)
    await kill(trigger(owned=True))
    assert logged().count("workflow run 5 could not be stopped") == 1


async def test_a_kill_ends_in_time_where_the_connection_is_read_for_ever(
    monkeypatch: pytest.MonkeyPatch, logged: Callable[[], str]
) -> None:
    async def hanging(self: JobmonHook) -> Any:
        await asyncio.sleep(3600)

    monkeypatch.setattr(JobmonHook, "aserver", hanging)
    monkeypatch.setattr("airflow_jobmon_provider.triggers.jobmon.ON_KILL_TIMEOUT", 0.2)
    await asyncio.wait_for(kill(trigger(owned=True)), SLACK)
    assert "workflow run 5 could not be stopped: no answer within 0.2 s" in logged()


async def test_a_kill_says_what_is_left_of_a_run_that_cannot_be_told_to_stop_yet(
    sandbox: JobmonSandbox, monkeypatch: pytest.MonkeyPatch, logged: Callable[[], str]
) -> None:
    monkeypatch.setattr("airflow_jobmon_provider.triggers.jobmon.ON_KILL_TIMEOUT", 0.5)
    workflow = sandbox.make_workflow_in("O")
    run, stop = workflow.workflow_run_id, {"workflow_id": workflow.workflow_id, "cancel_on_kill": True}
    await kill(trigger(run, owned=True, **stop))
    assert f"workflow run {run} was not stopped in " in logged()
    assert sandbox.run_status(run or 0) == "O"


async def test_a_kill_stops_a_run_that_the_server_has_not_committed_yet(
    connection: Callable[..., None], stub: Callable[..., StubServer]
) -> None:
    server = stub(NOT_FOUND, {"status": "A"})
    connection(server.url)
    await kill(trigger(owned=True))
    assert len(server.requests) == 2

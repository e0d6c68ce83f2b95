"""Triggers whose connection cannot be read, changes, or names another server."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.triggers.base import BaseTrigger

from airflow_jobmon_provider.client.async_requester import AsyncRequester
from airflow_jobmon_provider.hooks.jobmon import JobmonHook
from airflow_jobmon_provider.triggers import jobmon as trigger_module
from airflow_jobmon_provider.triggers.jobmon import WorkflowResumableTrigger, WorkflowRunHeartbeatTrigger
from tests.airflow_task import fire, kill, stored
from tests.stub_server import Reply, StubServer
from tests.token_server import TokenServer, connections


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Define connections; nothing here needs a real Jobmon."""
    return connections(monkeypatch)


@pytest.fixture
def jobmon() -> Iterator[TokenServer]:
    server = TokenServer("old")
    yield server
    server.close()


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def resumable(**options: Any) -> WorkflowResumableTrigger:
    return WorkflowResumableTrigger(7, **options)


def heartbeat(**options: Any) -> WorkflowRunHeartbeatTrigger:
    quick = {"workflow_run_heartbeat_interval": 1, "heartbeat_report_by_buffer": 3.0, "poll_interval": 0.2}
    return WorkflowRunHeartbeatTrigger(5, workflow_id=7, **{**quick, **options})


Make = Callable[..., BaseTrigger]
both = pytest.mark.parametrize("make", [resumable, heartbeat])


def answers(make: Make) -> list[Any]:
    """What a server says, one request after the other, when all is over."""
    return [{"workflow_is_resumable": True}, []] if make is resumable else [{"status": "D"}]


def ids(make: Make) -> dict[str, Any]:
    return {"workflow_id": 7} if make is resumable else {"workflow_id": 7, "workflow_run_id": 5}


# --- a connection that cannot be read -----------------------------------------------------------------------


@both
@pytest.mark.parametrize("stranger", [False, True])
async def test_a_hiccup_of_airflow_is_outlived(
    make: Make,
    stranger: bool,
    connection: Callable[..., None],
    stub: Callable[..., StubServer],
    monkeypatch: pytest.MonkeyPatch,
    logged: Callable[[], str],
) -> None:
    """Airflow 3 swallows what its API, database or secrets backend raised, and says "not defined"."""
    server, other = stub(*answers(make)), stub(*answers(make))
    where = f"{server.url}/api/v2"
    if stranger:
        monkeypatch.setenv("JOBMON__HTTP__SERVICE_URL", other.url)
    monkeypatch.delenv("AIRFLOW_CONN_JOBMON_DEFAULT")
    firing = asyncio.create_task(fire(make(server=where)))
    await until(lambda: firing.done() or "Connection jobmon_default cannot be read" in logged())
    connection(server.url)
    event = await firing
    assert event["status"] == "success"
    assert event.items() >= ids(make).items()
    assert event["server"] == where
    assert other.requests == []


@both
async def test_a_connection_that_is_never_found_is_one_clear_event(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trigger_module, "_CONNECTION_TRIES", 2)
    event = await fire(make(jobmon_conn_id="nowhere", server="http://there.example"))
    assert event["status"] == "error"
    assert event["server"] == "http://there.example"
    assert event.items() >= ids(make).items()
    assert "connection 'nowhere' is not defined; Jobmon's own settings" in event["message"]
    assert "The triggerer must find it, too, not only the workers" in event["message"]


HANGS, FAILS = "hangs", "fails"


@pytest.mark.parametrize("how", [HANGS, FAILS])
@pytest.mark.parametrize(
    ("make", "limit", "status"),
    [
        (resumable, "deadline", "timeout"),
        (heartbeat, "deadline", "timeout"),
        # An executor may have taken it by then: no reason to stop it.
        (heartbeat, "handoff_deadline", "error"),
    ],
)
async def test_every_deadline_holds_meanwhile(
    make: Make, limit: str, status: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read(self: JobmonHook) -> Any:
        if how == HANGS:
            await asyncio.Event().wait()
        raise AirflowNotFoundException("not defined")

    monkeypatch.setattr(JobmonHook, "_aread", read)
    started = time.monotonic()
    event = await fire(make(**{limit: time.time() + 1.5}))
    assert 1.4 < time.monotonic() - started < 10
    assert event["status"] == status
    assert event.items() >= ids(make).items()
    assert "the time is over, and connection 'jobmon_default' could not be read within" in event["message"]


async def test_a_deadline_that_is_over_leaves_time_for_one_reading(
    connection: Callable[..., None], stub: Callable[..., StubServer]
) -> None:
    connection(stub(*answers(resumable)).url)
    assert (await fire(resumable(deadline=1.0)))["status"] == "success"


async def test_a_hand_off_that_was_over_before_is_no_limit_of_the_reading(
    connection: Callable[..., None], stub: Callable[..., StubServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The executor has had the run for days when the triggerer is restarted."""
    monkeypatch.setattr(trigger_module, "_FIRST_READING", 0.0)
    connection(stub(*answers(heartbeat)).url)
    assert (await fire(heartbeat(handoff_deadline=1.0)))["status"] == "success"


async def test_garbage_from_airflow_is_a_hiccup_too(
    connection: Callable[..., None], stub: Callable[..., StubServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection(stub(*answers(resumable)).url)
    read = JobmonHook._aread
    failures = [ValueError("Expecting value: line 1"), PermissionError("denied")]

    async def reading(self: JobmonHook) -> Any:
        if failures:
            raise failures.pop()
        return await read(self)

    monkeypatch.setattr(JobmonHook, "_aread", reading)
    assert (await fire(resumable()))["status"] == "success"
    assert failures == []


@both
@pytest.mark.parametrize(
    "error",
    [
        ImportError("cannot import name 'get_async_extra_dejson' from 'airflow.providers.common.compat'"),
        ModuleNotFoundError("No module named 'aiohttp'"),
        SyntaxError("invalid syntax (dependency.py, line 3)"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_cannot_be_imported_is_final_at_once(
    make: Make, error: Exception, monkeypatch: pytest.MonkeyPatch, logged: Callable[[], str]
) -> None:
    tries: list[object] = []

    async def read(self: JobmonHook) -> Any:
        tries.append(self)
        raise error

    monkeypatch.setattr(JobmonHook, "_aread", read)
    event = await fire(make())
    assert event["status"] == "error"
    assert event["message"] == (
        f"the triggerer cannot import what this trigger needs: {error}. Compare the packages installed there"
        " with what airflow-provider-jobmon requires"
    )
    assert len(tries) == 1
    assert "cannot be read" not in logged()


async def test_a_transport_that_cannot_be_imported_is_final_at_once(
    connection: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "airflow_jobmon_provider.client.async_renewing", None)
    event = await fire(resumable())
    assert event["status"] == "error"
    assert "import of airflow_jobmon_provider.client.async_renewing halted" in event["message"]


# --- a connection that names another server -----------------------------------------------------------------


@both
async def test_nothing_is_sent_to_another_server(
    make: Make, connection: Callable[..., None], stub: Callable[..., StubServer]
) -> None:
    other = stub(*answers(make))
    connection(other.url)
    event = await fire(make(server="http://dev.example/api/v2"))
    assert event["status"] == "error"
    assert event["server"] == "http://dev.example/api/v2"
    assert f"connection 'jobmon_default' now names the server {other.url}/api/v2" in event["message"]
    assert other.requests == []


@both
async def test_another_spelling_is_the_same_server(
    make: Make, connection: Callable[..., None], stub: Callable[..., StubServer]
) -> None:
    server = stub(*answers(make))
    connection(server.url)
    assert (await fire(make(server=f"{server.url}/api/v2/".replace("http", "HTTP"))))["status"] == "success"


@both
async def test_a_deferral_from_before_says_in_its_event_where_it_was(
    make: Make, connection: Callable[..., None], stub: Callable[..., StubServer]
) -> None:
    server = stub(*answers(make))
    connection(server.url)
    kwargs = make().serialize()[1]
    assert kwargs.pop("server") is None
    event = await fire(type(make())(**kwargs))
    assert event["server"] == f"{server.url}/api/v2"


@pytest.mark.parametrize("owned", [True, False])
async def test_a_kill_stops_nothing_on_another_server(
    owned: bool, connection: Callable[..., None], stub: Callable[..., StubServer], logged: Callable[[], str]
) -> None:
    other = stub({"status": "L"})
    connection(other.url)
    await kill(heartbeat(owned=owned, cancel_on_kill=True, server="http://dev.example"))
    assert other.requests == []
    assert ("workflow run 5 could not be stopped: connection" in logged()) is owned


async def test_a_kill_while_the_connection_cannot_be_read_is_said(
    monkeypatch: pytest.MonkeyPatch, logged: Callable[[], str]
) -> None:
    monkeypatch.setattr(trigger_module, "_KILL_READING", 0.3)
    monkeypatch.delenv("AIRFLOW_CONN_JOBMON_DEFAULT", raising=False)
    await kill(heartbeat(owned=True))
    assert "workflow run 5 could not be stopped: the time is over, and connection" in logged()


# --- credentials that were rotated --------------------------------------------------------------------------


async def test_a_watch_goes_on_with_a_rotated_token(
    jobmon: TokenServer, connection: Callable[..., None], logged: Callable[[], str]
) -> None:
    """It does not start over, and its deadline is the one that it had."""
    connection(jobmon.url, password="old")
    started = time.monotonic()
    firing = asyncio.create_task(fire(heartbeat(keep_alive="never", deadline=time.time() + 4)))
    await until(lambda: len(jobmon.seen) >= 2)
    connection(jobmon.url, password="n3w")
    jobmon.takes = "n3w"
    event = await firing
    assert 3.5 < time.monotonic() - started < 15
    assert event["status"] == "timeout"
    assert event["workflow_run_status"] == "R"
    assert [status for _, status in jobmon.seen].count(401) == 1
    assert jobmon.seen[-1] == ("n3w", 200)
    output = logged()
    assert output.count("workflow run 5 is RUNNING (R)") == 1
    assert "Connection jobmon_default has changed, and is used as it is now" in output
    assert "n3w" not in output


async def test_a_token_that_was_rotated_in_an_outage_is_taken_when_it_is_over(
    connection: Callable[..., None], stub: Callable[..., StubServer]
) -> None:
    server = stub(Reply(503, b"no"), Reply(503, b"no"), Reply(401, b"who?"), {"status": "D"})
    connection(server.url, password="old")
    firing = asyncio.create_task(fire(heartbeat()))
    await until(lambda: server.requests)
    connection(server.url, password="n3w")
    assert (await firing)["status"] == "success"
    tokens = [request.headers["Authorization"] for request in server.requests]
    assert tokens[-1] == "Bearer n3w"
    assert tokens[-2] == "Bearer old"


async def test_a_kill_goes_on_with_a_rotated_token(
    connection: Callable[..., None], stub: Callable[..., StubServer], logged: Callable[[], str]
) -> None:
    server = stub(Reply(401, b"who?"), {"status": "A"})
    connection(server.url, password="old")
    ask = AsyncRequester.ask

    async def rotating(self: Any, *args: Any, **options: Any) -> Any:
        connection(server.url, password="n3w")
        return await ask(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AsyncRequester, "ask", rotating)
        await kill(heartbeat(owned=True))
    assert "workflow run 5 is now ABORTED (A)" in logged()


async def test_a_connection_that_is_gone_while_the_token_is_refused_does_not_outlast_the_deadline(
    connection: Callable[..., None], stub: Callable[..., StubServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = stub({"status": "R"}, Reply(401, b"who?"))
    connection(server.url, password="old")
    firing = asyncio.create_task(fire(heartbeat(deadline=time.time() + 3)))
    await until(lambda: server.requests)
    monkeypatch.delenv("AIRFLOW_CONN_JOBMON_DEFAULT")
    event = await asyncio.wait_for(firing, 20)
    assert event["status"] == "timeout"


# --- arguments ----------------------------------------------------------------------------------------------


@both
def test_the_server_is_stored(make: Make) -> None:
    trigger = make(server="http://dev.example")
    kwargs = trigger.serialize()[1]
    assert json.loads(json.dumps(kwargs)) == stored(trigger).serialize()[1]
    assert kwargs["server"] == "http://dev.example"

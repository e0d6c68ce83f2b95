"""A connection that changes, or cannot be read, while a task waits for hours."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from airflow.providers.common.compat import sdk
from airflow.providers.common.compat.sdk import AirflowNotFoundException

from airflow_jobmon_provider.client import async_renewing, renewing
from airflow_jobmon_provider.client import requester as requester_module
from airflow_jobmon_provider.client.async_requester import AsyncRequester
from airflow_jobmon_provider.client.conversations import Ask, Conversation
from airflow_jobmon_provider.client.exceptions import (
    CertificateNotTrusted,
    ConfigError,
    HostUnknown,
    JobmonError,
    NotAuthorized,
    ServerFailure,
    ServerUnreachable,
)
from airflow_jobmon_provider.client.lifecycle import RunStatus
from airflow_jobmon_provider.client.protocol import routes
from airflow_jobmon_provider.client.requester import Requester
from airflow_jobmon_provider.client.settings import same_server
from airflow_jobmon_provider.hooks import jobmon as hook_module
from airflow_jobmon_provider.hooks.jobmon import JobmonHook
from tests.running_airflow import AIRFLOW, SECRETS_MASKER
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


Asker = Callable[[JobmonHook, "list[Callable[[], None]]"], "list[str]"]


def blocking(hook: JobmonHook, between: list[Callable[[], None]]) -> list[str]:
    """Ask for a run's status, do the first thing, ask again, and so on."""
    seen = []
    steps: list[Callable[[], None]] = [*between, lambda: None]
    for then in steps:
        seen.append(hook.ask(routes.peek_status(7)).value)
        then()
    return seen


def deferred(hook: JobmonHook, between: list[Callable[[], None]]) -> list[str]:
    async def ask() -> list[str]:
        seen = []
        steps: list[Callable[[], None]] = [*between, lambda: None]
        async with await hook.get_async_conn() as requester:
            for then in steps:
                seen.append((await requester.ask(routes.peek_status(7))).value)
                then()
        return seen

    return asyncio.run(ask())


both = pytest.mark.parametrize("ask", [blocking, deferred])


# --- a host that does not exist -----------------------------------------------------------------------------


@pytest.mark.parametrize("connected", [False, True], ids=["before its transport", "after its transport"])
def test_a_host_with_ids_from_earlier_was_there_so_that_an_unknown_name_is_an_outage(
    connection: Callable[..., None], monkeypatch: pytest.MonkeyPatch, connected: bool
) -> None:
    monkeypatch.setattr(requester_module, "_UNKNOWN_FOR", 1e-6)
    connection("http://jobmon..example")  # whatever name servers there are, none is asked for such a name

    def failures(hook: JobmonHook) -> list[type[JobmonError]]:
        seen = []
        for _ in range(3):
            with pytest.raises(JobmonError, match="is not known") as caught:
                hook.ask(routes.peek_status(7))
            seen.append(caught.type)
        return seen

    assert failures(JobmonHook()) == [ServerUnreachable, HostUnknown, HostUnknown]
    hook = JobmonHook()
    if connected:
        hook.get_conn()
    hook.check_server(None)
    hook.check_server("http://jobmon..example/api/v2")
    assert failures(hook) == [ServerUnreachable] * 3


# --- credentials --------------------------------------------------------------------------------------------


@both
def test_a_rotated_token_is_taken_from_the_connection(
    ask: Asker, jobmon: TokenServer, connection: Callable[..., None]
) -> None:
    connection(jobmon.url, password="old")

    def rotate() -> None:
        jobmon.takes = "new"
        connection(jobmon.url, password="new")

    assert ask(JobmonHook(), [rotate, lambda: None]) == ["R", "R", "R"]
    assert [token for token, _ in dict.fromkeys(jobmon.seen)] == ["old", "old", "new"]
    assert [status for _, status in jobmon.seen].count(401) == 1


@both
def test_a_refusal_is_final_where_the_connection_says_what_it_said(
    ask: Asker, jobmon: TokenServer, connection: Callable[..., None]
) -> None:
    connection(jobmon.url, password="old")

    def rotate() -> None:
        jobmon.takes = "new"

    with pytest.raises(NotAuthorized, match="401"):
        ask(JobmonHook(), [rotate])
    assert jobmon.seen[-1] == ("old", 401)


@both
def test_a_new_token_that_is_refused_too_is_final(
    ask: Asker, jobmon: TokenServer, connection: Callable[..., None]
) -> None:
    connection(jobmon.url, password="old")

    def rotate() -> None:
        jobmon.takes = "newest"
        connection(jobmon.url, password="new")

    with pytest.raises(NotAuthorized, match="401"):
        ask(JobmonHook(), [rotate])
    assert jobmon.seen[-1] == ("new", 401)


@both
def test_nothing_is_sent_to_another_server(
    ask: Asker, jobmon: TokenServer, connection: Callable[..., None], stub: Callable[..., StubServer]
) -> None:
    other = stub({"status": "D"})
    connection(jobmon.url, password="old")

    def move() -> None:
        jobmon.takes = "new"
        connection(other.url, password="new")

    with pytest.raises(ConfigError, match=f"now names the server {other.url}/api/v2, but the task began on"):
        ask(JobmonHook(), [move])
    assert other.requests == []


@both
def test_a_connection_that_is_not_read_for_now_is_an_outage(
    ask: Asker, jobmon: TokenServer, connection: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection(jobmon.url, password="old")
    monkeypatch.setenv("JOBMON__HTTP__SERVICE_URL", "http://stranger.example")

    def rotate() -> None:
        jobmon.takes = "new"
        monkeypatch.delenv("AIRFLOW_CONN_JOBMON_DEFAULT")

    with pytest.raises(
        ServerFailure, match="cannot be read again for now: connection 'jobmon_default' is not"
    ):
        ask(JobmonHook(), [rotate])


@both
def test_what_stands_in_at_the_same_address_is_not_gone_on_with(
    ask: Asker, jobmon: TokenServer, connection: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hiccup must not take the credentials away."""
    connection(jobmon.url, password="old")
    monkeypatch.setenv("JOBMON__HTTP__SERVICE_URL", jobmon.url)
    monkeypatch.setenv("JOBMON__HTTP__ROUTE_PREFIX", "/api/v2")

    def rotate() -> None:
        jobmon.takes = "new"
        monkeypatch.delenv("AIRFLOW_CONN_JOBMON_DEFAULT")

    with pytest.raises(ServerFailure, match="is not found"):
        ask(JobmonHook(), [rotate])


@pytest.mark.parametrize(("ask", "module"), [(blocking, renewing), (deferred, async_renewing)])
def test_a_connection_that_is_never_read_again_ends_in_the_refusal(
    ask: Asker,
    module: Any,
    jobmon: TokenServer,
    connection: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 3)
    connection(jobmon.url, password="old")
    hook = JobmonHook()
    failures: list[JobmonError] = []

    def watch() -> Conversation[None]:
        while True:
            try:
                yield Ask(routes.peek_status(7))
            except ServerFailure as error:
                failures.append(error)
            else:
                jobmon.takes = "new"
                monkeypatch.delenv("AIRFLOW_CONN_JOBMON_DEFAULT")

    async def converse() -> None:
        async with await hook.get_async_conn() as requester:
            await requester.converse(watch())

    def carry() -> None:
        if ask is blocking:
            hook.converse(watch(), log=hook.log)
        else:
            asyncio.run(converse())

    with pytest.raises(NotAuthorized):
        carry()
    assert len(failures) == 2


def test_a_factory_goes_on_with_a_rotated_token(jobmon: TokenServer, connection: Callable[..., None]) -> None:
    """It keeps the transport that it was made with, and waits for hours."""
    connection(jobmon.url, password="old")
    hook = JobmonHook()
    requester = hook.get_workflow_run_factory(5).requester
    assert hook.get_conn() is requester
    jobmon.takes = "n3w"
    connection(jobmon.url, password="n3w")
    status, reply = requester.send_request("/workflow_run/7/log_heartbeat", {"status": "G"}, "post")
    assert (status, reply) == (200, {"status": "R"})
    assert "n3w" not in repr(requester)


def test_threads_that_are_refused_together_read_the_connection_once(
    jobmon: TokenServer, connection: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection(jobmon.url, password="old")
    hook = JobmonHook()
    requester: Any = hook.get_conn()
    jobmon.takes = "new"
    connection(jobmon.url, password="new")
    together = threading.Barrier(4)
    sending = Requester.send_request

    def send(self: Any, *args: Any, **options: Any) -> Any:
        with contextlib.suppress(threading.BrokenBarrierError):
            try:
                return sending(self, *args, **options)
            except NotAuthorized:
                together.wait(20)
                raise
        raise AssertionError

    monkeypatch.setattr(Requester, "send_request", send)
    readings: list[object] = []
    read = JobmonHook._read
    monkeypatch.setattr(JobmonHook, "_read", lambda self: readings.append(1) or read(self))  # type: ignore[func-returns-value]
    threads = [threading.Thread(target=hook.ask, args=(routes.peek_status(7),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [status for _, status in jobmon.seen].count(200) >= 4
    assert len(readings) == 1
    assert requester is hook.get_conn()


async def test_many_triggers_that_are_refused_read_the_connection_a_few_times(
    jobmon: TokenServer, connection: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection(jobmon.url, password="old")
    readings: list[object] = []
    read = JobmonHook._aread

    async def reading(self: JobmonHook) -> Any:
        readings.append(1)
        await asyncio.sleep(0.5)  # most are refused while one reads
        return await read(self)

    monkeypatch.setattr(JobmonHook, "_aread", reading)
    async with contextlib.AsyncExitStack() as stack:
        requesters = [await stack.enter_async_context(await JobmonHook().get_async_conn()) for _ in range(40)]
        jobmon.takes = "new"
        connection(jobmon.url, password="new")
        statuses = await asyncio.gather(*(r.ask(routes.peek_status(7)) for r in requesters))
    assert set(statuses) == {RunStatus.RUNNING}
    assert len(readings) < len(requesters) / 2


async def test_requests_of_one_transport_change_together(
    jobmon: TokenServer, connection: Callable[..., None]
) -> None:
    connection(jobmon.url, password="old")
    async with await JobmonHook().get_async_conn() as requester:
        jobmon.takes = "new"
        connection(jobmon.url, password="new")
        await asyncio.gather(*(requester.ask(routes.peek_status(7)) for _ in range(10)))
        assert requester.settings.headers == {"Authorization": "Bearer new"}


async def test_another_ca_is_taken_from_the_connection(
    jobmon: TokenServer, connection: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection(jobmon.url, password="old")
    ask = AsyncRequester.ask

    async def distrusting(self: AsyncRequester, *args: Any, **options: Any) -> Any:
        if self.settings.verify is True:
            raise CertificateNotTrusted("not trusted")
        return await ask(self, *args, **options)

    monkeypatch.setattr(AsyncRequester, "ask", distrusting)
    async with await JobmonHook().get_async_conn() as requester:
        with pytest.raises(CertificateNotTrusted):
            await requester.ask(routes.peek_status(7))
        connection(jobmon.url, password="old", extra={"verify": False})
        assert await requester.ask(routes.peek_status(7)) is RunStatus.RUNNING


# --- outages ------------------------------------------------------------------------------------------------


async def test_a_connection_that_is_corrected_in_an_outage_is_read(
    stub: Callable[..., StubServer], connection: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(async_renewing, "LOOK_AGAIN_AFTER", 0.0)
    monkeypatch.setattr(hook_module, "_READ_AGAIN_AFTER", 0.0)
    server = stub(Reply(503, b"no"), Reply(503, b"no"), {"status": "R"})
    connection(server.url)
    async with await JobmonHook().get_async_conn() as requester:
        with pytest.raises(ServerFailure):
            await requester.ask(routes.peek_status(7))
        connection(server.url, password="new")
        with pytest.raises(ServerFailure):
            await requester.ask(routes.peek_status(7))
        await requester.ask(routes.peek_status(7))
        assert server.requests[2].headers["Authorization"] == "Bearer new"


async def test_an_outage_of_a_server_that_the_connection_no_longer_names_is_over(
    connection: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(async_renewing, "LOOK_AGAIN_AFTER", 0.0)
    monkeypatch.setattr(hook_module, "_READ_AGAIN_AFTER", 0.0)
    connection("http://127.0.0.1:9")
    async with await JobmonHook().get_async_conn() as requester:
        with pytest.raises(ServerUnreachable):
            await requester.ask(routes.peek_status(7))
        connection("http://127.0.0.1:10")
        with pytest.raises(ConfigError, match="now names the server"):
            await requester.ask(routes.peek_status(7))


async def test_an_outage_of_airflow_beside_that_of_jobmon_is_none_of_its_own(
    connection: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(async_renewing, "LOOK_AGAIN_AFTER", 0.0)
    monkeypatch.setattr(hook_module, "_READ_AGAIN_AFTER", 0.0)
    monkeypatch.setattr(hook_module, "_LOOK_TIMEOUT", 0.1)
    connection("http://127.0.0.1:9")
    async with await JobmonHook().get_async_conn() as requester:
        never = asyncio.Event()
        monkeypatch.setattr(JobmonHook, "_aread", lambda self: never.wait())
        with pytest.raises(ServerUnreachable):
            await asyncio.wait_for(requester.ask(routes.peek_status(7)), 10)
        monkeypatch.setattr(async_renewing, "LOOK_AGAIN_AFTER", 3600.0)
        with pytest.raises(ServerUnreachable):
            await requester.ask(routes.peek_status(7))


async def test_a_bad_look_at_the_connection_in_an_outage_ends_nothing(
    connection: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(async_renewing, "LOOK_AGAIN_AFTER", 0.0)
    monkeypatch.setattr(hook_module, "_READ_AGAIN_AFTER", 0.0)
    connection("http://127.0.0.1:9")
    async with await JobmonHook().get_async_conn() as requester:
        connection("http://127.0.0.1:9", extra={"verify": "/no/such/bundle.pem"})
        with pytest.raises(ServerUnreachable):
            await requester.ask(routes.peek_status(7))


# --- which server -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("http://jobmon:8070/api/v3", "http://JOBMON:8070/api/v3/", True),
        ("http://jobmon/api/v3", "HTTP://jobmon:80//api/v3", True),
        ("https://jobmon./x", "https://jobmon:443/x", True),
        ("http://jobmon/api/v3", "https://jobmon/api/v3", False),
        ("http://jobmon:8070", "http://jobmon:8071", False),
        ("http://jobmon/dev/api/v3", "http://jobmon/prod/api/v3", False),
        ("http://[::1]:80/", "http://[::1]", True),
        ("http://[::1/", "http://[::1", False),
        ("nonsense", "nonsense", True),
    ],
)
def test_addresses_of_one_server_are_the_same(one: str, other: str, same: bool) -> None:
    assert same_server(one, other) is same
    assert same_server(other, one) is same


def test_an_id_of_another_server_is_not_used(connection: Callable[..., None]) -> None:
    connection("http://prod.example:80", extra={"route_prefix": ""})
    hook = JobmonHook()
    hook.check_server(None)
    hook.check_server("http://PROD.example/")
    with pytest.raises(ConfigError) as caught:
        hook.check_server("http://dev.example")
    assert str(caught.value) == (
        "connection 'jobmon_default' now names the server http://prod.example:80, but the task began on"
        " http://dev.example, where the same id belongs to another run, so nothing was sent. Give the"
        " connection its old address back, or start the task over where it now points, in a new DAG run"
    )


def test_what_stands_in_for_a_connection_is_no_other_server(
    connection: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a hiccup of Airflow's until the connection is read and says otherwise."""
    connection("http://prod.example", extra={"route_prefix": ""})
    defined = json.dumps({"conn_type": "jobmon", "host": "prod.example", "extra": {"route_prefix": ""}})
    monkeypatch.delenv("AIRFLOW_CONN_JOBMON_DEFAULT")
    monkeypatch.setenv("JOBMON__HTTP__SERVICE_URL", "http://dev.example")
    hook = JobmonHook()
    with pytest.raises(
        AirflowNotFoundException, match="is not found, and Jobmon's own settings name another"
    ):
        hook.check_server("http://prod.example")
    monkeypatch.setenv("AIRFLOW_CONN_JOBMON_DEFAULT", defined)
    hook.check_server("http://prod.example")


@pytest.mark.parametrize("conn_id", ["jobmon_prod", "jobmon_defualt"])
def test_jobmons_own_settings_stand_in_for_no_other_connection(
    conn_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOBMON__HTTP__SERVICE_URL", "http://from.settings")
    says = f"connection '{conn_id}' is not defined; Jobmon's own settings"
    with pytest.raises(AirflowNotFoundException, match=says):
        JobmonHook(conn_id).get_conn()
    with pytest.raises(AirflowNotFoundException, match=says):
        asyncio.run(JobmonHook(conn_id).get_async_conn())
    assert JobmonHook(conn_id).test_connection()[0] is False


# --- reading on an event loop -------------------------------------------------------------------------------


async def test_a_hiccup_is_over_for_all_when_it_is_over(
    connection: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection("http://there.example", conn_id="prod")
    defined = json.dumps({"conn_type": "jobmon", "host": "there.example"})
    monkeypatch.delenv("AIRFLOW_CONN_PROD")
    results = await asyncio.gather(*(JobmonHook("prod").aserver() for _ in range(20)), return_exceptions=True)
    assert {type(result) for result in results} == {AirflowNotFoundException}
    monkeypatch.setenv("AIRFLOW_CONN_PROD", defined)
    servers = await asyncio.gather(*(JobmonHook("prod").aserver() for _ in range(20)))
    assert len({id(server) for server in servers}) == 1


async def test_what_stands_in_is_looked_at_again_each_time(
    connection: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_JOBMON_DEFAULT")
    monkeypatch.setenv("JOBMON__HTTP__SERVICE_URL", "http://dev.example")
    assert (await JobmonHook().aserver()).stands_in
    connection("http://prod.example")
    assert not (await JobmonHook().aserver()).stands_in


async def test_a_reading_that_hangs_is_given_up_and_begun_again(
    connection: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook_module, "_READING_TIMEOUT", 1.5)
    read = JobmonHook._aread
    never = asyncio.Event()
    monkeypatch.setattr(JobmonHook, "_aread", lambda self: never.wait())
    results = await asyncio.gather(*(JobmonHook().aserver() for _ in range(5)), return_exceptions=True)
    assert {str(result) for result in results} == {"Airflow gave no answer within 1.5 s"}
    monkeypatch.setattr(JobmonHook, "_aread", read)
    assert (await JobmonHook().aserver()).settings.service_url


async def test_a_reading_that_airflow_cancels_cancels_no_trigger(monkeypatch: pytest.MonkeyPatch) -> None:
    async def cancelled(self: JobmonHook) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(JobmonHook, "_aread", cancelled)
    with pytest.raises(RuntimeError, match="Airflow gave no answer"):
        await JobmonHook().aserver()


class OldConnection:
    """As before Airflow 3.3.2: it can only be read by synchronous calls, which must not be on the loop."""

    threads: list[int]


async def test_before_airflow_3_3_2_the_connection_is_read_in_a_thread(
    connection: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdk, "Connection", OldConnection, raising=False)
    threads: list[int] = []
    get = JobmonHook.get_connection

    def reading(conn_id: str) -> Any:
        threads.append(threading.get_ident())
        return get(conn_id)

    monkeypatch.setattr(JobmonHook, "get_connection", staticmethod(reading))
    assert (await JobmonHook().aserver()).settings.service_url
    assert threads
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("header", ["X-Site-Token", "X-Api-Key"])
@pytest.mark.parametrize("old", [False, True])
async def test_what_the_extra_holds_is_hidden_from_logs(
    old: bool, header: str, connection: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Airflow, and by its names: of api_key it knows only this spelling before 3.3."""
    redact = importlib.import_module(SECRETS_MASKER).redact
    if old:
        monkeypatch.setattr(sdk, "Connection", OldConnection, raising=False)
    secret = f"k3y-of-{old}-{header}"
    connection(extra={"headers": {header: secret}})
    assert secret in str(redact(f"X {secret}"))
    await JobmonHook().aserver()
    is_hidden = secret not in str(redact(f"X {secret}"))
    assert is_hidden == (header == "X-Site-Token" or AIRFLOW >= (3, 3))


async def test_newer_names_of_common_compat_are_not_needed(
    connection: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow's constraints for 3.3.2 have common-compat 1.19; this one came with 1.21."""
    monkeypatch.delattr("airflow.providers.common.compat.connection.get_async_extra_dejson", raising=False)
    assert (await JobmonHook().get_async_conn()).settings.service_url

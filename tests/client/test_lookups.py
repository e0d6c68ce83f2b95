"""Names of hosts: looked up once at a time, shared, and in nobody's way."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from airflow_jobmon_provider.client import protocol
from airflow_jobmon_provider.client import requester as requester_module
from airflow_jobmon_provider.client._http import lookups
from airflow_jobmon_provider.client.async_requester import AsyncRequester
from airflow_jobmon_provider.client.conversations import ask_until
from airflow_jobmon_provider.client.exceptions import (
    HostUnknown,
    JobmonError,
    NotAuthorized,
    ServerUnreachable,
)
from airflow_jobmon_provider.client.lifecycle import RunStatus
from airflow_jobmon_provider.client.protocol import routes
from airflow_jobmon_provider.client.requester import Requester, ask, converse
from airflow_jobmon_provider.client.settings import Settings
from tests.client.pool_server import serving
from tests.client.timed_transports import Asking, blocking, nonblocking
from tests.stub_server import Reply, StubServer

UNKNOWN_LINE = "host 'jobmon.none' is not known (Name or service not known); check the host of the connection"
BEAT, LOOK = routes.peek_status(5), routes.is_resumable(7)
HERE = socket.getaddrinfo("127.0.0.1", 0, type=socket.SOCK_STREAM)[0]


NOT_KNOWN = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
NO_ADDRESS = socket.gaierror(socket.EAI_NODATA, "No address associated with hostname")
IN_TROUBLE = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


class NameServer:
    """Stands in for the system's: ``*.silent`` gets no answer, ``*.none`` is none, the rest is here.

    :ivar trouble: what it says of every name, if anything.
    """

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.over = threading.Event()
        self.ports: dict[str, list[int]] = {}
        self.trouble: socket.gaierror | None = None

    def getaddrinfo(self, host: str, port: Any, *_: Any, **__: Any) -> list[Any]:
        self.asked[host] += 1
        if self.trouble is not None:
            raise self.trouble
        if host.endswith(".silent"):
            self.over.wait(60)
        if host.endswith((".silent", ".none")):
            raise NOT_KNOWN
        return [(*HERE[:4], ("127.0.0.1", other)) for other in self.ports.get(host, [port])]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    server = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server.getaddrinfo)
    yield server
    server.over.set()


@pytest.fixture(params=[blocking, nonblocking])
def exchange(request: pytest.FixtureRequest) -> Asking:
    """Ask once in a conversation, through either transport."""
    asking: Asking = request.param
    return asking


async def test_names_that_get_no_answer_hold_up_no_heartbeat_to_a_healthy_server(names: NameServer) -> None:
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as threads:  # the loop's own, of which there are few on a small machine
        loop.set_default_executor(threads)
        async with serving() as server:
            stuck = []
            for host in range(5):
                for call in (BEAT, BEAT, LOOK, LOOK):
                    requester = AsyncRequester(Settings(f"http://h{host}.silent", request_timeout=60))
                    stuck.append(asyncio.create_task(ask_once(requester, call)))
            while len(names.asked) < 5:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            url = server.url.replace("127.0.0.1", "healthy.example")
            started = time.monotonic()
            for call in (BEAT, routes.update_status(5, RunStatus.ABORTED)):
                assert await ask_once(AsyncRequester(Settings(url, request_timeout=5)), call) == "L"
            assert time.monotonic() - started < 5
            assert await loop.run_in_executor(None, str, "free") == "free"
            for task in stuck:
                task.cancel()
            await asyncio.gather(*stuck, return_exceptions=True)
    assert names.asked == {**{f"h{host}.silent": 1 for host in range(5)}, "healthy.example": 1}


async def ask_once(requester: AsyncRequester, call: protocol.Call[Any]) -> Any:
    async with requester:
        return await requester.ask(call)


async def test_many_who_ask_for_a_name_share_its_look_up_and_its_failure(names: NameServer) -> None:
    requesters = [AsyncRequester(Settings("http://jobmon.none")) for _ in range(30)]
    for _ in range(3):
        asked = await asyncio.gather(*(ask_once(r, BEAT) for r in requesters), return_exceptions=True)
        assert {type(error) for error in asked} == {ServerUnreachable}
        assert UNKNOWN_LINE in str(asked[0])
    assert names.asked == {"jobmon.none": 1}


async def test_what_was_found_is_asked_for_again_after_a_moment(
    names: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_ups = lookups.of_running_loop()
    for _ in range(2):
        await look_ups.find("jobmon.example", 80)
    assert names.asked["jobmon.example"] == 1
    monkeypatch.setattr(lookups, "_KEPT", 0.0)
    monkeypatch.setattr(lookups, "_KEPT_FAILURE", 0.0)
    for host in ("other.example", "jobmon.none"):
        for _ in range(2):
            await asyncio.gather(look_ups.find(host, 80), return_exceptions=True)
        assert names.asked[host] == 2


async def test_a_name_that_gets_no_answer_takes_no_longer_than_the_call_may(
    names: NameServer, exchange: Asking
) -> None:
    for call in (BEAT, LOOK):
        started = time.monotonic()
        with pytest.raises(ServerUnreachable, match=r"no connection within 0\.3 s") as caught:
            await exchange(Settings("http://jobmon.silent"), call, 0.3)
        assert time.monotonic() - started < 10
        assert not caught.value.processed


@pytest.mark.parametrize("call", [BEAT, LOOK], ids=["beat", "look"])
async def test_of_several_addresses_the_first_that_answers_is_taken(
    stub: Callable[..., StubServer], names: NameServer, exchange: Asking, call: protocol.Call[Any]
) -> None:
    server = stub({"status": "L", "workflow_is_resumable": True})
    names.ports["many.example"] = [9, int(server.url.rpartition(":")[2])]
    await exchange(Settings("http://many.example"), call)
    names.ports["dead.example"] = [9, 9]
    with pytest.raises(ServerUnreachable, match="Connection refused; is the server up") as caught:
        await exchange(Settings("http://dead.example"), call)
    assert not caught.value.processed
    names.ports["empty.example"] = []
    with pytest.raises(ServerUnreachable):
        await exchange(Settings("http://empty.example"), call)


@pytest.mark.parametrize("call", [BEAT, LOOK], ids=["beat", "look"])
async def test_an_address_that_never_answers_leaves_time_for_the_next(
    stub: Callable[..., StubServer], names: NameServer, exchange: Asking, call: protocol.Call[Any]
) -> None:
    server = stub({"status": "L", "workflow_is_resumable": True})
    with contextlib.ExitStack() as stack:
        deaf = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # they fill its queue, and the next one is not taken
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())
        names.ports["many.example"] = [deaf.getsockname()[1], int(server.url.rpartition(":")[2])]
        await exchange(Settings("http://many.example", request_timeout=10), call)


async def test_what_cannot_be_a_name_is_an_error_like_others(exchange: Asking) -> None:
    for call in (BEAT, LOOK):
        with pytest.raises(
            ServerUnreachable, match=r"host 'a\.\.example' is not known \(it cannot be a name"
        ):
            await exchange(Settings("http://a..example"), call)


async def test_addresses_are_not_looked_up(exchange: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "_start", None)
    for host in ("127.0.0.1", "[::1]"):
        with pytest.raises(ServerUnreachable):
            await exchange(Settings(f"http://{host}:9"), BEAT)
        with pytest.raises(ServerUnreachable):
            await exchange(Settings(f"http://{host}:9"), LOOK)


def test_an_event_loop_may_end_before_a_look_up(names: NameServer) -> None:
    with pytest.raises(ServerUnreachable):
        asyncio.run(nonblocking(Settings("http://jobmon.silent"), BEAT, 0.1))
    names.over.set()
    for thread in threading.enumerate():
        if thread.name.startswith("look-up of"):
            thread.join(5)  # what it raised would fail the test


def test_an_address_of_a_link_keeps_its_scope() -> None:
    local = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1", 80, 0, 3))
    assert lookups.target_of(local).host == "fe80::1%3"
    assert lookups.target_of((socket.AF_INET6, 1, 6, "", ("::1", 80, 0, 0))).host == "::1"


# --- a host that does not exist -----------------------------------------------------------------------------


def test_a_host_that_does_not_exist_is_tried_for_seconds_and_not_for_minutes(names: NameServer) -> None:
    started = time.monotonic()
    with pytest.raises(HostUnknown) as caught:
        ask(Requester("http://jobmon.none"), LOOK)
    assert str(caught.value) == f"GET http://jobmon.none{LOOK.route}: {UNKNOWN_LINE}"
    assert 2 <= time.monotonic() - started < 60
    assert 3 <= names.asked["jobmon.none"] <= 5


def test_nor_is_it_waited_for_in_a_conversation_that_outlives_outages(names: NameServer) -> None:
    with pytest.raises(HostUnknown, match="is not known"):
        converse(Requester("http://jobmon.none"), ask_until(LOOK, 600, time.monotonic))
    assert names.asked["jobmon.none"] <= 6


@pytest.mark.parametrize("options", [{"retries_timeout": 0}, {"retries_attempts": 1}])
def test_shorter_retries_of_the_settings_are_kept_to(names: NameServer, options: dict[str, Any]) -> None:
    with pytest.raises(ServerUnreachable, match="is not known"):
        ask(Requester("http://jobmon.none", **options), LOOK)
    assert names.asked["jobmon.none"] == 1


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a host up that is not known at the second try."""
    monkeypatch.setattr(requester_module, "_UNKNOWN_FOR", 1e-6)


def fails(requester: Requester) -> type[BaseException]:
    """Ask once, and return as what it fails."""
    with pytest.raises(JobmonError) as caught:
        ask(requester, LOOK, tenacious=False)
    return caught.type


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("trouble", [NOT_KNOWN, NO_ADDRESS, IN_TROUBLE], ids=str)
def test_a_server_that_was_reached_is_waited_for_whatever_name_servers_say(
    stub: Callable[..., StubServer], names: NameServer, trouble: socket.gaierror
) -> None:
    server = stub({"workflow_is_resumable": True})
    requester = Requester(server.url.replace("127.0.0.1", "jobmon.example"))
    ask(requester, LOOK)
    requester.close()
    names.trouble = trouble
    assert {fails(requester) for _ in range(3)} == {ServerUnreachable}
    names.trouble = None
    ask(requester, LOOK)
    assert len(server.requests) == 2


@pytest.mark.usefixtures("impatient")
def test_an_error_reply_shows_as_well_that_the_host_is_there(
    stub: Callable[..., StubServer], names: NameServer
) -> None:
    requester = Requester(stub(Reply(401, b"no")).url.replace("127.0.0.1", "jobmon.example"))
    assert fails(requester) is NotAuthorized
    requester.close()
    names.trouble = NOT_KNOWN
    assert fails(requester) is ServerUnreachable


@pytest.mark.usefixtures("impatient")
def test_name_servers_in_trouble_are_an_outage_also_at_first(names: NameServer) -> None:
    requester = Requester("http://jobmon.example")
    names.trouble = IN_TROUBLE
    assert {fails(requester) for _ in range(3)} == {ServerUnreachable}
    names.trouble = NO_ADDRESS
    assert [fails(requester) for _ in range(2)] == [ServerUnreachable, HostUnknown]


@pytest.mark.usefixtures("impatient")
async def test_a_trigger_outlives_it_as_its_worker_has_reached_the_server(names: NameServer) -> None:
    async with AsyncRequester(Settings("http://jobmon.none")) as requester:
        calls: list[protocol.Call[Any]] = [BEAT, LOOK]
        for call in 3 * calls:
            with pytest.raises(ServerUnreachable, match="is not known"):
                await requester.ask(call)


def test_a_proxy_that_is_not_known_is_named(names: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.none:3128")
    with pytest.raises(ServerUnreachable, match=r"host 'proxy\.none' is not known .*; check HTTP_PROXY"):
        ask(Requester("http://jobmon.example", retries_timeout=0), LOOK)

"""How long a call may take, how often it is sent, and who waits for whom: both transports, real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_jobmon_provider.client import async_requester, protocol
from airflow_jobmon_provider.client.async_requester import MAX_CONNECTIONS, AsyncRequester
from airflow_jobmon_provider.client.exceptions import ServerFailure, ServerUnreachable
from airflow_jobmon_provider.client.lifecycle import RunStatus
from airflow_jobmon_provider.client.protocol import routes
from airflow_jobmon_provider.client.requester import Requester, ask, converse
from airflow_jobmon_provider.client.settings import COSTLY_TIMEOUT, Settings, time_for
from dev.jobmon_sandbox import wait_until
from tests.client.pool_server import serving
from tests.client.timed_transports import COSTLY_LOOK, LOOK, Asking, blocking, nonblocking, one
from tests.stub_server import HANG_UP, Reply, StubServer

MakeStub = Callable[..., StubServer]

YES = {"workflow_is_resumable": True}
BEAT = routes.peek_status(5)
COSTLY_POST = dataclasses.replace(routes.set_resume_state(7, True), costly=True)


@pytest.fixture(params=[blocking, nonblocking])
def exchange(request: pytest.FixtureRequest) -> Asking:
    """Ask once in a conversation, through either transport."""
    asking: Asking = request.param
    return asking


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("call", [LOOK, BEAT, COSTLY_LOOK, COSTLY_POST], ids=lambda c: c.route)
async def test_a_conversation_says_how_long_an_answer_may_take(
    silent: str, exchange: Asking, call: protocol.Call[Any]
) -> None:
    started = time.monotonic()
    with pytest.raises(ServerUnreachable, match=r"no reply within 0\.3 s") as caught:
        await exchange(Settings(silent, request_timeout=60), call, 0.3)
    assert 0.25 < time.monotonic() - started < 10
    assert caught.value.processed


async def test_time_that_is_over_already_is_no_time_without_end(silent: str, exchange: Asking) -> None:
    started = time.monotonic()
    with pytest.raises(ServerUnreachable):
        await exchange(Settings(silent, request_timeout=60), LOOK, 0.0)
    assert time.monotonic() - started < 10


async def test_a_conversation_cannot_ask_for_more_time_than_there_is(silent: str, exchange: Asking) -> None:
    with pytest.raises(ServerUnreachable, match=r"no reply within 0\.3 s"):
        await exchange(Settings(silent, request_timeout=0.3), LOOK, 60)


def test_a_call_has_the_time_of_its_kind() -> None:
    assert time_for(20) == 20
    assert time_for(20, costly=True) == COSTLY_TIMEOUT
    assert time_for(3000, costly=True) == 3000
    assert time_for(20, at_most=5) == 5
    assert time_for(20, costly=True, at_most=5) == 5
    assert 0 < time_for(20, at_most=-1) < 0.01


class Drip:
    """A server that sends one byte of a reply at a time, for ever."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                while not self._over.wait(0.05):
                    connection.sendall(b"x")

    def close(self) -> None:
        self._over.set()
        self._listener.close()
        self._thread.join(5)


async def test_the_time_is_for_the_whole_reply(exchange: Asking) -> None:
    drip = Drip()
    with contextlib.closing(drip):
        started = time.monotonic()
        with pytest.raises(ServerUnreachable, match=r"no reply within 0\.5 s"):
            await exchange(Settings(drip.url), LOOK, 0.5)
        assert time.monotonic() - started < 5


# --- costly calls -------------------------------------------------------------------------------------------


async def test_a_costly_call_has_longer_than_others(stub: MakeStub, exchange: Asking) -> None:
    async with serving(delay=0.6, reply=b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}") as server:
        settings = Settings(server.url, request_timeout=0.2)
        assert await exchange(settings, COSTLY_POST) is None
        with pytest.raises(ServerUnreachable):
            await exchange(settings, routes.update_status(5, RunStatus.ABORTED))


@pytest.mark.parametrize("reply", [HANG_UP, Reply(504, b"<html>gateway time-out</html>")], ids=["cut", "504"])
@pytest.mark.parametrize("call", [COSTLY_LOOK, COSTLY_POST], ids=["get", "post"])
async def test_a_costly_call_is_not_sent_again_while_the_server_may_be_at_it(
    stub: MakeStub, exchange: Asking, call: protocol.Call[Any], reply: Reply
) -> None:
    server = stub(reply)
    with pytest.raises((ServerUnreachable, ServerFailure), match="the server may still be at work on it"):
        await exchange(Settings(server.url), call)
    assert len(server.requests) == 1


def test_a_costly_call_is_not_sent_again_by_a_tenacious_requester(stub: MakeStub) -> None:
    server = stub(Reply(502, b"bad gateway"))
    with pytest.raises(ServerFailure, match="the server may still be at work on it, so it is not sent again"):
        ask(Requester(server.url), COSTLY_POST)
    assert len(server.requests) == 1


def test_a_costly_call_is_not_sent_again_by_a_foreign_requester() -> None:
    class Foreign:
        service_url = "http://jobmon"
        asked: list[dict[str, Any]] = []

        def send_request(
            self, app_route: str, message: dict[str, Any], request_type: str, tenacious: bool = True
        ) -> tuple[int, Any]:
            self.asked.append({"route": app_route, "tenacious": tenacious})
            raise TimeoutError("timed out")

    with pytest.raises(ServerUnreachable, match="timed out; the server may still be at work on it"):
        ask(Foreign(), COSTLY_POST)
    with pytest.raises(ServerUnreachable):
        converse(Foreign(), one(LOOK, 5.0))
    assert [asked["tenacious"] for asked in Foreign.asked] == [False, False]


def test_a_costly_call_that_the_server_has_not_begun_with_is_tried_again(
    stub: MakeStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    server = stub(Reply(423, b"deadlock"), {})
    assert ask(Requester(server.url), COSTLY_POST) is None
    assert len(server.requests) == 2
    with pytest.raises(ServerUnreachable, match="Connection refused") as caught:
        ask(Requester("http://127.0.0.1:9", retries_attempts=2), COSTLY_POST)
    assert "at work" not in str(caught.value)


# --- places -------------------------------------------------------------------------------------------------


class Hanging:
    """A server that answers heartbeats at once, and what else is asked never."""

    def __init__(self) -> None:
        self.url = ""
        self.waiting = 0
        self.came = asyncio.Semaphore(0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if b"log_heartbeat" not in head:
                    self.waiting += 1
                    self.came.release()
                    try:
                        await reader.readexactly(10_000)
                    finally:
                        self.waiting -= 1
                length = int(head.lower().partition(b"content-length: ")[2].split()[0])
                await reader.readexactly(length)
                writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"status":"L"}')
        writer.close()


@contextlib.asynccontextmanager
async def hanging() -> Any:
    server = Hanging()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, backlog=1000)
    async with listening:
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        yield server


@pytest.mark.parametrize(("call", "at_a_time"), [(COSTLY_LOOK, 4), (LOOK, 16)], ids=["counts", "other calls"])
async def test_a_heartbeat_waits_for_no_other_kind_of_call(call: protocol.Call[Any], at_a_time: int) -> None:
    async with hanging() as server, AsyncRequester(Settings(server.url)) as requester:
        asking = [asyncio.create_task(requester.ask(call)) for _ in range(500)]
        for _ in range(at_a_time):
            await server.came.acquire()
        assert await requester.ask(BEAT, timeout=10) == "L"
        assert server.waiting == at_a_time
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


async def test_the_wait_for_a_place_is_part_of_the_time(silent: str) -> None:
    async with AsyncRequester(Settings(silent, request_timeout=30)) as requester:
        held = [asyncio.create_task(requester.ask(BEAT)) for _ in range(MAX_CONNECTIONS)]
        await asyncio.sleep(0)
        started = time.monotonic()
        with pytest.raises(
            ServerUnreachable, match=r"no place within half of its 0\.2 s, so it was not sent"
        ) as caught:
            await requester.ask(BEAT, timeout=0.2)
        assert not caught.value.processed
        assert time.monotonic() - started < 5
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)


async def test_a_server_that_is_asked_too_much_is_asked_for_what_it_can_do() -> None:
    """What has waited too long is not sent: else all that is sent would be given up before its turn there."""
    one_at_a_time = asyncio.Lock()
    served = answered = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
                async with one_at_a_time:
                    await asyncio.sleep(0.01)
                served += 1
                writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"status":"L"}')
        writer.close()

    async def beat(requester: AsyncRequester) -> None:
        nonlocal answered
        while True:
            with contextlib.suppress(ServerUnreachable):
                await requester.ask(BEAT)
                answered += 1

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1000)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    # Few, and patient, so that a busy machine is not what keeps them waiting: all of them would take 6 s.
    async with listening, AsyncRequester(Settings(url, request_timeout=4)) as requester:
        beating = [asyncio.create_task(beat(requester)) for _ in range(600)]
        # By then, what waited longest has waited for all of its time.
        await asyncio.to_thread(wait_until, lambda: served >= 440, 60, "the crowd to be served")
        served = answered = 0
        await asyncio.to_thread(wait_until, lambda: served >= 200, 60, "the crowd to be served")
        assert answered > served / 2
        for task in beating:
            task.cancel()
        await asyncio.gather(*beating, return_exceptions=True)


async def test_places_are_given_in_turn_and_none_is_lost() -> None:
    lane = async_requester._Lane(1)
    now = asyncio.get_running_loop().time
    assert not lane.full
    lane.enter()
    order: list[str] = []

    async def wait(name: str) -> None:
        await lane.wait(now() + 5)
        order.append(name)

    first, gone, late, last = (asyncio.create_task(wait(name)) for name in ("first", "gone", "late", "last"))
    await asyncio.sleep(0)
    gone.cancel()
    lane.leave()
    late.cancel()  # while it still waits
    await first
    lane.leave()
    last.cancel()  # with its place given, and not known to it
    await asyncio.gather(gone, late, last, return_exceptions=True)
    assert order == ["first"]
    assert not lane.full


async def test_a_place_that_comes_with_the_end_of_the_time_is_no_error() -> None:
    lane = async_requester._Lane(1)
    lane.enter()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 0.02
    waiting = asyncio.create_task(lane.wait(deadline))
    await asyncio.sleep(0)
    loop.call_at(deadline - 0.001, lane.leave)
    time.sleep(0.03)  # noqa: ASYNC251  # the loop finds both at once
    await waiting
    assert lane.full

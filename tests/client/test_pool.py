"""The connections that the asyncio requesters of an event loop share, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import random
import socket
from contextlib import AsyncExitStack
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_mock import MockerFixture

from airflow_jobmon_provider.client import async_requester
from airflow_jobmon_provider.client._http.heartbeat_pool import LONGEST_REPLY, PlainConnections
from airflow_jobmon_provider.client.async_requester import MAX_CONNECTIONS, AsyncRequester
from airflow_jobmon_provider.client.conversations import Conversation, Pause
from airflow_jobmon_provider.client.exceptions import ServerFailure, ServerUnreachable
from airflow_jobmon_provider.client.protocol import Response, routes
from airflow_jobmon_provider.client.settings import Settings
from tests.client.pool_server import REPLY, serving

PEEK = routes.peek_status(5)


async def test_all_requesters_of_a_loop_share_a_bounded_number_of_connections() -> None:
    async with serving(delay=0.02) as server:
        async with AsyncExitStack() as stack:
            settings = Settings(server.url)
            requesters = [await stack.enter_async_context(AsyncRequester(settings)) for _ in range(300)]
            await asyncio.gather(*(requester.ask(PEEK) for requester in requesters))
        assert server.requests == 300
        assert server.peak <= MAX_CONNECTIONS


async def test_connections_are_used_again_and_closed_with_the_last_user() -> None:
    async with serving() as server:
        async with AsyncRequester(Settings(server.url)) as first:
            async with AsyncRequester(Settings(server.url)) as second:
                await first.ask(PEEK)
                await second.ask(PEEK)
            await first.ask(PEEK)
            assert (server.made, server.open) == (1, 1)
        await asyncio.wait_for(server.gone.wait(), 5)
        assert not async_requester._pools[asyncio.get_running_loop()]


async def test_a_frequent_call_is_prepared_once_as_long_as_it_is_the_same_object(
    mocker: MockerFixture,
) -> None:
    prepare = mocker.spy(AsyncRequester, "_prepare")
    async with serving() as server, AsyncRequester(Settings(server.url)) as requester:
        for _ in range(3):
            await requester.ask(PEEK)
        assert prepare.call_count == 1
        await requester.ask(routes.peek_status(5))
        assert prepare.call_count == 2


async def test_who_sends_other_headers_has_other_connections() -> None:
    async with serving() as server:
        other = Settings(server.url, headers={"Authorization": "Bearer x"})
        async with AsyncRequester(Settings(server.url)) as first, AsyncRequester(other) as second:
            await first.ask(PEEK)
            await second.ask(PEEK)
            assert server.made == 2


async def test_one_that_is_cancelled_does_not_disturb_the_others() -> None:
    async with serving(delay=0.3) as server:
        settings = Settings(server.url)

        async def use() -> object:
            async with AsyncRequester(settings) as requester:
                return await requester.ask(PEEK)

        tasks = [asyncio.create_task(use()) for _ in range(10)]
        for _ in tasks:
            await server.asked.acquire()
        for task in tasks[:5]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results[:5]] == [asyncio.CancelledError] * 5
    assert results[5:] == ["L"] * 5


async def test_a_pool_that_could_not_be_opened_leaves_nothing_behind() -> None:
    requester = AsyncRequester(Settings("https://127.0.0.1:9", verify="/no/such/bundle"))
    with pytest.raises(OSError, match="No such file"):
        await requester.__aenter__()
    assert not async_requester._pools[asyncio.get_running_loop()]


async def test_a_connection_that_the_server_has_closed_meanwhile_goes_unnoticed() -> None:
    async with serving(replies=1) as server, AsyncRequester(Settings(server.url)) as requester:
        assert [await requester.ask(PEEK) for _ in range(3)] == ["L"] * 3
        assert server.made == 3
        assert server.requests == 4


CREATE = routes.create_workflow_run(7, "alice", 93)


async def test_a_request_that_changes_something_is_not_sent_again() -> None:
    async with serving(replies=0) as server, AsyncRequester(Settings(server.url)) as requester:
        with pytest.raises(ServerUnreachable):
            await requester.ask(CREATE)
        assert server.requests == 1


async def test_a_request_that_changes_something_has_a_connection_of_its_own() -> None:
    """Nobody knows whether the server is about to close one that is idle."""
    reply = b'{"workflow_run_id":8,"status":"L"}'
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(reply)
    async with serving(reply=head + reply) as server, AsyncRequester(Settings(server.url)) as requester:
        await requester.ask(routes.health())
        assert (await requester.ask(CREATE)).workflow_run_id == 8
        assert (server.requests, server.made) == (2, 2)


CHUNKED = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\n{"statu\r\n7\r\ns":"L"}\r\n0\r\n\r\n'
GZIPPED = (
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
    % len(packed := gzip.compress(b'{"status":"L"}'))
) + packed


@pytest.mark.parametrize("reply", [CHUNKED, GZIPPED], ids=["chunked", "gzipped"])
async def test_what_plain_connections_do_not_understand_is_asked_by_aiohttp_from_then_on(
    reply: bytes,
) -> None:
    async with serving(reply=reply) as server, AsyncRequester(Settings(server.url)) as requester:
        assert [await requester.ask(PEEK) for _ in range(5)] == ["L"] * 5
        assert server.requests == 6  # only the first one twice
        assert server.made == 2


async def test_plain_connections_are_tried_again_after_a_minute(mocker: MockerFixture) -> None:
    mocker.patch("airflow_jobmon_provider.client._http.heartbeat_pool.REST", 0.0)
    async with serving(reply=CHUNKED) as server, AsyncRequester(Settings(server.url)) as requester:
        assert [await requester.ask(PEEK) for _ in range(2)] == ["L"] * 2
        server.reply = REPLY
        assert [await requester.ask(PEEK) for _ in range(2)] == ["L"] * 2
        assert server.requests == 6


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        REPLY + b"x",
        REPLY + REPLY,
        REPLY.replace(b"14", b"13"),
        REPLY.replace(b"14", b"14\r\n 4"),
        REPLY.replace(b"14", b"14\r\nContent-Length: 3"),
        REPLY.replace(b"14", b"-1"),
        REPLY.replace(b"14", b"99999"),
        REPLY.replace(b"Content-Length: 14", b"X: y"),
        REPLY.replace(b"200 OK", b"204 No Content"),
        REPLY.replace(b"1.1", b"1.0"),
        REPLY.replace(b"Content-Type", b"Transfer-Encoding"),
        REPLY.replace(b"json\r\n", b"json\n"),
        b"x" * 2 * LONGEST_REPLY,
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 14\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + REPLY,
    ],
)
async def test_only_a_plain_reply_is_understood(reply: bytes) -> None:
    async with serving(reply=reply, hangs_up=True) as server:
        settings = Settings(server.url)
        plain = PlainConnections(settings, {}, None, keep_alive=4.0)
        assert await asyncio.wait_for(plain.exchange(plain.request("/x", b"{}")), 5) is None
        assert plain.resting is bool(reply)
        plain.close()
        await asyncio.wait_for(server.gone.wait(), 5)


@pytest.mark.parametrize("cut", [1, 20, len(REPLY) - 1])
async def test_a_reply_may_come_in_pieces(cut: int) -> None:
    async with serving(reply=REPLY[:cut], rest=REPLY[cut:]) as server:
        plain = PlainConnections(Settings(server.url), {}, None, keep_alive=4.0)
        for _ in range(2):
            assert await plain.exchange(plain.request("/x", b"{}")) == Response(200, {}, b'{"status":"L"}')
        assert server.made == 1
        plain.close()


async def test_what_a_refusal_says_is_heard_without_asking_twice() -> None:
    reply = REPLY.replace(b"200 OK", b"503 Busy\r\nRetry-After: 7")
    async with serving(reply=reply) as server, AsyncRequester(Settings(server.url)) as requester:
        with pytest.raises(ServerFailure, match="503") as failure:
            await requester.ask(PEEK)
        assert failure.value.retry_after == 7
        assert server.requests == 1


async def test_a_connection_that_the_server_is_about_to_close_is_not_used_again() -> None:
    reply = REPLY.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    async with serving(reply=reply) as server, AsyncRequester(Settings(server.url)) as requester:
        assert [await requester.ask(PEEK) for _ in range(3)] == ["L"] * 3
        assert (server.made, server.requests) == (3, 3)


async def test_connections_that_have_been_idle_for_long_are_closed() -> None:
    async with serving(delay=0.05) as server:
        plain = PlainConnections(Settings(server.url), {}, None, keep_alive=0.3)
        request = plain.request("/x", b"{}")
        await asyncio.gather(*(plain.exchange(request) for _ in range(5)))
        assert (server.made, server.open) == (5, 5)
        while server.open > 1:  # with one request after the other, one connection is enough
            await plain.exchange(request)
        assert server.made == 5
        await asyncio.sleep(0.31)
        await plain.exchange(request)
        assert server.made == 6
        plain.close()


async def test_what_nobody_asked_for_ends_a_connection() -> None:
    async with (
        serving(unasked=b"HTTP/1.1 200 OK\r\n") as server,
        AsyncRequester(Settings(server.url)) as requester,
    ):
        assert await requester.ask(PEEK) == "L"
        await asyncio.wait_for(server.gone.wait(), 5)
        assert await requester.ask(PEEK) == "L"
        assert server.requests == 2


async def test_a_plain_request_has_one_deadline() -> None:
    async with serving(delay=5) as server:
        plain = PlainConnections(Settings(server.url, request_timeout=0.2), {}, None, keep_alive=4.0)
        with pytest.raises(asyncio.TimeoutError):
            await plain.exchange(plain.request("/x", b"{}"))
        await asyncio.wait_for(server.gone.wait(), 10)


async def test_a_cancellation_is_never_lost() -> None:
    # at whatever step it comes, the one at which the connection is made included
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        settings = Settings(f"http://127.0.0.1:{silent.getsockname()[1]}", request_timeout=5)
        plain = PlainConnections(settings, {}, None, keep_alive=4.0)
        for steps in range(40):
            asking = asyncio.create_task(plain.exchange(plain.request("/x", b"{}")))
            for _ in range(steps):
                await asyncio.sleep(0)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking


async def test_a_host_that_does_not_answer_is_told_as_such() -> None:
    # a listener whose queue is full does not answer; it stands for a firewall that drops packets
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as stack:
        address = listener.getsockname()
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(address)
        settings = Settings(f"http://127.0.0.1:{address[1]}", request_timeout=0.3)
        async with AsyncRequester(settings) as requester:
            with pytest.raises(ServerUnreachable, match=r"no connection within 0\.3 s; is the server up"):
                await requester.ask(PEEK)


@pytest.mark.parametrize(
    "headers",
    [{"Host": "elsewhere"}, {"Transfer-Encoding": "chunked"}, {"X": "a\r\nY: b"}, {"Ä": "b"}, {"X": "ä"}],
)
async def test_settings_that_are_not_plain_are_left_to_aiohttp(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="not plain"):
        PlainConnections(Settings("http://127.0.0.1:9"), headers, None, keep_alive=4.0)


async def test_a_proxy_is_left_to_aiohttp(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        async with AsyncRequester(Settings("http://jobmon.invalid")) as requester:
            assert await requester.ask(PEEK) == "L"


async def test_pauses_of_many_end_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """When they are to end, not when they do: a busy machine wakes them late."""
    loop = asyncio.get_running_loop()
    ends: list[float] = []
    call_at = loop.call_at

    def note(when: float, *args: Any, **options: Any) -> asyncio.TimerHandle:
        ends.append(when)
        return call_at(when, *args, **options)

    def rest() -> Conversation[None]:
        yield Pause(chance.uniform(0.5, 0.7))

    chance = random.Random(1)
    async with AsyncRequester(Settings("http://127.0.0.1:9")) as requester:
        monkeypatch.setattr(loop, "call_at", note)
        await asyncio.gather(*(requester.converse(rest()) for _ in range(100)))
    assert len(ends) >= 100
    from_a_tick = [min(end % 0.05, 0.05 - end % 0.05) for end in ends]
    assert median(from_a_tick) < 0.002  # anywhere, it would be 0.0125


@given(st.floats(0, 1e6), st.floats(0, 1e7))
def test_a_pause_ends_on_time_or_a_little_earlier(pause: float, now: float) -> None:
    rest = async_requester.to_tick(pause, now)
    assert pause - 0.05 - 1e-6 <= rest <= pause
    assert rest == pause or pause >= 0.5


def test_event_loops_share_nothing() -> None:
    async def use() -> int:
        async with serving() as server, AsyncRequester(Settings(server.url)) as requester:
            await requester.ask(PEEK)
            return server.made

    assert [asyncio.run(use()), asyncio.run(use())] == [1, 1]

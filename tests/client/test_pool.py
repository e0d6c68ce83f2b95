"""The connections that the asyncio requesters of an event loop share, on real sockets."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from airflow_jobmon_provider.client import async_requester, protocol
from airflow_jobmon_provider.client.async_requester import MAX_CONNECTIONS, AsyncRequester
from airflow_jobmon_provider.client.exceptions import ServerUnreachable
from airflow_jobmon_provider.client.settings import Settings

PEEK = protocol.peek_status(5)
REPLY = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{"status":"L"}'


class Server:
    """Answers every request alike, and counts connections.

    :param delay: seconds before each reply.
    :param replies: how many requests it answers on a connection; it hangs up on the next one.
    :param reply: what it answers.
    """

    def __init__(self, delay: float = 0.0, replies: int = 1_000_000, reply: bytes = REPLY) -> None:
        self.delay = delay
        self.replies = replies
        self.reply = reply
        self.url = ""
        self.open = self.peak = self.made = self.requests = 0
        self.gone = asyncio.Event()
        self.asked = asyncio.Semaphore(0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.made += 1
        self.open += 1
        self.peak = max(self.peak, self.open)
        answered = 0
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
                self.requests += 1
                self.asked.release()
                if answered == self.replies:
                    return
                answered += 1
                await asyncio.sleep(self.delay)
                writer.write(self.reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()
            if not self.open:
                self.gone.set()


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[Server]:
    server = Server(**options)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, backlog=1000)
    async with listening:
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        yield server


async def test_all_share_a_bounded_number_of_connections() -> None:
    async with serving(delay=0.02) as server:
        async with AsyncExitStack() as stack:
            settings = Settings(server.url)
            requesters = [await stack.enter_async_context(AsyncRequester(settings)) for _ in range(300)]
            await asyncio.gather(*(requester.ask(PEEK) for requester in requesters))
        assert server.requests == 300
        assert server.peak <= MAX_CONNECTIONS


async def test_who_waits_for_a_connection_is_not_timed_out() -> None:
    async with serving(delay=0.4) as server:
        settings = Settings(server.url, request_timeout=0.8)
        async with AsyncRequester(settings) as requester:
            waiting = [requester.ask(PEEK) for _ in range(4 * MAX_CONNECTIONS)]
            assert await asyncio.gather(*waiting) == ["L"] * len(waiting)


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
        assert server.requests == 5


async def test_but_nothing_is_sent_twice_that_must_not_be() -> None:
    create = protocol.create_workflow_run(7, "alice", 93)
    async with serving(replies=1) as server, AsyncRequester(Settings(server.url)) as requester:
        await requester.ask(PEEK)
        with pytest.raises(ServerUnreachable):
            await requester.ask(create)
        assert server.requests == 2


async def test_a_reply_whose_length_is_not_told_is_read_to_its_end() -> None:
    chunks = b'7\r\n{"statu\r\n7\r\ns":"L"}\r\n0\r\n\r\n'
    reply = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
    async with serving(reply=reply) as server, AsyncRequester(Settings(server.url)) as requester:
        assert [await requester.ask(PEEK) for _ in range(2)] == ["L", "L"]
        assert server.made == 1


def test_event_loops_share_nothing() -> None:
    async def use() -> int:
        async with serving() as server, AsyncRequester(Settings(server.url)) as requester:
            await requester.ask(PEEK)
            return server.made

    assert [asyncio.run(use()), asyncio.run(use())] == [1, 1]

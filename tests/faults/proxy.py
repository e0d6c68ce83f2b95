"""A TCP proxy to a Jobmon server that spoils exchanges, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

GIGABYTE = 2**30


@dataclass
class Exchange:
    """One request that has come in, and what a fault may do with it."""

    request: bytes
    writer: asyncio.StreamWriter
    target: str
    elsewhere: str
    turn: asyncio.Lock
    sent: int = 0

    async def forward(self) -> bytes:
        """Pass the request on to the server and return its whole reply."""
        # One at a time: SQLite, behind the server, makes writers wait for each other, for seconds.
        async with self.turn:
            return await self._ask()

    async def _ask(self) -> bytes:
        host = urlsplit(self.target)
        reader, writer = await asyncio.open_connection(host.hostname, host.port)
        try:
            # A packed reply would come in chunks.
            writer.write(re.sub(rb"(?i)accept-encoding:[^\r]*", b"Accept-Encoding: identity", self.request))
            head = await reader.readuntil(b"\r\n\r\n")
            return head + await reader.readexactly(length_of(head))
        finally:
            writer.close()

    async def reply(self, data: bytes) -> None:
        """Send something back."""
        self.writer.write(data.replace(b"ELSEWHERE", self.elsewhere.encode()))
        self.sent += len(data)
        await self.writer.drain()

    def reset(self) -> None:
        """Break the connection off, without the usual goodbye."""
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


# Returns whether the connection goes on.
Fault = Callable[[Exchange], Awaitable[bool | None]]


class Loop:
    """An event loop in a thread of its own, on which proxies run."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.turn = asyncio.Lock()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run something on it, and wait."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def close(self) -> None:
        """Stop it."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@dataclass
class FaultProxy:
    """Spoils so many exchanges, and passes the ones after them on.

    :param loop: where it runs.
    :param target: address of the server.
    :param fault: what happens to a request; after it the connection is closed.
    :param times: how many are spoilt.
    :param elsewhere: another address, for redirects: takes the place of ``ELSEWHERE`` in replies.
    :param greeting: sent before anybody has asked.
    :ivar requests: how many came.
    :ivar most_sent: bytes of the longest spoilt reply that were taken.
    """

    loop: Loop
    target: str
    fault: Fault
    times: float
    elsewhere: str = ""
    greeting: bytes = b""
    url: str = ""
    requests: int = 0
    most_sent: int = 0
    _server: asyncio.Server | None = field(default=None, repr=False)
    _serving: set[asyncio.Task[None]] = field(default_factory=set, repr=False)

    def __enter__(self) -> FaultProxy:
        self.loop.call(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call(self._stop())

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                writer.write(self.greeting)
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    request = head + await reader.readexactly(length_of(head))
                    self.requests += 1
                    exchange = Exchange(request, writer, self.target, self.elsewhere, self.loop.turn)
                    if self.requests > self.times:
                        await exchange.reply(await exchange.forward())
                        continue
                    try:
                        goes_on = await self.fault(exchange)
                    finally:
                        self.most_sent = max(self.most_sent, exchange.sent)
                    if not goes_on:
                        return
        finally:
            writer.close()


def length_of(head: bytes) -> int:
    """How long the body is that follows."""
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return int(length[1]) if length else 0


# --- Faults -------------------------------------------------------------------------------------------------


def replying(data: bytes, *, goes_on: bool = False) -> Fault:
    """The server is not asked, and this comes back."""

    async def fault(exchange: Exchange) -> bool:
        await exchange.reply(data)
        return goes_on

    return fault


def status(line: str, body: bytes = b'{"detail": "no"}', *headers: str) -> Fault:
    """A reply with another status."""
    lines = [f"HTTP/1.1 {line}", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
    return replying("\r\n".join(lines).encode() + b"\r\n\r\n" + body, goes_on=True)


def saying(body: bytes, kind: str = "application/json") -> Fault:
    """A reply with status 200 and this body."""
    return status("200 OK", body, f"X-Kind: {kind}")


async def reset_before(exchange: Exchange) -> None:
    """The connection breaks before the server is asked."""
    exchange.reset()


async def reset_within(exchange: Exchange) -> None:
    """It breaks in the middle of the reply."""
    reply = await exchange.forward()
    await exchange.reply(reply[: len(reply) - 5])
    await asyncio.sleep(0.02)
    exchange.reset()


async def reset_after(exchange: Exchange) -> None:
    """It breaks when the reply has arrived."""
    await exchange.reply(await exchange.forward())
    await asyncio.sleep(0.02)
    exchange.reset()


async def swallowed(exchange: Exchange) -> None:
    """The server has acted, and its reply is lost."""
    await exchange.forward()


async def delayed(exchange: Exchange) -> None:
    """The server has acted, and its reply comes too late."""
    reply = await exchange.forward()
    await asyncio.sleep(3)
    await exchange.reply(reply)


async def dripping(exchange: Exchange) -> None:
    """The reply comes byte by byte, each within the time-out, all of them far beyond it."""
    for byte in await exchange.forward():
        await exchange.reply(bytes([byte]))
        await asyncio.sleep(0.3)


async def cut_short(exchange: Exchange) -> None:
    """The reply ends before it is complete."""
    await exchange.reply((await exchange.forward())[:-3])


async def endless(exchange: Exchange) -> None:
    """A body of a gigabyte, well announced."""
    await exchange.reply(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % GIGABYTE)
    for _ in range(GIGABYTE // 2**20):
        await exchange.reply(b" " * 2**20)


async def endless_chunks(exchange: Exchange) -> None:
    """A body of a gigabyte, unannounced."""
    await exchange.reply(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(GIGABYTE // 2**20):
        await exchange.reply(b"100000\r\n" + b" " * 2**20 + b"\r\n")


async def endless_head(exchange: Exchange) -> None:
    """Header after header."""
    await exchange.reply(b"HTTP/1.1 200 OK\r\n")
    for _ in range(GIGABYTE // 2**16):
        await exchange.reply(b"X: " + b"y" * 2**16 + b"\r\n")

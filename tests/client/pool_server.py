"""A server that counts its connections, and misbehaves as it is told."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

REPLY = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{"status":"L"}'


class Server:
    """Answers every request alike, and counts connections.

    :param delay: seconds before each reply.
    :param replies: how many requests it answers on a connection; it hangs up on the next one.
    :param reply: what it answers.
    :param rest: comes a moment after the reply.
    :param unasked: comes a moment after the first reply, and belongs to nothing.
    :param hangs_up: close the connection a moment after each reply.
    """

    def __init__(
        self,
        delay: float = 0.0,
        replies: int = 1_000_000,
        reply: bytes = REPLY,
        rest: bytes = b"",
        unasked: bytes = b"",
        hangs_up: bool = False,
    ) -> None:
        self.delay = delay
        self.replies = replies
        self.reply = reply
        self.rest = rest
        self.unasked = unasked
        self.hangs_up = hangs_up
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
                for later in (self.rest, self.unasked):
                    if later:
                        await asyncio.sleep(0.02)
                        writer.write(later)
                self.unasked = b""
                if self.hangs_up:
                    await asyncio.sleep(0.02)
                    return
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

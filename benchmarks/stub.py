"""A server that answers heartbeats several times faster than any client asks, and counts what it sees.

Runs in a process of its own: ``python -m benchmarks.stub PORT``. A raw asyncio protocol, as an HTTP library
would be slower than the clients it is to measure.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from typing import Any

from dev.launcher import free_ports

_HEAD = re.compile(rb"^(\w+) (\S+?)(?:\?\S*)? HTTP/1\.1\r\n(?:.*\r\n)*?(?i:content-length): (\d+)")
_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Seen:
    """What the server has seen since the last reset.

    :param delay: seconds before each reply.
    :ivar hangs: what is asked for at this path gets no reply; "": nothing hangs.
    """

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.hangs = ""
        self.status = "L"
        self.requests = 0
        self.in_flight = self.most_in_flight = 0
        self.connections = self.most_connections = 0
        self.first: dict[bytes, float] = {}
        self.last: dict[bytes, float] = {}
        self.gaps: list[float] = []
        self.by_second: Counter[int] = Counter()

    def beat(self, path: bytes, body: bytes) -> None:
        now = time.monotonic()
        self.requests += 1
        if b'"G"' in body:
            return  # a first look, which only reads: it keeps no run alive
        self.by_second[int(now)] += 1
        before = self.last.get(path)
        if before is None:
            self.first[path] = now
        else:
            self.gaps.append(now - before)
        self.last[path] = now

    def report(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "in_flight": self.in_flight,
            "most_in_flight": self.most_in_flight,
            "most_connections": self.most_connections,
            "runs": len(self.first),
            "first_beats": sorted(self.first.values()),
            "gaps": sorted(self.gaps, reverse=True)[:100],
            "by_second": dict(self.by_second),
        }


seen = Seen()


class Stub(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self.data = b""
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        seen.connections += 1
        seen.most_connections = max(seen.most_connections, seen.connections)

    def connection_lost(self, error: Exception | None) -> None:
        seen.connections -= 1

    def data_received(self, data: bytes) -> None:
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            head = _HEAD.match(self.data)
            total = end + 4 + (int(head[3]) if head else 0)
            if len(self.data) < total:
                return
            path = head[2] if head else self.data.split(b" ", 2)[1]
            body, self.data = self.data[end + 4 : total], self.data[total:]
            if path == b"/control":
                self.reply(control(json.loads(body)))
                continue
            seen.beat(path, body)
            seen.in_flight += 1
            seen.most_in_flight = max(seen.most_in_flight, seen.in_flight)
            if seen.hangs and seen.hangs.encode() in path:
                continue
            if seen.delay:
                asyncio.get_running_loop().call_later(seen.delay, self.answer)
            else:
                self.answer()

    def answer(self) -> None:
        seen.in_flight -= 1
        self.reply(b'{"status": "%s"}' % seen.status.encode())

    def reply(self, body: bytes) -> None:
        self.transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (len(body), body)
        )


def control(order: dict[str, Any]) -> bytes:
    global seen
    if "reset" in order:
        connections = seen.connections
        seen = Seen(order["reset"])
        seen.connections = seen.most_connections = connections
    seen.status = order.get("status", seen.status)
    seen.hangs = order.get("hangs", seen.hangs)
    return json.dumps(seen.report()).encode()


async def serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Stub, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


class Server:
    """The server, as whoever measures sees it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def order(self, **order: Any) -> dict[str, Any]:
        """Give an order (``reset=delay``, ``status=code``, ``hangs=path``), and return what has been seen."""
        request = urllib.request.Request(f"{self.url}/control", json.dumps(order).encode(), method="POST")
        with _NO_PROXY.open(request, timeout=60) as reply:
            report: dict[str, Any] = json.loads(reply.read())
        return report


@contextlib.contextmanager
def running(port: int | None = None) -> Iterator[Server]:
    """Run the server as long as the block lasts.

    :param port: where. Default: at one that is free.
    """
    port = port or free_ports(1)[0]
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.stub", str(port)])
    server = Server(f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                server.order()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield server
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))

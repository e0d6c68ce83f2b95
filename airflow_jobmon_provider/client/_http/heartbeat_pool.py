"""Short requests over kept connections, for the one exchange of which there are thousands: the heartbeat.

aiohttp knows all of HTTP, and spends several times the CPU time on a request that this does (``make bench``).
This knows one kind of reply only: a short body whose length is told. Whatever else comes is not dealt with
here: the caller sends the request again over aiohttp and lets that find out. So nothing but idempotent
requests may be sent this way.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import deque
from collections.abc import Mapping
from typing import cast
from urllib.parse import urlsplit

from airflow_jobmon_provider.client._http import errors, lookups
from airflow_jobmon_provider.client.protocol import Response
from airflow_jobmon_provider.client.settings import HEADER_NAME, Settings, header_problem

LONGEST_REPLY = 16 * 1024
"""Bytes, its head included: the reply to a heartbeat has about 150."""

REST = 60.0
"""Seconds in which nothing is sent this way after a reply that was not understood: who does not talk plainly
would be asked everything twice."""

# How a request is framed, which is our business: if a connection sets one of these, aiohttp sends it all.
_FRAMING = {"connection", "content-length", "expect", "host", "te", "trailer", "transfer-encoding", "upgrade"}

# Every line of a head, so that no proxy or server reads one of them differently.
_HEAD = re.compile(rb"HTTP/1\.1 ([2-5]\d\d) [^\r\n]*\r\n(?:" + HEADER_NAME.encode() + rb":[^\r\n]*\r\n)*")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,5})[ \t]*\r\n")
_UNFIT = re.compile(rb"\r\n(?:transfer|content)-encoding:")
_CLOSE = re.compile(rb"\r\nconnection:[^\r]*close")
_HEADER = re.compile(rb"\r\n([^:\r]+):[ \t]*([^\r]*)")
_WITHOUT_BODY = (204, 304)


class Prepared(bytes):
    """A request as it is sent, headers and all, which nothing that shows a variable may show."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<request of {len(self)} bytes>"


class ConnectTimeout(asyncio.TimeoutError):
    """No connection within the time-out."""

    def __init__(self) -> None:
        super().__init__()
        errors.mark_as_never_connected(self)


class _Connection(asyncio.Protocol):
    """One connection, with one request at a time."""

    __slots__ = ("_loop", "_received", "_reply", "_transport", "ended", "idle_since", "kept", "understood")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._received = b""
        self._reply: asyncio.Future[Response | None] | None = None
        self._transport: asyncio.Transport
        self.ended = False
        self.understood = True
        self.kept = True
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    def send(self, request: Prepared) -> asyncio.Future[Response | None]:
        """Send a request; what comes of it is the reply, or None: ask by another way."""
        self._received = b""
        self._reply = self._loop.create_future()
        self._transport.write(request)
        return self._reply

    def data_received(self, data: bytes) -> None:
        if self._reply is None:  # nobody has asked
            self.end()
            return
        received = self._received = self._received + data if self._received else data
        head, complete, body = received.partition(b"\r\n\r\n")
        if complete:
            status, length = self._read(head + b"\r\n")
            if len(body) < length:
                return  # the rest is on its way
            if len(body) == length:
                # Headers say nothing about a 200 that its body does not say.
                headers = (
                    {}
                    if status == 200
                    else {k.lower().decode("latin1"): v.decode("latin1") for k, v in _HEADER.findall(head)}
                )
                self._answer(Response(status, headers, body))
                return
        elif len(received) <= LONGEST_REPLY:
            return
        self.understood = False
        self.end()

    def _read(self, head: bytes) -> tuple[int, int]:
        """Return the status and how long the body is; -1: this is not a plain reply."""
        status, head = _HEAD.fullmatch(head), head.lower()
        length = _LENGTH.search(head)
        if status is None or length is None or head.count(b"content-length") != 1 or _UNFIT.search(head):
            return 0, -1
        code, expected = int(status[1]), int(length[1])
        if code in _WITHOUT_BODY or expected > LONGEST_REPLY:
            return 0, -1
        self.kept = _CLOSE.search(head) is None
        return code, expected

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = True
        self._answer(None)

    def _answer(self, response: Response | None) -> None:
        reply, self._reply, self._received = self._reply, None, b""
        if reply is not None and not reply.done():
            reply.set_result(response)

    def end(self) -> None:
        """Close at once. A request that waits for a reply gets None."""
        self.ended = True
        self._answer(None)
        self._transport.abort()


def _discard(making: asyncio.Task[tuple[asyncio.Transport, _Connection]]) -> None:
    """Close a connection that nobody waits for any longer, should it have been made."""
    if not making.cancelled() and making.exception() is None:
        making.result()[1].end()


class PlainConnections:
    """Those to one server from one event loop. How many there are is the caller's business.

    :param settings: address, and the time-out of each request.
    :param headers: sent with every request.
    :param tls: how to check the server's certificate; None for http.
    :param keep_alive: seconds after which an idle connection is not used again.
    :raises ValueError: these settings are not plain enough; use aiohttp for everything.
    """

    def __init__(
        self, settings: Settings, headers: Mapping[str, str], tls: ssl.SSLContext | None, *, keep_alive: float
    ) -> None:
        address = urlsplit(settings.service_url)
        plain = not any(header_problem(name, value) for name, value in headers.items())
        if not (plain and settings.service_url.isascii() and _FRAMING.isdisjoint(map(str.lower, headers))):
            raise ValueError("not plain")
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._lines = f"Host: {address.netloc}\r\n{lines}"
        self._host = address.hostname or ""
        self._port = address.port or (443 if tls else 80)
        self._tls = tls
        self._timeout = settings.request_timeout
        self._keep_alive = keep_alive
        self._loop = asyncio.get_running_loop()
        self._look_ups = lookups.of_running_loop()
        self._idle: deque[_Connection] = deque()
        self._waiting: dict[asyncio.Future[Response | None], float] = {}  # → deadline
        self._watch: asyncio.TimerHandle | None = None  # one for all: a timer each costs as much as sending
        self._resting_until = 0.0

    @property
    def resting(self) -> bool:
        """Whether the server has given a reply that was not understood, a moment ago."""
        return self._loop.time() < self._resting_until

    def request(self, target: str, body: bytes) -> Prepared:
        """Return a POST as ``exchange`` sends it.

        :param target: path and query, quoted.
        """
        head = f"POST {target} HTTP/1.1\r\n{self._lines}Content-Length: {len(body)}\r\n\r\n"
        return Prepared(head.encode("ascii") + body)

    async def exchange(self, request: Prepared, deadline: float | None = None) -> Response | None:
        """Send a request and return its reply, or None: send it again over aiohttp.

        :param deadline: until when, by the event loop's clock. Default: the settings' time-out from now on.
        :raises asyncio.TimeoutError: no reply by then.
        :raises ConnectTimeout: not even a connection.
        """
        if deadline is None:
            deadline = self._loop.time() + self._timeout
        connection = self._take() or await self._connect(deadline)
        if connection is None:
            return None
        reply = connection.send(request)
        self._waiting[reply] = deadline
        if self._watch is None or deadline < self._watch.when():
            self._expire()
        try:
            response = await reply
        except BaseException:
            connection.end()  # its reply would be taken for the next one's
            raise
        finally:
            del self._waiting[reply]
        if not connection.understood:
            self._resting_until = self._loop.time() + REST
        elif connection.kept:
            self._keep(connection)
        else:
            connection.end()
        return response

    async def _connect(self, deadline: float) -> _Connection | None:
        making = self._loop.create_task(self._make(deadline))
        try:
            # Not wait_for: before Python 3.12 it loses a cancellation that comes as the connection is made.
            await asyncio.wait({making}, timeout=deadline - self._loop.time())
        except BaseException:
            making.add_done_callback(_discard)
            making.cancel()
            raise
        if not making.done():
            making.cancel()
            raise ConnectTimeout
        try:
            return making.result()[1]
        except OSError:
            return None

    async def _make(self, deadline: float) -> tuple[asyncio.Transport, _Connection]:
        """Connect to the first of the host's addresses that takes a connection."""
        failure = OSError()
        infos = await self._look_ups.find(self._host, self._port)
        for tried, info in enumerate(infos, start=1):
            reaching = self._loop.create_task(self._reach(info))
            # One that never answers leaves time for the others.
            share = (deadline - self._loop.time()) / (len(infos) - tried + 1)
            try:
                await asyncio.wait({reaching}, timeout=share)
                if reaching.done():
                    return reaching.result()
                failure = OSError("timed out")
            except OSError as error:
                failure = error
            finally:
                if not reaching.done():
                    reaching.add_done_callback(_discard)
                    reaching.cancel()
        raise failure

    async def _reach(self, info: lookups.AddressInfo) -> tuple[asyncio.Transport, _Connection]:
        target = lookups.target_of(info)
        return await self._loop.create_connection(
            lambda: _Connection(self._loop),
            target.host,
            target.port,
            ssl=self._tls,
            server_hostname=self._host.rstrip(".") if self._tls else None,
        )

    def _take(self) -> _Connection | None:
        """Return the idle connection that was used last, if it is likely to be open still."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.ended:
                if self._loop.time() - connection.idle_since < self._keep_alive:
                    return connection
                connection.end()
        return None

    def _keep(self, connection: _Connection) -> None:
        connection.idle_since = now = self._loop.time()
        self._idle.append(connection)
        while now - self._idle[0].idle_since >= self._keep_alive:
            self._idle.popleft().end()

    def _expire(self) -> None:
        """End the wait for replies that are overdue, and come again when the next one may be."""
        now = self._loop.time()
        for reply, deadline in self._waiting.items():
            if deadline <= now and not reply.done():
                reply.set_exception(asyncio.TimeoutError())
        if self._watch is not None:
            self._watch.cancel()
        due = min((deadline for deadline in self._waiting.values() if deadline > now), default=None)
        self._watch = None if due is None else self._loop.call_at(due, self._expire)

    def close(self) -> None:
        """Close what is idle. Nobody may be waiting for a reply."""
        if self._watch is not None:
            self._watch.cancel()
        while self._idle:
            self._idle.pop().end()

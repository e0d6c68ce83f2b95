"""The asyncio transport: aiohttp, and for heartbeats connections of our own that cost less.

It does not retry: a trigger, which waits in asyncio, lives through outages.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from airflow_jobmon_provider.client import protocol
from airflow_jobmon_provider.client._http import errors, lookups
from airflow_jobmon_provider.client._http.environment import Stamps, Way, way_to
from airflow_jobmon_provider.client._http.heartbeat_pool import PlainConnections, Prepared
from airflow_jobmon_provider.client.conversations import Conversation, Driver, Interrupted, Log, Pause
from airflow_jobmon_provider.client.exceptions import (
    JobmonError,
    ServerUnreachable,
    UnreadableCertificate,
)
from airflow_jobmon_provider.client.protocol import Call, Response, responses
from airflow_jobmon_provider.client.settings import Settings, time_for

__all__ = ["AsyncRequester"]

T = TypeVar("T")
logger = logging.getLogger(__name__)


# Requests at a time to one server from one event loop: enough for thousands of requests a second, and few
# enough for the server when thousands of triggers start at the same moment. Of them are
MAX_CONNECTIONS = 100
_FOR_COSTLY = 4  # for calls that keep the server busy for long
_FOR_OTHERS = 16  # for what is neither such a call nor a heartbeat
_FOR_BEATS = MAX_CONNECTIONS - _FOR_OTHERS - _FOR_COSTLY  # for heartbeats, which wait for nothing else

# An idle connection is given up before the server does that: uvicorn, under which Jobmon runs, waits 5 s.
_KEEP_ALIVE = 4.0

# Seconds after which the CA bundle and the client certificate are looked at again, should they be renewed.
_LOOK_AT_FILES_EVERY = 30.0
_LONGEST_LOOK = 2.0  # seconds that a request or a new user waits for a look; the file system may hang

# Seconds. Pauses of half a second or more end on a common tick, so that the heartbeats of many triggers go
# out together: waking up, here and at the server, costs more than sending one.
_TICK = 0.05

_VERSION = f"client_jobmon_version={protocol.CLIENT_VERSION}"
_HEADERS = {
    "Accept-Encoding": "identity",  # the replies are too short to be worth packing
    "Content-Type": "application/json",
    "User-Agent": protocol.USER_AGENT,
}


class _NoPlace(asyncio.TimeoutError):
    """Others had all the places as long as there was time."""


class _Lane:
    """Places for requests of one kind, given in the order in which they were asked for.

    asyncio's semaphore knows no time-out, and what waits with one from outside costs more, also where there
    is nothing to wait for.

    :param places: how many requests at a time.
    """

    __slots__ = ("_free", "_loop", "_waiting", "places")

    def __init__(self, places: int) -> None:
        self.places = self._free = places
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._loop = asyncio.get_running_loop()

    @property
    def full(self) -> bool:
        """Whether a request would have to wait."""
        return self._free == 0

    def enter(self) -> None:
        """Take a free place. There must be one."""
        self._free -= 1

    async def wait(self, deadline: float) -> None:
        """Wait for a place, and take it.

        :param deadline: until when, by the event loop's clock.
        :raises _NoPlace: the time is over.
        """
        turn = self._loop.create_future()
        self._waiting.append(turn)
        timer = self._loop.call_at(deadline, _expire, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave()  # it came together with the cancellation
            raise
        finally:
            timer.cancel()

    def leave(self) -> None:
        """Give a place back, or to the next one who waits."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


def _expire(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_exception(_NoPlace())


class _Resolver(AbstractResolver):
    """Looks hosts up for aiohttp as for the connections of our own."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        targets = map(lookups.target_of, await lookups.of_running_loop().find(host, port))
        return [
            ResolveResult(
                hostname=host,
                host=target.host,
                port=target.port,
                family=target.family,
                proto=target.protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for target in targets
            if family in (socket.AF_UNSPEC, target.family)
        ]

    async def close(self) -> None:
        """Nothing is open."""


class _Connections:
    """The connections to one server from one event loop that have read the same certificates.

    :param settings: address, headers and time-outs.
    :param way: how the server is reached.
    :param tls: how its certificate is checked; None for http.
    :ivar users: requests that are under way.
    :ivar retired: others have taken their place; the last user closes them.
    :ivar session: for most of them.
    :ivar single: for requests that must not be sent twice: each has a connection of its own, which is fresh.
    :ivar plain: for heartbeats; None: a proxy or an unusual header takes aiohttp for them, too.
    """

    def __init__(self, settings: Settings, way: Way, tls: ssl.SSLContext | None) -> None:
        headers = {**_HEADERS, **settings.headers}
        self.users = 0
        self.session = _new_session(headers, tls)
        self.single = _new_session(headers, tls, keep_alive=False)
        self.plain: PlainConnections | None = None
        if way.proxy is None:
            with contextlib.suppress(ValueError):
                self.plain = PlainConnections(settings, headers, tls, keep_alive=_KEEP_ALIVE)
        self.retired = False

    async def retire(self) -> None:
        """Close them as soon as nobody uses them."""
        self.retired = True
        if not self.users:
            await self.close()

    async def close(self) -> None:
        """Close them."""
        if self.plain is not None:
            self.plain.close()
        await self.session.close()
        await self.single.close()


class _Pool:
    """What all share who talk to one server from one event loop in the same way.

    :param settings: how to talk to it.
    :param way: how it is reached.
    :ivar beats, costly, others: places for requests. aiohttp queues, too, but lets nothing go first.
    """

    def __init__(self, settings: Settings, way: Way) -> None:
        self.users = 0
        self.loop = asyncio.get_running_loop()
        self.beats, self.costly, self.others = (
            _Lane(places) for places in (_FOR_BEATS, _FOR_COSTLY, _FOR_OTHERS)
        )
        self._settings = settings
        self._way = way
        self._connections: _Connections | None = None
        self._stamps: Stamps | None = None
        self._next_look = math.inf
        self._looking: asyncio.Task[None] | None = None

    @property
    def connections(self) -> _Connections:
        """Those of now. They change when a certificate is renewed."""
        assert self._connections is not None, "not opened"
        if self.loop.time() >= self._next_look:
            self._look()
        return self._connections

    async def read_files(self) -> None:
        """Read the CA bundle and the client certificate, at first, and if they have been renewed.

        :raises UnreadableCertificate: one of them cannot be read, at first.
        """
        if self._connections is None:
            # Shielded: who gives up does not end the reading of the others.
            await asyncio.shield(self._look())
        elif self._way.files:
            await asyncio.wait({self._look()}, timeout=_LONGEST_LOOK)

    def _look(self) -> asyncio.Task[None]:
        """Look for renewed files; one look at a time."""
        if self._looking is None or self._looking.done():
            if self._way.files:
                self._next_look = self.loop.time() + _LOOK_AT_FILES_EVERY
            self._looking = self.loop.create_task(self._read())
            self._looking.add_done_callback(_retrieve)
        return self._looking

    async def _read(self) -> None:
        tls, stamps = None, self._stamps
        if self._way.tls:
            # Reading files takes milliseconds that an event loop does not have to give.
            try:
                tls, stamps = await asyncio.to_thread(self._read_from_disk)
            except UnreadableCertificate as error:
                if self._connections is None:
                    raise
                logger.warning("%s; going on with what was read before", error)
                return
            if self._connections is not None and tls is None:
                return
        before, self._connections = self._connections, _Connections(self._settings, self._way, tls)
        self._stamps = stamps
        if before is not None:
            await before.retire()

    def _read_from_disk(self) -> tuple[ssl.SSLContext | None, Stamps]:
        """Return how certificates are checked now, None if as before, and the stamps of what was read."""
        stamps = self._way.stamps()
        return (None if stamps == self._stamps else self._way.make_context()), stamps

    async def close(self) -> None:
        """Close it. Nobody may be using it."""
        if self._looking is not None and not self._looking.done():
            self._looking.cancel()
            await asyncio.wait({self._looking})
        if self._connections is not None:
            await self._connections.close()


def _retrieve(looking: asyncio.Task[None]) -> None:
    """Take note of a failure, so that asyncio does not complain where nobody waits for it."""
    if not looking.cancelled():
        looking.exception()


_pools: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, _Pool]] = WeakKeyDictionary()


def _new_session(
    headers: Mapping[str, str], tls: ssl.SSLContext | None, *, keep_alive: bool = True
) -> aiohttp.ClientSession:
    kept: dict[str, Any] = {"keepalive_timeout": _KEEP_ALIVE} if keep_alive else {"force_close": True}
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            ssl=tls or True, limit=MAX_CONNECTIONS, resolver=_Resolver(), use_dns_cache=False, **kept
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,  # the protocol unpacks, within limits
        headers=headers,
        trace_configs=[_tracing()],
    )
    if not keep_alive:
        session._retry_connection = False  # aiohttp would send a GET again whose connection broke
    return session


def _tracing() -> aiohttp.TraceConfig:
    """Return what takes note of it that a request was sent, which aiohttp's errors do not tell."""

    async def take_note(session: aiohttp.ClientSession, context: Any, params: Any) -> None:
        context.trace_request_ctx.append(params.url)

    tracing = aiohttp.TraceConfig()
    tracing.on_request_headers_sent.append(take_note)
    return tracing


class _Request(NamedTuple):
    """A call as it is sent."""

    call: Call[Any]
    url: str
    body: bytes | None
    plain: Prepared | None
    """The whole request, for ``PlainConnections``."""


class AsyncRequester:
    """Sends requests to one Jobmon server; an asynchronous context manager.

    All requesters of an event loop that talk to the same server in the same way share one pool of
    connections, with at most ``MAX_CONNECTIONS`` requests at a time. It is closed with its last user.

    :param settings: address, credentials and time-outs. Retries are the caller's.
    :raises ConfigError: the environment names a proxy that cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._timeout = settings.request_timeout
        self._secrets = settings.secrets
        self._way = way_to(settings)
        self._pool: _Pool | None = None
        self._prepared: _Request | None = None
        headers = tuple(sorted(settings.headers.items()))
        self._key = (settings.service_url, self._way, settings.request_timeout, headers)

    @property
    def url(self) -> str:
        """Address of the server with its route prefix, without credentials."""
        return self.settings.service_url

    async def __aenter__(self) -> AsyncRequester:
        """Join the pool of the running event loop.

        :raises UnreadableCertificate: the CA bundle or the client certificate cannot be read.
        """
        pools = _pools.setdefault(asyncio.get_running_loop(), {})
        pool = pools.get(self._key)
        if pool is None:
            pool = pools[self._key] = _Pool(self.settings, self._way)
        pool.users += 1
        try:
            await pool.read_files()
        except BaseException:
            await self._leave()
            raise
        self._pool = pool
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the pool; the last one closes it."""
        if self._pool is not None:
            self._pool = None
            await self._leave()

    async def _leave(self) -> None:
        pools = _pools[asyncio.get_running_loop()]
        pool = pools[self._key]
        pool.users -= 1
        if not pool.users:
            del pools[self._key]  # before it is closed: who comes meanwhile opens another
            await pool.close()

    async def ask(self, call: Call[T], timeout: float | None = None) -> T:
        """Send a call once and return what its reply says.

        :param timeout: seconds that it may take at most, with the wait for a free connection. Default: what
            the settings give such a call.
        :raises JobmonError: see ``Requester.send_request`` and the call.
        """
        try:
            reply = await self._send(call, timeout)
        except JobmonError as error:
            explained = call.explain(error, self.url)
            raise (protocol.still_at_work(explained) if call.costly else explained) from None
        return call.understand(reply, self.url)

    async def _send(self, call: Call[T], timeout: float | None) -> Any:
        pool = self._pool
        if pool is None:
            raise RuntimeError("use AsyncRequester as an asynchronous context manager")
        request = self._prepared
        if request is None or request.call is not call:
            request = self._prepare(call, pool)
        limit = self._timeout
        if timeout is not None or call.costly:
            limit = time_for(limit, costly=call.costly, at_most=timeout)
        deadline = pool.loop.time() + limit
        lane = pool.beats if call.frequent else pool.costly if call.costly else pool.others
        try:
            if lane.full:
                # Half of the time is left for the exchange: a server that has more to do than it can would
                # else be sent nothing but requests that are given up before it comes to them.
                await lane.wait(deadline - limit / 2)
            else:
                lane.enter()
            try:
                response = await self._exchange(request, pool, deadline)
            finally:
                lane.leave()
        except _NoPlace:
            places = f"{lane.places} such requests to this server left it no place"
            reason = f"{places} within half of its {limit:g} s, so it was not sent"
            raise ServerUnreachable(f"{call.verb.upper()} {request.url}: {reason}", processed=False) from None
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            failure, proxy = errors.of_aiohttp(error), self._way.proxy_address
            raise errors.not_answered(call.verb, request.url, failure, limit=limit, proxy=proxy) from None
        return protocol.decipher(call.verb, request.url, response, self._secrets)

    def _prepare(self, call: Call[Any], pool: _Pool) -> _Request:
        url = protocol.url_of(self.url, call.route)
        if call.verb == "get":
            return _Request(call, url, None, None)
        body = json.dumps(call.message).encode()
        if not call.frequent:
            return _Request(call, url, body, None)
        # A heartbeat is the same call again and again.
        target = f"{urlsplit(url).path}?{_VERSION}"
        connections = pool.connections
        plain = None if connections.plain is None else connections.plain.request(target, body)
        self._prepared = _Request(call, url, body, plain)
        return self._prepared

    async def _exchange(self, request: _Request, pool: _Pool, deadline: float) -> Response:
        connections = pool.connections
        try:
            return await self._use(connections, request, deadline)
        except (aiohttp.ClientError, OSError) as error:
            # Perhaps because of a file that has been renewed, as the next look at it would show. A server
            # that does not take a client certificate may just close the connection.
            if not self._way.files or not _may_be_sent_again(request, error):
                raise
            await pool.read_files()
            if pool.connections is connections:
                raise
            return await self._use(pool.connections, request, deadline)

    async def _use(self, connections: _Connections, request: _Request, deadline: float) -> Response:
        connections.users += 1
        try:
            plain = connections.plain
            if request.plain is not None and plain is not None and not plain.resting:
                response = await plain.exchange(request.plain, deadline)
                if response is not None:
                    return response
            try:
                return await self._request(connections, request, deadline)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                # Perhaps a connection that the server closed while it was idle, which nobody could know.
                if errors.never_connected(error) or not _may_be_sent_again(request, error):
                    raise
                return await self._request(connections, request, deadline)
        finally:
            connections.users -= 1
            if connections.retired and not connections.users:
                await connections.close()

    async def _request(self, connections: _Connections, request: _Request, deadline: float) -> Response:
        verb, url, body = request.call.verb, request.url, request.body
        if body is None:
            query = {"client_jobmon_version": protocol.CLIENT_VERSION, **request.call.message}
            target = URL(url).with_query(query)
        else:
            target = URL(f"{url}?{_VERSION}", encoded=True)
        loop = asyncio.get_running_loop()
        once = request.call.costly or not request.call.idempotent
        session = connections.single if once else connections.session
        rest = aiohttp.ClientTimeout(total=max(deadline - loop.time(), 0.001))  # 0: for ever
        options: dict[str, Any] = {"data": body, "allow_redirects": False, "timeout": rest}
        if self._way.proxy is not None:
            # aiohttp gives a proxy its headers only where it asks for a tunnel.
            kind = "proxy_headers" if self._way.tls else "headers"
            options.update({"proxy": self._way.proxy.address, kind: self._way.proxy.headers})
        sent: list[URL] = []
        try:
            async with session.request(verb, target, trace_request_ctx=sent, **options) as reply:
                return Response(reply.status, reply.headers, await _read(reply))
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            if not sent:
                errors.mark_as_never_connected(error)
            raise

    async def converse(
        self,
        conversation: Conversation[T],
        *,
        log: Log = logger,
        sleep: Callable[[float], Awaitable[object]] | None = None,
    ) -> T:
        """Carry a conversation to its end and return its result.

        :param log: where its notes go.
        :param sleep: waits so many seconds, or raises ``Interrupted``. Default: ``asyncio.sleep``.
        :raises JobmonError, Interrupted: what the conversation raises.
        """
        now, sleep = asyncio.get_running_loop().time, sleep or asyncio.sleep
        with Driver(conversation, log) as driver:
            for step in driver:
                try:
                    if isinstance(step, Pause):
                        await sleep(to_tick(step.seconds, now()))
                    else:
                        driver.reply = await self.ask(step.call, step.timeout)
                except (JobmonError, Interrupted) as error:
                    driver.error = error
            return driver.result


def _may_be_sent_again(request: _Request, error: Exception) -> bool:
    """Whether a request that failed so may be sent again at once: it changes nothing to have it twice."""
    return errors.never_connected(error) or (request.call.idempotent and not request.call.costly)


def to_tick(pause: float, now: float) -> float:
    """Return a pause in seconds that ends together with those of others, a little earlier than asked for."""
    return pause if pause < 10 * _TICK else pause - (now + pause) % _TICK


async def _read(reply: aiohttp.ClientResponse) -> bytes:
    """Read a body up to the protocol's limit; a longer one is left unread, and its connection is dropped."""
    length = reply.content_length
    if length is not None and length <= responses.MAX_REPLY_BYTES:
        return await reply.read()
    body = bytearray()
    async for chunk in reply.content.iter_any():
        body += chunk
        if len(body) > responses.MAX_REPLY_BYTES:
            reply.close()
            break
    return bytes(body)

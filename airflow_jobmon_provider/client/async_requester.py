"""The asyncio transport: aiohttp, and for heartbeats connections of our own that cost less.

It does not retry: whoever waits in asyncio lives through outages.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import ssl
import urllib.request
from collections import deque
from collections.abc import Hashable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import aiohttp
from yarl import URL

from airflow_jobmon_provider.client import protocol
from airflow_jobmon_provider.client.conversations import Ask, Conversation, Log, Pause, Step
from airflow_jobmon_provider.client.exceptions import JobmonError, ServerUnreachable
from airflow_jobmon_provider.client.plain_http import ConnectTimeout, PlainConnections, Prepared
from airflow_jobmon_provider.client.protocol import Call, Response
from airflow_jobmon_provider.client.settings import Settings, time_for

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


class _Pool:
    """The connections to one server from one event loop, shared by all who talk to it in the same way.

    :ivar beats, costly, others: places for requests. aiohttp queues, too, but lets nothing go first.
    :ivar plain: for heartbeats; None: a proxy or an unusual header takes aiohttp for them, too.
    """

    def __init__(self) -> None:
        self.users = 0
        self.loop = asyncio.get_running_loop()
        self.beats, self.costly, self.others = (
            _Lane(places) for places in (_FOR_BEATS, _FOR_COSTLY, _FOR_OTHERS)
        )
        self.plain: PlainConnections | None = None
        self._session: aiohttp.ClientSession | None = None
        self._single: aiohttp.ClientSession | None = None
        self._opening = asyncio.Lock()

    @property
    def session(self) -> aiohttp.ClientSession:
        assert self._session is not None, "not opened"
        return self._session

    @property
    def single(self) -> aiohttp.ClientSession:
        """For requests that must not be sent twice: each has a connection of its own, which is fresh."""
        assert self._single is not None, "not opened"
        return self._single

    async def open(self, settings: Settings) -> None:
        """Make the session, unless somebody has done so already.

        :raises OSError: the CA bundle cannot be read.
        """
        async with self._opening:
            if self._session is None:
                tls = await _tls(settings)
                headers = {**_HEADERS, **settings.headers}
                self._session = _new_session(settings, headers, tls)
                self._single = _new_session(settings, headers, tls, keep_alive=False)
                if not self._session.trust_env:
                    with contextlib.suppress(ValueError):
                        self.plain = PlainConnections(settings, headers, tls, keep_alive=_KEEP_ALIVE)

    async def close(self) -> None:
        if self.plain is not None:
            self.plain.close()
        for session in (self._session, self._single):
            if session is not None:
                await session.close()


_pools: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, _Pool]] = WeakKeyDictionary()


async def _tls(settings: Settings) -> ssl.SSLContext | None:
    """Return how to check the server's certificate; None for http."""
    if urlsplit(settings.service_url).scheme != "https":
        return None

    def make() -> ssl.SSLContext:
        context = ssl.create_default_context(
            cafile=settings.verify if isinstance(settings.verify, str) else None
        )
        context.set_alpn_protocols(["http/1.1"])
        if not settings.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if settings.client_cert:
            context.load_cert_chain(settings.client_cert, settings.client_key)
        return context

    # Reading certificates from disk takes milliseconds that an event loop does not have to give.
    return await asyncio.to_thread(make)


def _new_session(
    settings: Settings, headers: Mapping[str, str], tls: ssl.SSLContext | None, *, keep_alive: bool = True
) -> aiohttp.ClientSession:
    kept: dict[str, Any] = {"keepalive_timeout": _KEEP_ALIVE} if keep_alive else {"force_close": True}
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=tls or True, limit=MAX_CONNECTIONS, **kept),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,  # the protocol unpacks, within limits
        headers=headers,
        # aiohttp reads the proxy variables anew for every request: only where there are some.
        trust_env=bool(urllib.request.getproxies_environment()),
    )
    if not keep_alive:
        session._retry_connection = False  # aiohttp would send a GET again whose connection broke
    return session


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
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._timeout = settings.request_timeout
        self._secrets = settings.secrets
        self._pool: _Pool | None = None
        self._prepared: _Request | None = None
        headers = tuple(sorted(settings.headers.items()))
        client = (settings.client_cert, settings.client_key)
        self._key = (settings.service_url, settings.verify, client, settings.request_timeout, headers)

    @property
    def url(self) -> str:
        """Address of the server with its route prefix, without credentials."""
        return self.settings.service_url

    async def __aenter__(self) -> AsyncRequester:
        """Join the pool of the running event loop.

        :raises OSError: the CA bundle cannot be read.
        """
        pools = _pools.setdefault(asyncio.get_running_loop(), {})
        pool = pools.setdefault(self._key, _Pool())
        pool.users += 1
        try:
            await pool.open(self.settings)
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
                await lane.wait(deadline)
            else:
                lane.enter()
            try:
                response = await self._exchange(request, pool, deadline)
            finally:
                lane.leave()
        except asyncio.TimeoutError as error:
            raise _too_late(request, error, limit, lane) from None
        except (aiohttp.ClientError, OSError) as error:
            never_connected = isinstance(error, aiohttp.ClientConnectorError)
            cause = getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error
            reason = protocol.reason_of(cause)
            raise protocol.unreachable(
                call.verb, request.url, reason, connected=not never_connected
            ) from None
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
        plain = None if pool.plain is None else pool.plain.request(target, body)
        self._prepared = _Request(call, url, body, plain)
        return self._prepared

    async def _exchange(self, request: _Request, pool: _Pool, deadline: float) -> Response:
        if request.plain is not None and pool.plain is not None and not pool.plain.resting:
            response = await pool.plain.exchange(request.plain, deadline)
            if response is not None:
                return response
        try:
            return await self._request(request, pool, deadline)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            # Perhaps a connection that the server closed while it was idle, which nobody could know.
            once = request.call.costly or not request.call.idempotent
            if once or isinstance(error, aiohttp.ClientConnectorError):
                raise
            return await self._request(request, pool, deadline)

    async def _request(self, request: _Request, pool: _Pool, deadline: float) -> Response:
        verb, url, body = request.call.verb, request.url, request.body
        if body is None:
            query = {"client_jobmon_version": protocol.CLIENT_VERSION, **request.call.message}
            target = URL(url).with_query(query)
        else:
            target = URL(f"{url}?{_VERSION}", encoded=True)
        session = pool.single if request.call.costly else pool.session
        rest = aiohttp.ClientTimeout(total=max(deadline - pool.loop.time(), 0.001))  # 0: for ever
        async with session.request(verb, target, data=body, allow_redirects=False, timeout=rest) as reply:
            return Response(reply.status, reply.headers, await _read(reply))

    async def converse(self, conversation: Conversation[T], *, log: Log = logger) -> T:
        """Carry a conversation to its end and return its result.

        :param log: where its notes go.
        :raises JobmonError: what the conversation raises.
        """
        try:
            step: Step = next(conversation)
            while True:
                reply: Any = None
                if isinstance(step, Ask):
                    try:
                        reply = await self.ask(step.call, step.timeout)
                    except JobmonError as error:
                        step = conversation.throw(error)
                        continue
                elif isinstance(step, Pause):
                    await asyncio.sleep(to_tick(step.seconds, asyncio.get_running_loop().time()))
                else:
                    log.log(step.level, "%s", step.text)
                step = conversation.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            conversation.close()


def _too_late(request: _Request, error: asyncio.TimeoutError, limit: float, lane: _Lane) -> ServerUnreachable:
    """Return what a time-out means.

    :param limit: seconds that were given.
    :param lane: in which the request was, or waited.
    """
    verb, url = request.call.verb, request.url
    if isinstance(error, _NoPlace):
        reason = f"{lane.places} such requests to this server took all of {limit:g} s, so it was not sent"
        return ServerUnreachable(f"{verb.upper()} {url}: {reason}", processed=False)
    connected = not isinstance(error, (aiohttp.ConnectionTimeoutError, ConnectTimeout))
    reason = f"no {'reply' if connected else 'connection'} within {limit:g} s"
    return protocol.unreachable(verb, url, reason, connected=connected)


def to_tick(pause: float, now: float) -> float:
    """Return a pause in seconds that ends together with those of others, a little earlier than asked for."""
    return pause if pause < 10 * _TICK else pause - (now + pause) % _TICK


async def _read(reply: aiohttp.ClientResponse) -> bytes:
    """Read a body up to the protocol's limit; a longer one is left unread, and its connection is dropped."""
    length = reply.content_length
    if length is not None and length <= protocol.MAX_REPLY_BYTES:
        return await reply.read()
    body = bytearray()
    async for chunk in reply.content.iter_any():
        body += chunk
        if len(body) > protocol.MAX_REPLY_BYTES:
            reply.close()
            break
    return bytes(body)

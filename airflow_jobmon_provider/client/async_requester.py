"""The asyncio transport: aiohttp. It does not retry: whoever waits in asyncio lives through outages."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import urllib.request
from collections.abc import Hashable
from types import TracebackType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import aiohttp
from yarl import URL

from airflow_jobmon_provider.client import protocol
from airflow_jobmon_provider.client.conversations import Ask, Conversation, Log, Pause, Step
from airflow_jobmon_provider.client.exceptions import JobmonError
from airflow_jobmon_provider.client.protocol import Call, Response
from airflow_jobmon_provider.client.settings import Settings

T = TypeVar("T")
logger = logging.getLogger(__name__)


# Connections to one server from one event loop at most: enough for thousands of requests a second, and few
# enough for the server when thousands of triggers start at the same moment.
MAX_CONNECTIONS = 100

# An idle connection is given up before the server does that: uvicorn, under which Jobmon runs, waits 5 s.
_KEEP_ALIVE = 4.0

_HEADERS = {
    "Accept-Encoding": "identity",  # the replies are too short to be worth packing
    "Content-Type": "application/json",
}


class _Pool:
    """The connections to one server from one event loop, shared by all who talk to it in the same way."""

    def __init__(self) -> None:
        self.users = 0
        # aiohttp queues, too, but each request that waits there is made already and its time-out runs.
        self.slots = asyncio.Semaphore(MAX_CONNECTIONS)
        self._session: aiohttp.ClientSession | None = None
        self._opening = asyncio.Lock()

    @property
    def session(self) -> aiohttp.ClientSession:
        assert self._session is not None, "not opened"
        return self._session

    async def open(self, settings: Settings) -> None:
        """Make the session, unless somebody has done so already.

        :raises OSError: the CA bundle cannot be read.
        """
        async with self._opening:
            self._session = self._session or await _new_session(settings)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


_pools: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, _Pool]] = WeakKeyDictionary()


async def _new_session(settings: Settings) -> aiohttp.ClientSession:
    verify: bool | ssl.SSLContext = bool(settings.verify)
    if isinstance(settings.verify, str):
        # Reading certificates from disk takes milliseconds that an event loop does not have to give.
        verify = await asyncio.to_thread(ssl.create_default_context, cafile=settings.verify)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=verify, limit=MAX_CONNECTIONS, keepalive_timeout=_KEEP_ALIVE),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={**_HEADERS, **settings.headers},
        timeout=aiohttp.ClientTimeout(total=settings.request_timeout),
        # aiohttp reads the proxy variables anew for every request: only where there are some.
        trust_env=bool(urllib.request.getproxies_environment()),
    )


class AsyncRequester:
    """Sends requests to one Jobmon server; an asynchronous context manager.

    All requesters of an event loop that talk to the same server in the same way share one pool of at most
    ``MAX_CONNECTIONS`` connections, which is closed with its last user.

    :param settings: address, credentials and time-outs. Retries are the caller's.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._timeout = settings.request_timeout
        self._pool: _Pool | None = None
        self._prepared_for: Call[Any] | None = None
        self._prepared: tuple[str, URL, bytes | None] = ("", URL(), None)
        headers = tuple(sorted(settings.headers.items()))
        self._key = (settings.service_url, settings.verify, settings.request_timeout, headers)

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

    async def ask(self, call: Call[T]) -> T:
        """Send a call once and return what its reply says.

        :raises JobmonError: see ``Requester.send_request`` and the call.
        """
        try:
            reply = await self._send(call)
        except JobmonError as error:
            raise call.explain(error, self.url) from None
        return call.understand(reply, self.url)

    async def _send(self, call: Call[T]) -> Any:
        if self._pool is None:
            raise RuntimeError("use AsyncRequester as an asynchronous context manager")
        if call is not self._prepared_for:  # a heartbeat is the same call again and again
            self._prepare(call)
        url, target, body = self._prepared
        try:
            try:
                response = await self._exchange(call.verb, target, body)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                # Perhaps a connection that the server closed while it was idle, which nobody could know.
                if not call.idempotent or isinstance(error, aiohttp.ClientConnectorError):
                    raise
                response = await self._exchange(call.verb, target, body)
        except asyncio.TimeoutError as error:
            never_connected = isinstance(error, aiohttp.ConnectionTimeoutError)
            reason = f"no {'connection' if never_connected else 'reply'} within {self._timeout:g} s"
            raise protocol.unreachable(call.verb, url, reason, connected=not never_connected) from None
        except (aiohttp.ClientError, OSError) as error:
            never_connected = isinstance(error, aiohttp.ClientConnectorError)
            cause = getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error
            reason = protocol.reason_of(cause)
            raise protocol.unreachable(call.verb, url, reason, connected=not never_connected) from None
        return protocol.decipher(call.verb, url, response)

    def _prepare(self, call: Call[Any]) -> None:
        url = protocol.url_of(self.url, call.route)
        if call.verb == "get":
            query = {"client_jobmon_version": protocol.CLIENT_VERSION, **call.message}
            self._prepared = url, URL(url).with_query(query), None
        else:
            target = URL(f"{url}?client_jobmon_version={protocol.CLIENT_VERSION}", encoded=True)
            self._prepared = url, target, json.dumps(call.message).encode()
        self._prepared_for = call

    async def _exchange(self, verb: str, target: URL, body: bytes | None) -> Response:
        assert self._pool is not None
        session = self._pool.session
        async with (
            self._pool.slots,
            session.request(verb, target, data=body, allow_redirects=False) as reply,
        ):
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
                        reply = await self.ask(step.call)
                    except JobmonError as error:
                        step = conversation.throw(error)
                        continue
                elif isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                else:
                    log.log(step.level, "%s", step.text)
                step = conversation.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            conversation.close()


async def _read(reply: aiohttp.ClientResponse) -> bytes:
    """Read a body up to the protocol's limit; a longer one is left unread, and its connection is dropped."""
    length = reply.content_length
    if length is not None and length <= protocol.MAX_REPLY_BYTES and "Content-Encoding" not in reply.headers:
        return await reply.read()
    body = bytearray()
    async for chunk in reply.content.iter_any():
        body += chunk
        if len(body) > protocol.MAX_REPLY_BYTES:
            reply.close()
            break
    return bytes(body)

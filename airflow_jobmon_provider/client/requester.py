"""The blocking transport: requests for HTTP, tenacity for retries."""

from __future__ import annotations

import functools
import logging
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import requests
import tenacity
import urllib3

from airflow_jobmon_provider.client import protocol
from airflow_jobmon_provider.client._http import errors
from airflow_jobmon_provider.client._http.deadline import Deadline, DeadlineAdapter
from airflow_jobmon_provider.client._http.environment import Stamps, way_to
from airflow_jobmon_provider.client.conversations import Ask, Conversation, Log, carry
from airflow_jobmon_provider.client.exceptions import (
    ServerFailure,
    UnreadableCertificate,
)
from airflow_jobmon_provider.client.protocol import Call, Response, responses
from airflow_jobmon_provider.client.redaction import excerpt
from airflow_jobmon_provider.client.settings import (
    DEFAULT_REQUEST_TIMEOUT,
    DEFAULT_RETRIES_ATTEMPTS,
    DEFAULT_RETRIES_TIMEOUT,
    Settings,
    time_for,
)

__all__ = ["Requester", "ask", "converse", "retries"]

T = TypeVar("T")
logger = logging.getLogger(__name__)

_CHUNK = 64 * 1024

_UNKNOWN_FOR = 4.0
"""Seconds for which a host that no name server knows is tried again, if it was never reached: a resolver may
have a hiccup. The pauses between tries grow, so the last one is after ten seconds or so."""

_HEADERS = {
    "Accept-Encoding": "identity",  # the replies are too short to be worth packing
    "User-Agent": protocol.USER_AGENT,
}


class Requester:
    """Sends requests to one Jobmon server, over one connection pool, and retries what is worth it.

    Retried: connection errors, time-outs, 5xx, 423 and 429, with exponential back-off and jitter from one
    second up. Not retried: any other 4xx, a 500 that says that the record does not exist, a reply that is not
    Jobmon's. Redirects are not followed: they would carry credentials elsewhere or turn a POST into a GET.

    A host that no name server knows is tried again for some seconds only, unless it was reached before: then
    it is an outage, as anything else is that keeps a server from being reached.

    :param service_url: address of the server with its route prefix, such as ``http://jobmon:8070/api/v3``.
    :param retries_timeout: seconds after which a request is not tried again; 0: never retry. Default 300.
    :param retries_attempts: how often a request is tried at most. Default 10.
    :param request_timeout: seconds for a request, from connecting to the end of its reply. Default 20.
    :param headers: sent with every request. Default: none.
    :param verify: check the server's certificate: True (default), False, or the path of a CA bundle.
    :param client_cert: path of the certificate (PEM) that the server may ask for. Default: none.
    :param client_key: path of its key. Default: the key is in the same file.
    :raises ConfigError: it is not a valid http(s) address.
    :raises ValueError: a number is negative or not finite.
    """

    has_been_reached = False
    """Whether the server has answered before, to this requester or to another one for the same user of it."""

    _unknown_since: float | None = None  # not set by `_open`: other settings are of the same server

    def __init__(
        self,
        service_url: str,
        retries_timeout: float = DEFAULT_RETRIES_TIMEOUT,
        retries_attempts: int = DEFAULT_RETRIES_ATTEMPTS,
        request_timeout: float = DEFAULT_REQUEST_TIMEOUT,
        *,
        headers: Mapping[str, str] | None = None,
        verify: bool | str = True,
        client_cert: str | None = None,
        client_key: str | None = None,
    ) -> None:
        self._open(
            Settings(
                service_url,
                retries_timeout,
                retries_attempts,
                request_timeout,
                headers or {},
                verify=verify,
                client_cert=client_cert,
                client_key=client_key,
            )
        )

    @classmethod
    def from_defaults(cls) -> Requester:
        """Return a requester as Jobmon's own settings say (environment over file over defaults).

        :raises ConfigError: no server is configured, or a setting is malformed.
        """
        settings = Settings.from_defaults()
        for danger in settings.dangers:
            logger.warning("the server of Jobmon's own settings %s", danger)
        return cls.from_settings(settings)

    @classmethod
    def from_settings(cls, settings: Settings) -> Requester:
        """Return a requester for these settings."""
        requester = cls.__new__(cls)
        requester._open(settings)
        return requester

    def _open(self, settings: Settings) -> None:
        self._settings = settings
        self._secrets = settings.secrets
        self.service_url = settings.service_url
        self.retries_timeout = settings.retries_timeout
        self.retries_attempts = settings.retries_attempts
        self.request_timeout = settings.request_timeout
        self._way = way_to(settings)
        self._stamps: Stamps | None = None
        self._session = requests.Session()
        self._session.trust_env = False  # what the environment says is in the way, and nothing of ~/.netrc
        if self._way.proxy is not None:
            self._session.proxies = dict.fromkeys(("http", "https"), self._way.proxy.address)

    @property
    def url(self) -> str:
        """Address of the server with its route prefix, without credentials."""
        return self.service_url

    def __repr__(self) -> str:
        """Address only: headers may hold credentials."""
        return f"{type(self).__name__}({self.service_url!r})"

    def close(self) -> None:
        """Close the pooled connections. The requester can be used again all the same."""
        self._session.close()

    def send_request(
        self,
        app_route: str,
        message: Mapping[str, Any],
        request_type: str,
        tenacious: bool = True,
        *,
        timeout: float | None = None,
    ) -> tuple[int, Any]:
        """Send one request and return HTTP status and decoded JSON, as Jobmon's requester does.

        :param app_route: route below the prefix, with its leading slash.
        :param message: JSON body (post, put) or query parameters (get).
        :param request_type: ``get``, ``post`` or ``put``.
        :param tenacious: retry what is worth a retry. Default True.
        :param timeout: seconds for each try. Default: ``request_timeout``.
        :raises ServerUnreachable: no reply, also not after the retries.
        :raises HostUnknown: no name server knows the host.
        :raises ServerFailure: 5xx, 423 or 429, also after the retries.
        :raises InvalidRequest: another 4xx; ``RecordNotFound``, ``NotAuthorized`` say which.
        :raises UnreadableReply: the reply is no JSON.
        :raises ValueError: the request type is not one of the three.
        """
        if request_type not in ("get", "post", "put"):
            raise ValueError(f"request_type must be 'get', 'post' or 'put', not {request_type!r}")
        if not tenacious:
            return self._send_once(app_route, message, request_type, timeout)
        retrying = retries(self.retries_timeout, self.retries_attempts, protocol.is_retryable)
        return retrying(self._send_once, app_route, message, request_type, timeout)

    def _send_once(
        self, app_route: str, message: Mapping[str, Any], request_type: str, timeout: float | None
    ) -> tuple[int, Any]:
        limit = self.request_timeout if timeout is None else timeout
        handled = sys.exc_info()[1]  # by the caller: no part of what may go wrong here
        deadline: Any = Deadline(limit)  # requests takes it; its annotations do not know
        url = protocol.url_of(self.service_url, app_route)
        params: dict[str, Any] = {"client_jobmon_version": protocol.CLIENT_VERSION}
        body = None
        self._read_files()
        if request_type == "get":
            params.update(message)
        else:
            body = dict(message)
        try:
            with self._session.request(
                request_type,
                url,
                params=params,
                json=body,
                headers={**_HEADERS, **self._settings.headers},
                timeout=deadline,
                verify=self._way.verify,
                allow_redirects=False,
                stream=True,
            ) as reply:
                response = Response(reply.status_code, reply.headers, _read(reply))
        # Reading a body as it comes raises urllib3's own errors.
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
            failure, proxy = errors.of_requests(error, handled), self._way.proxy_address
            final = self._does_not_exist(failure)
            raise errors.not_answered(
                request_type, url, failure, limit=limit, proxy=proxy, final=final
            ) from None
        self.has_been_reached = True
        if response.status_code >= 500:
            # Jobmon closes the connection then, without saying so: the next request might be lost on it.
            self._session.close()
        return response.status_code, protocol.decipher(request_type, url, response, self._secrets)

    def _does_not_exist(self, failure: errors.Failure) -> bool:
        """Whether it is time to take the host for one that does not exist, and not for an outage."""
        if self.has_been_reached or not failure.host_is_not_known:
            self._unknown_since = None
            return False
        now = time.monotonic()
        self._unknown_since = self._unknown_since or now
        return now - self._unknown_since >= _UNKNOWN_FOR

    def _read_files(self) -> None:
        """Read the CA bundle and the client certificate, at first, and whenever they have been renewed.

        :raises UnreadableCertificate: one of them cannot be read, at first.
        """
        stamps = self._way.stamps()
        if stamps == self._stamps:
            return
        try:
            tls = self._way.make_context() if self._way.tls else None
        except UnreadableCertificate as error:
            if self._stamps is None:
                raise
            logger.warning("%s; going on with what was read before", error)
            return
        headers = {} if self._way.proxy is None else self._way.proxy.headers
        adapter = DeadlineAdapter(tls, headers)
        self._session.close()
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)
        self._stamps = stamps


def retries(timeout: float, attempts: int, worth_it: Callable[[BaseException], bool]) -> tenacity.Retrying:
    """Return the retry policy of blocking requests; the last error is raised as it is.

    :param timeout: seconds after which there is no further try; 0: one try.
    :param attempts: tries at most; 0 and 1: one try.
    :param worth_it: which errors to try again after.
    """

    def log(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        logger.warning("%s; trying again in %.1f s", error, state.upcoming_sleep)

    backoff = tenacity.wait_exponential_jitter(initial=1, max=30, jitter=1)

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked_for = error.retry_after if isinstance(error, ServerFailure) else None
        return max(backoff(state), min(asked_for or 0.0, 30.0))

    return tenacity.Retrying(
        stop=tenacity.stop_after_attempt(max(attempts, 1)) | tenacity.stop_before_delay(timeout),
        wait=wait,
        retry=tenacity.retry_if_exception(worth_it),
        before_sleep=log,
        reraise=True,
    )


def ask(requester: Any, call: Call[T], *, tenacious: bool = True, timeout: float | None = None) -> T:
    """Send a call through any requester and return what its reply says.

    :param requester: this module's, Jobmon's own, or anything with the same ``send_request``.
    :param tenacious: let the requester retry. A call that is not idempotent is never retried by it, and a
        costly one only where the server certainly has not begun with it. Default True.
    :param timeout: seconds for each try, at most. Default: what this module's requester gives such a call.
        Another requester has times of its own.
    :raises JobmonError: see :meth:`Requester.send_request` and the call.
    """
    options: dict[str, Any] = {}
    if not (tenacious and call.idempotent) or call.costly:
        options["tenacious"] = False
    if isinstance(requester, Requester) and not call.idempotent:
        requester.close()  # a new connection, as the server may be about to close one that has been idle
    if isinstance(requester, Requester) and (call.costly or timeout is not None):
        options["timeout"] = time_for(requester.request_timeout, costly=call.costly, at_most=timeout)
    address = getattr(requester, "url", None) or getattr(requester, "service_url", "unknown address")
    server = excerpt(address)  # Jobmon's own requester has login and password in it
    try:
        send: Callable[..., Any] = requester.send_request
        if call.costly and tenacious and isinstance(requester, Requester):
            retrying = retries(
                requester.retries_timeout, requester.retries_attempts, protocol.was_not_processed
            )
            send = functools.partial(retrying, send)
        _, reply = send(app_route=call.route, message=dict(call.message), request_type=call.verb, **options)
    except Exception as error:
        known = errors.translate(error)
        if known is None:
            raise
        explained = call.explain(known, server)
        if call.costly:
            explained = protocol.still_at_work(explained)
        if explained is error:
            raise
        raise explained from None
    return call.understand(reply, server)


def converse(
    requester: Any,
    conversation: Conversation[T],
    *,
    log: Log = logger,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Carry a conversation to its end, blocking, and return its result.

    :param requester: see :func:`ask`.
    :param log: where its notes go.
    :param sleep: waits so many seconds.
    :raises JobmonError: what the conversation raises.
    """

    def ask_once(step: Ask) -> Any:
        return ask(requester, step.call, tenacious=False, timeout=step.timeout)

    return carry(conversation, ask_once, sleep, log)


def _read(reply: requests.Response) -> bytes:
    """Read a body up to the protocol's limit; a longer one is left unread, and its connection is dropped."""
    body = bytearray()
    for chunk in reply.raw.stream(_CHUNK, decode_content=False):  # the protocol unpacks, within limits
        body += chunk
        if len(body) > responses.MAX_REPLY_BYTES:
            break
    return bytes(body)

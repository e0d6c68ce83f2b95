"""What errors of HTTP libraries, and of other requesters, mean in this client's terms.

Which function is for an error depends on who raised it:

* An HTTP library under one of our transports. ``of_requests`` and ``of_aiohttp`` look into what it raised,
  and return a :class:`Failure`; ``not_answered`` says what that means, in the same words for both. Whether
  there was a connection no library tells: the transports mark an error with ``mark_as_never_connected``.
* A requester that is not ours, such as Jobmon's own, passed in by a user: ``translate``.

A reply, whatever its status, is no error here: see ``protocol.responses``.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import requests

from airflow_jobmon_provider.client._http import lookups
from airflow_jobmon_provider.client.exceptions import (
    CertificateNotTrusted,
    HostUnknown,
    InvalidRequest,
    InvalidResponse,
    JobmonError,
    NotAuthorized,
    RecordNotFound,
    ServerFailure,
    ServerUnreachable,
    TransitionRefused,
)
from airflow_jobmon_provider.client.protocol.responses import (
    NO_WORKFLOW,
    advice_on,
)
from airflow_jobmon_provider.client.redaction import (
    EXCERPT_LENGTH,
    excerpt,
)


@dataclass(frozen=True, slots=True)
class Failure:
    """What an HTTP library's error says of a request that came to nothing.

    :param cause: the innermost error, which the library may have wrapped several times.
    :param connected: whether there was a connection, so that the server may have seen the request.
    :param timed_out: whether the time for the request was over.
    """

    cause: BaseException
    connected: bool
    timed_out: bool

    @property
    def host_is_not_known(self) -> bool:
        """Whether no name server knows the host (or the proxy that the request was to go through)."""
        return lookups.is_not_known(self.cause)


def of_requests(error: BaseException, handled: BaseException | None) -> Failure:
    """Return what an error of requests or urllib3 says.

    :param handled: what was being handled when the request began, to which Python links whatever is raised
        meanwhile, and which has nothing to do with it.
    """
    chain = list(_chain(error, handled))
    return Failure(
        cause=chain[-1],
        connected=not any(map(never_connected, chain)),
        timed_out=isinstance(chain[-1], TimeoutError) or isinstance(error, requests.exceptions.Timeout),
    )


def of_aiohttp(error: BaseException) -> Failure:
    """Return what an error of aiohttp or asyncio says."""
    import aiohttp  # the asyncio transport has it; the blocking one does without

    # What went wrong, of which aiohttp's error may be a mere wrapping.
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    if isinstance(error, aiohttp.ClientHttpProxyError):
        cause = OSError(f"the proxy refused: {error.status} {error.message}")
    return Failure(
        cause, connected=not never_connected(error), timed_out=isinstance(error, asyncio.TimeoutError)
    )


def mark_as_never_connected(error: BaseException) -> None:
    """Take note in an error that no connection was made, so that the server cannot have seen the request."""
    error.never_connected = True  # type: ignore[attr-defined]


def never_connected(error: BaseException) -> bool:
    """Whether an error is marked: no connection was made, so the server cannot have seen the request."""
    return getattr(error, "never_connected", False)


def _chain(error: BaseException, handled: BaseException | None) -> Iterator[BaseException]:
    """Give an error and what it came from: requests and urllib3 wrap ``Connection refused`` in three layers.

    :param handled: where to end; see ``of_requests``.
    """
    inner: BaseException | None = error
    while inner is not None and inner is not handled:
        yield inner
        inner = inner.__context__


def reason_of(error: BaseException) -> str:
    """Return why there was no connection, in the same words whichever library reports it."""
    if isinstance(error, ConnectionError) and error.errno:
        return os.strerror(error.errno)  # asyncio has words of its own for "Connection refused"
    if getattr(error, "reason", None) in _NO_TLS:
        return "what answers there does not speak TLS; is it http instead of https, or another port"
    strerror = error.strerror if isinstance(error, OSError) else None
    return strerror or str(error) or type(error).__name__


def not_answered(
    verb: str, url: str, failure: Failure, *, limit: float, proxy: str | None = None, final: bool = False
) -> CertificateNotTrusted | HostUnknown | ServerUnreachable:
    """Return what it means that a request came to nothing.

    :param failure: what the HTTP library says.
    :param limit: seconds that the request had.
    :param proxy: address of the proxy that it went through, without credentials. Default: none.
    :param final: the host is not known, and that is no outage. Default False.
    """
    cause, connected = failure.cause, failure.connected
    code = None if failure.timed_out else getattr(cause, "verify_code", None)  # of SSLCertVerificationError
    if code is None:
        late = f"no {'reply' if connected else 'connection'} within {limit:g} s"
        reason = late if failure.timed_out else reason_of(cause)
        way = f" (through the environment's proxy {proxy})" if proxy else ""
        line = f"{verb.upper()} {url}{way}: {excerpt(reason)}{_hint(failure, proxy)}"
        return HostUnknown(line) if final else ServerUnreachable(line, processed=connected)
    advice = _ADVICE.get(
        code, "if it is the right server, set verify in the connection's extra to the path of its CA bundle"
    )
    reason = excerpt(getattr(cause, "verify_message", "")).rstrip(".")
    return CertificateNotTrusted(f"{verb.upper()} {url}: certificate verify failed: {reason}; {advice}")


def _hint(failure: Failure, proxy: str | None) -> str:
    """Return what the user can do about a request that got no reply, to be put behind the reason."""
    if failure.host_is_not_known:
        return "; check HTTP_PROXY and HTTPS_PROXY" if proxy else "; check the host of the connection"
    return "" if failure.connected else "; is the server up, and are host and port right?"


def translate(error: Exception) -> JobmonError | None:
    """Return what an error of another requester means in this client's terms; None: not known.

    The requester passed in may be Jobmon's own, whose exceptions have the names of ours in another package;
    it keeps the HTTP status only in its message ("… status code 404 from …").
    """
    if isinstance(error, JobmonError):
        return error
    name, text = type(error).__name__, str(error)
    line = excerpt(text, 2 * EXCERPT_LENGTH)
    found = re.search(r"status code (\d{3})\b", text)
    code = int(found.group(1)) if found else None
    content = text.partition("content: ")[2]
    if "InvalidStateTransition" in content:
        return TransitionRefused(line, code)
    if "NoResultFound" in text or (code == 404 and NO_WORKFLOW.search(content)):
        return RecordNotFound(line, code)
    if name == "InvalidRequest":
        kind = NotAuthorized if code in (401, 403) else InvalidRequest
        return kind(line + (advice_on(code, content) if code else ""), code)
    if name == "InvalidResponse":
        return ServerFailure(line, processed=code not in (423, 429))
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return CertificateNotTrusted(line)
    if isinstance(error, OSError):  # requests' errors are OSErrors, as are sockets' and time-outs
        return ServerUnreachable(line)
    if isinstance(error, RuntimeError) and "retry budget" in text:
        return InvalidResponse(line)
    return None


# How OpenSSL says that the other side's first bytes are not TLS; an HTTP server's are "HTTP/1.1 400".
_NO_TLS = ("WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG")

# Where a CA bundle is not what is missing: OpenSSL's X509_V_ERR_… → what to do.
_RENEW = "the server's administrator has to renew it"

_ADVICE = {
    9: "it is not valid yet: are the clocks right?",
    10: _RENEW,
    62: "connect to a host that the certificate names",
    64: "connect to a host that the certificate names",
}

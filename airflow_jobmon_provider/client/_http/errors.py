"""What errors of HTTP libraries, and of other requesters, mean in this client's terms."""

from __future__ import annotations

import os
import re

from airflow_jobmon_provider.client.exceptions import (
    CertificateNotTrusted,
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


def reason_of(error: BaseException) -> str:
    """Return why there was no connection, in the same words whichever library reports it."""
    if isinstance(error, ConnectionError) and error.errno:
        return os.strerror(error.errno)  # asyncio has words of its own for "Connection refused"
    if getattr(error, "reason", None) in _NO_TLS:
        return "what answers there does not speak TLS; is it http instead of https, or another port"
    strerror = error.strerror if isinstance(error, OSError) else None
    return strerror or str(error) or type(error).__name__


def unreachable(
    verb: str, url: str, reason: str, *, connected: bool, proxy: str | None = None
) -> ServerUnreachable:
    """Return the error for a request that got no reply.

    :param reason: what the transport's library says.
    :param connected: whether there was a connection, so that the server may have seen the request.
    :param proxy: address of the proxy that it went through, without credentials. Default: none.
    """
    hint = "" if connected else "; is the server up, and are host and port right?"
    way = f" (through the environment's proxy {proxy})" if proxy else ""
    return ServerUnreachable(f"{verb.upper()} {url}{way}: {excerpt(reason)}{hint}", processed=connected)


def not_answered(
    verb: str, url: str, cause: BaseException, *, connected: bool, proxy: str | None = None
) -> CertificateNotTrusted | ServerUnreachable:
    """Return what it means that a request came to nothing, other than by a time-out.

    :param cause: the innermost error.
    :param connected: see ``unreachable``.
    :param proxy: see ``unreachable``.
    """
    code = getattr(cause, "verify_code", None)  # of ssl's SSLCertVerificationError
    if code is None:
        return unreachable(verb, url, reason_of(cause), connected=connected, proxy=proxy)
    advice = _ADVICE.get(
        code, "if it is the right server, set verify in the connection's extra to the path of its CA bundle"
    )
    reason = excerpt(getattr(cause, "verify_message", "")).rstrip(".")
    return CertificateNotTrusted(f"{verb.upper()} {url}: certificate verify failed: {reason}; {advice}")


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

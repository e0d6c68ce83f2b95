"""Turns an HTTP response into JSON, or into the error that it means."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from airflow_jobmon_provider import __version__
from airflow_jobmon_provider.client.exceptions import (
    InvalidRequest,
    NotAuthorized,
    RecordNotFound,
    ServerFailure,
    ServerTooOld,
    TransitionRefused,
    UnreadableReply,
)
from airflow_jobmon_provider.client.protocol.reading import (
    TOO_OLD,
)
from airflow_jobmon_provider.client.redaction import (
    EXCERPT_LENGTH,
    NO_SECRETS,
    Secrets,
    excerpt,
    excerpt_of_body,
)

USER_AGENT = f"airflow-provider-jobmon/{__version__}"

MAX_REPLY_BYTES = 16 * 2**20
"""Replies longer than this are not read to their end: the longest that Jobmon sends us has a few kB."""


@dataclass(frozen=True, slots=True)
class Response:
    """What a transport received, whatever its HTTP library calls it.

    :param status_code: HTTP status.
    :param headers: looked up in lower case.
    :param body: as it came, packed or not; at most ``MAX_REPLY_BYTES`` and what says that there was more.
    """

    status_code: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


def decipher(verb: str, url: str, response: Response, secrets: Secrets = NO_SECRETS) -> Any:
    """Return the decoded JSON of a reply, or raise what the response means.

    :param verb: HTTP method, for the message.
    :param url: what was asked, without credentials, for the message.
    :param secrets: what was sent and must not be shown, should the reply repeat it.
    :raises NotAuthorized: 401, 403.
    :raises RecordNotFound: no such workflow or run, in either server version's words.
    :raises TransitionRefused: nothing leads there from the status that is.
    :raises ServerTooOld: Jobmon before 3.4 reports a request that it does not take.
    :raises InvalidRequest: another 4xx, or a redirect.
    :raises ServerFailure: 5xx, 423, 429.
    :raises UnreadableReply: the body is too long or no JSON, or packed in a way that nobody asked for.
    """
    code, asked = response.status_code, f"{verb.upper()} {url}"
    body = unpack(response, asked)
    if 200 <= code < 300 and len(body) <= MAX_REPLY_BYTES:
        try:
            text = body.decode()
            return secrets.hide_in(json.loads(text), text)
        except (ValueError, RecursionError):
            pass
    came_back = f"{asked}: {code} {excerpt_of_body(secrets.hide(_start_of(body)))}".rstrip()
    if 200 <= code < 300:
        if len(body) > MAX_REPLY_BYTES:
            raise UnreadableReply(f"{asked}: a reply of more than {MAX_REPLY_BYTES} bytes")
        raise UnreadableReply(f"{came_back} is not JSON; is this Jobmon? Check host, port and route prefix")
    if 300 <= code < 400:
        target = excerpt(secrets.hide(response.headers.get("location", "nowhere")))
        raise InvalidRequest(f"{asked}: {code}, moved to {target}; use that address", code)
    final = _final_kind(code, body)
    if final is not None:
        raise final(came_back, code)
    if code >= 500 or code in (423, 429):
        # 423: the database rolled a deadlock back. 429: the request was turned away unread.
        raise ServerFailure(
            came_back,
            processed=code not in (423, 429),
            retry_after=_retry_after(response.headers.get("retry-after")),
        )
    kind = NotAuthorized if code in (401, 403) else InvalidRequest
    raise kind(f"{came_back}{advice_on(code, _start_of(body))}", code)


def unpack(response: Response, asked: str) -> bytes:
    """Return the body of a reply that was sent packed although nobody asked for that.

    Not left to the HTTP libraries: some of their versions unpack whatever comes, and a kilobyte on the wire
    may be a megabyte in memory.

    :param asked: verb and address, for the message.
    :returns: at most ``MAX_REPLY_BYTES`` and one byte more, which says that there was more.
    :raises UnreadableReply: it is packed in another way than gzip or deflate, or wrongly.
    """
    packing = response.headers.get("content-encoding", "identity").strip().lower()
    if packing in ("", "identity") or not response.body:
        return response.body
    if packing not in ("gzip", "x-gzip", "deflate"):
        raise UnreadableReply(f"{asked}: a reply that is packed, and neither with gzip nor deflate")
    try:
        # 32: it says itself whether it is gzip's or zlib's
        return zlib.decompressobj(32 + zlib.MAX_WBITS).decompress(response.body, MAX_REPLY_BYTES + 1)
    except zlib.error:
        raise UnreadableReply(f"{asked}: a reply that says it is {packing}, and is not") from None


def _final_kind(code: int, body: bytes) -> type[RecordNotFound | TransitionRefused | ServerTooOld] | None:
    """Return what an error says that is final whatever its status, and neither of a route nor of the server.

    3.4.8: ``{"error": {"type": "<class '…NoResultFound'>"}}`` with 500; also InvalidStateTransition.
    Before 3.4 also ``<class 'werkzeug.exceptions.MethodNotAllowed'>`` and others of Flask's library.
    3.6: ``{"detail": "Workflow with ID 7 not found in database."}`` with 404, where a missing route is
    ``{"detail": "Not Found"}``.
    """
    try:
        error = json.loads(body[:MAX_REPLY_BYTES])
    except (ValueError, RecursionError):
        return None
    if not isinstance(error, dict):
        return None
    inner = error.get("error")
    if code == 500 and isinstance(inner, dict):
        kind = text_of(inner.get("type"))
        if "InvalidStateTransition" in kind:
            return TransitionRefused
        if "werkzeug.exceptions" in kind:
            return ServerTooOld
        return RecordNotFound if "NoResultFound" in kind else None
    return RecordNotFound if code == 404 and NO_WORKFLOW.search(text_of(error.get("detail"))) else None


NO_WORKFLOW = re.compile(r"(?<![/\w])workflow\b", re.I)  # not in an address, which a gateway may repeat

_LOGIN_WANTED = re.compile(r"""["']detail["']\s*:\s*["']Unauthorized["']""")

_NOT_THE_OWNER = re.compile(r"""["']detail["']\s*:\s*["']Unauthorized\.["']""")

_NO_ROUTE = re.compile(r"""["']detail["']\s*:\s*["']Not Found["']|["']error["']\s*:\s*["']Route """)


def advice_on(code: int, said: str) -> str:
    """Return what the user can do about a refusal, to be put behind it; "": no more than it says itself.

    Jobmon's words (3.4 to 3.7) are told from those of a gateway or a proxy before it.

    :param code: HTTP status.
    :param said: the start of the body.
    """
    if code == 403 and _LOGIN_WANTED.search(said):
        return (
            "; Jobmon itself wants a browser's login here, which no login, password or token of a connection"
            " replaces: have its administrator set JOBMON__AUTH__ENABLED=false on the server, or put a"
            " gateway before it that logs in; on Jobmon 3.4.8, use the route prefix /api/v2"
        )
    if code == 401 and _NOT_THE_OWNER.search(said):
        return (
            "; Jobmon lets only the user of the workflow's latest run do this, and the gateway logs in as"
            " another user"
        )
    if code in (401, 403):
        return "; a gateway or proxy before Jobmon refused: check the login, password or token that it wants"
    if code == 407:
        return "; a proxy on the way to Jobmon wants a login: check HTTP_PROXY, HTTPS_PROXY and NO_PROXY"
    if code != 404:
        return ""
    if said.startswith("This route does not exist"):
        return f"; Jobmon before 3.4 answers like this: {TOO_OLD}, or check the address and the route prefix"
    if _NO_ROUTE.search(said):
        return "; check the address and the route prefix (/api/v3; /api/v2 on Jobmon 3.4.8)"
    return "; Jobmon does not answer like this: check the address and the route prefix"


def text_of(value: Any) -> str:
    """Return a value that should be text; "" for any other."""
    return value if isinstance(value, str) else ""


def _start_of(body: bytes) -> str:
    """Return what an excerpt is taken of, and as much again, so that no secret is cut where it ends."""
    return body[: 64 * EXCERPT_LENGTH].decode("utf-8", "replace")


def _retry_after(value: str | None) -> float | None:
    """Seconds of a ``Retry-After`` header; its other form, a date, is not worth trusting two clocks for."""
    return float(value) if value is not None and re.fullmatch(r"[ \t]*[0-9]{1,6}[ \t]*", value) else None


def url_of(base_url: str, route: str) -> str:
    """Return the address of a route; the route's ids are integers, and anything else in it is quoted."""
    return base_url + quote(route, safe="/")

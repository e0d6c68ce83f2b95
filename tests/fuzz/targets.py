"""What is fuzzed: everything that reads what a server, a user or somebody else's library says.

Each target is a strategy and a check. Hypothesis makes the cases, and makes one that fails as small as it
can. One case is fed to everything that could read it, so that there are thousands of readings a second: a
made-up reply goes to every route, a reply on the wire is cut into pieces in several ways.
"""

from __future__ import annotations

import dataclasses
import enum
import gc
import html
import http.client
import inspect
import io
import json
import logging
import time
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote, urlsplit

from airflow.providers.common.compat.sdk import Connection
from hypothesis import strategies as st

from airflow_jobmon_provider.client import protocol, redaction
from airflow_jobmon_provider.client._http import errors, heartbeat_pool
from airflow_jobmon_provider.client._http.heartbeat_pool import LONGEST_REPLY
from airflow_jobmon_provider.client.exceptions import ConfigError, JobmonError
from airflow_jobmon_provider.client.protocol import Response, reading, responses, routes
from airflow_jobmon_provider.client.settings import Settings, basic_authorization, join_prefix
from airflow_jobmon_provider.client.validation import positive_id
from airflow_jobmon_provider.execution.output import LONGEST_LINE, STATE_INTERVAL, OutputReader
from airflow_jobmon_provider.hooks.connection import server_of_connection
from airflow_jobmon_provider.hooks.fields import EXTRA
from airflow_jobmon_provider.links.jobmon import workflow_url
from tests.contract.recorder import shape
from tests.routes import ROUTES, SAMPLES, keys_in

LONGEST_MESSAGE = 1000  # characters
SLOWEST_CASE = 1.0  # seconds of CPU time, for a megabyte


@dataclass(frozen=True)
class Target:
    """One thing that is fuzzed.

    :param cases: what is made up.
    :param check: returns how many readings it was; raises if one of them is wrong.
    :param share: of the time.
    :param shrinks: a case that fails is made smaller; what is large on purpose would take minutes.
    """

    cases: st.SearchStrategy[Any]
    check: Callable[[Any], int]
    share: float = 1.0
    shrinks: bool = True


# --- Replies, as every route reads them ---------------------------------------------------------------------

CALLS = [(row.call(), row.declared) for row in ROUTES.values()]

URL = "http://jobmon.example/api/v3"
PASSWORD, TOKEN, KEY = 'pass/Wörd \'n "more"', "t0ken-0123456789", "k3y-of-a-gateway"
HEADERS = {
    "Authorization": basic_authorization("alice", PASSWORD),
    "X-Token": f"Bearer {TOKEN}",
    "X-Key": KEY,
}
SECRETS = redaction.Secrets(HEADERS)
HIDDEN = [PASSWORD, TOKEN, KEY, HEADERS["Authorization"].split()[1]]

_READERS = "".join(inspect.getsource(module) for module in (routes, reading, responses))


def _trimmed(reply: Any) -> Any:
    """Return a reply with no fields but those that the client reads: made-up cases are for these."""
    if isinstance(reply, dict):
        read = [key for key in reply if key.isdigit() or f'"{key}"' in _READERS]
        return {key: _trimmed(reply[key]) for key in read}
    return [_trimmed(each) for each in reply] if isinstance(reply, list) else reply


def _of_each_kind() -> Iterator[Any]:
    """Yield the routes' replies, of several that have the same fields and mean the same kind of thing one."""
    seen = []
    for _, sample in SAMPLES.values():
        reply = _trimmed(sample.reply)
        kind = (shape(reply), sample.result if isinstance(sample.result, type) else None)
        if sample.status == 200 and kind not in seen:
            seen.append(kind)
            yield reply


# What a real Jobmon says: each route's replies, and errors.
REPLIES: list[Any] = [
    *_of_each_kind(),
    {"error": {"type": "<class 'sqlalchemy.exc.NoResultFound'>", "status_code": 500}},
    {"detail": "Workflow with ID 7 not found in database."},
    {"detail": [{"msg": "field required"}]},
]
KEYS = [
    key
    for key in dict.fromkeys(key for reply in REPLIES for key in keys_in(reply))
    if key.isdigit() or f'"{key}"' in _READERS
]

nasty = st.sampled_from(
    [
        *("\x1b[31mred", "\x00", "a\r\nb", "a\u2028b\u2029c\x85d\x0be", "\u202egnp.exe", "\ufeff", "\ud800"),
        *(
            "…" * 300,
            "x" * 3000,
            "\n" * 500,
            "ﷺ" * 300,
            "http://u:pw@h",
            "NaN",
            "1e999",
            "٣",
            "currentlylinking",
        ),
        *(PASSWORD, TOKEN, f"Authorization: {HEADERS['Authorization']}", f"X-Key: {KEY}", "x" * 195 + TOKEN),
    ]
)
texts = st.text(max_size=12) | nasty | st.tuples(nasty, nasty).map("".join)
numbers = st.integers() | st.sampled_from([0, -1, 2**31, 2**63 - 1, 2**63, 10**400, -(10**4000)])
scalars = st.none() | st.booleans() | numbers | st.floats() | texts
shapes = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(KEYS) | st.text(max_size=4) | st.just("k" * 2000), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """A real reply, with some of its values replaced and some of its keys gone or new."""
    reply = json.loads(json.dumps(draw(st.sampled_from(REPLIES))))
    for _ in range(draw(st.integers(1, 3))):
        place: Any = reply
        while place and draw(st.booleans()):
            inside: list[Any] = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = draw(st.sampled_from(inside))
            if not isinstance(place[key], (dict, list)):
                break
            place = place[key]
        if isinstance(place, dict):
            elsewhere = draw(st.integers(0, 3)) == 0
            names: list[Any] = sorted(place) if place and not elsewhere else KEYS
            key = draw(st.sampled_from(names))
            if draw(st.integers(0, 4)):
                place[key] = draw(numbers | scalars | shapes)
            else:
                place.pop(key, None)
        elif place:
            place[draw(st.integers(0, len(place) - 1))] = draw(numbers | scalars | shapes)
    inner = reply.get("workflow_tasks") if isinstance(reply, dict) else None
    if inner is not None and draw(st.booleans()):
        reply["workflow_tasks"] = json.dumps({"TASK_ID": draw(shapes), "TASK_NAME": draw(shapes)})
    return reply


def _dumped(reply: Any, ascii_only: bool) -> bytes:
    return json.dumps(reply, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")


def _nested(depth: int, brackets: tuple[str, str], around: tuple[str, str]) -> bytes:
    opening, closing = brackets
    return (around[0] + opening * depth + "1" + closing * depth + around[1]).encode()


deep = st.builds(
    _nested,
    # around the depth that Python's reader and Python's writer can do, which is not the same
    st.integers(1, 40) | st.integers(150, 340) | st.integers(900, 1100),
    st.sampled_from([("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")]),
    st.sampled_from(
        [("", "")]
        + [(f'{{"{key}":', "}") for key in KEYS]
        + [('{"error":{"type":', "}}"), ('[{"wf_name":', "}]")]
    ),
)
broken = st.builds(
    lambda body, at, piece: body[:at] + piece + body[at + 1 :],
    st.builds(_dumped, st.sampled_from(REPLIES), st.booleans()),
    st.integers(0, 80),
    st.sampled_from(
        [b"", b"\xff", b"\x00", b"NaN", b"-Infinity", b"1" * 5000, b'"a":1,', b"\\ud800", b"[[", b"}"]
    ),
)
echoes = st.sampled_from(
    [
        json.dumps({"headers": HEADERS}).encode(),
        json.dumps(
            {"status": HEADERS, "err_msg": list(HEADERS.values()), "error_description": PASSWORD}
        ).encode(),
        "\n".join(f"{name}: {value}" for name, value in HEADERS.items()).encode(),
        html.escape(repr(HEADERS)).encode(),
        quote(PASSWORD).encode(),
        b"<p>" * 60 + str(HEADERS).encode(),
    ]
)
bodies = (
    st.binary(max_size=60)
    | st.builds(_dumped, shapes, st.booleans())
    | st.builds(_dumped, mutated(), st.booleans())
    | st.builds(_dumped, mutated(), st.booleans())
    | st.builds(_dumped, mutated(), st.booleans())
    | broken
    | echoes
    | deep
)
codes = st.sampled_from([200, 201, 204, 302, 400, 401, 404, 423, 429, 500, 503]) | st.integers(100, 999)
head_values = texts.map(lambda value: value.encode("latin1", "replace").decode("latin1"))
heads = st.dictionaries(
    st.sampled_from(["retry-after", "location", "content-encoding"]),
    head_values | st.sampled_from(["gzip", "deflate", "5"]),
    max_size=2,
)


@st.composite
def replies(draw: st.DrawFn) -> Response:
    """Mostly a 200 without headers of note: all others are read by the same few lines."""
    code = 200 if draw(st.integers(0, 2)) else draw(codes)
    return Response(code, {} if draw(st.integers(0, 3)) else draw(heads), draw(bodies))


def check_reply(response: Response) -> int:
    """Every route returns what it declares, or raises a typed error of one line; neither tells a secret."""
    for call, declared in CALLS:
        with bounded_time(len(response.body)):
            try:
                try:
                    reply = protocol.decipher(call.verb, URL + call.route, response, SECRETS)
                except JobmonError as error:
                    raise call.explain(error, URL) from None
                value = call.understand(reply, URL)
            except JobmonError as error:
                check_line(str(error))
                check_hidden(str(error))
                assert error.__cause__ is None
                continue
        assert 200 <= response.status_code < 300
        check_type(value, declared)
        for part in _texts_of(value):
            assert len(part) <= 25_000
            for line in part.split("\n"):
                check_line(line)
            check_hidden(part)
    return len(CALLS)


def check_line(line: str) -> None:
    """One line of bounded length, which no terminal and no browser takes for anything but text."""
    assert len(line) <= LONGEST_MESSAGE, f"{len(line)} characters"
    assert line.isprintable(), f"not printable: {line!r}"


def check_hidden(shown: str) -> None:
    for secret in HIDDEN:
        assert secret not in shown, f"shows a secret: {shown!r}"
        assert secret[: len(secret) // 2 + 1] not in shown, f"shows half of a secret: {shown!r}"


def check_type(value: Any, declared: Any) -> None:
    """Whether a value is of its declared type, all through."""
    origin, arguments = typing.get_origin(declared), typing.get_args(declared)
    if origin in (typing.Union, types.UnionType):
        (kind,) = [each for each in arguments if each is not type(None)]
        if value is not None:
            check_type(value, kind)
    elif origin is tuple:
        assert type(value) is tuple
        for each in value:
            check_type(each, arguments[0])
    elif declared is None or declared is type(None):
        assert value is None
    else:
        assert type(value) is declared
        if declared is int:
            assert -(2**63) <= value < 2**63
        if dataclasses.is_dataclass(declared):
            hints = typing.get_type_hints(declared)
            for each in dataclasses.fields(declared):
                check_type(getattr(value, each.name), hints[each.name])
                if each.name.endswith("_id"):
                    positive_id(each.name, getattr(value, each.name))


def _texts_of(value: Any) -> Iterator[str]:
    if isinstance(value, enum.Enum):
        return
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple):
        for each in value:
            yield from _texts_of(each)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _texts_of(getattr(value, field.name))


@contextmanager
def bounded_time(size: int) -> Iterator[None]:
    """Fail if this takes longer than it may for so many bytes: nothing may take the square of a size."""
    gc.disable()  # it takes its time when it likes
    started = time.thread_time()
    try:
        yield
    finally:
        took = time.thread_time() - started
        gc.enable()
    assert took <= 0.2 + SLOWEST_CASE * size / 1e6, f"{took:.2f} s for {size} bytes"


# --- Long ones ----------------------------------------------------------------------------------------------

pieces = st.sampled_from(
    [
        *(
            b" ",
            b"x",
            b"\n",
            b"\\u0000",
            b"[",
            b"content: ",
            b"workflow ",
            b"//",
            b"//u:",
            b"@",
            b"\xf0\x9f\x98\x80",
        ),
        *(b"1,", b'"a",', b'{"a":1},', b"\r\n", b"status code 404 content: ", TOKEN.encode()),
    ]
)
arounds = st.sampled_from(
    [(b"", b""), (b"[", b"1]"), (b'"', b'"')] + [(f'{{"{key}":"'.encode(), b'"}') for key in KEYS]
)
long_bodies = st.tuples(pieces, st.sampled_from([10_000, 100_000, 1_000_000]), arounds)


def check_long(case: tuple[int, tuple[bytes, int, tuple[bytes, bytes]]]) -> int:
    """What is long takes no more time than its length justifies, wherever it comes from."""
    code, (piece, size, (start, end)) = case
    body = start + piece * (size // len(piece)) + end
    done = check_reply(Response(code, {"retry-after": body[:70_000].decode("latin1")}, body))
    done += check_error((0, "status code 404 from GET " + body.decode("latin1")))
    return done + check_wire((body, [1, 7]))


# --- Replies on the wire, as the plain connections read them ------------------------------------------------

# An arbitrary limit of the oracle's; ours is on bytes.
http.client._MAXHEADERS = 20_000  # type: ignore[attr-defined]

PLAIN = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{"status":"L"}'
BUSY = b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nbusy"
fragments = st.sampled_from(
    [
        *(
            b"\r",
            b"\n",
            b"\r\n",
            b"\r\n\r\n",
            b" ",
            b"\t",
            b":",
            b"\x00",
            b"\xff",
            b"\x85",
            b"0",
            b"1",
            b"-",
            b"+",
            b"_",
        ),
        *(
            b"HTTP/1.1 ",
            b"http/1.1 ",
            b"HTTP/1.0 ",
            b"HTTP/2 ",
            b"100 Continue",
            b"204 No",
            b"304 No",
            b"999",
            b"20",
        ),
        *(
            b"Content-Length: 14\r\n",
            b"Content-Length: 0\r\n",
            b"content-length:3\r\n",
            b"Content-Length : 3\r\n",
        ),
        *(
            b"Transfer-Encoding: chunked\r\n",
            b"Content-Encoding: gzip\r\n",
            b"Connection: close\r\n",
            b"a: b\r\n",
        ),
        *(
            b"Connection:close\r\n",
            b"Connection: keep-alive, Close\r\n",
            b"From x\r\n",
            b"junk\r\n",
            b": x\r\n",
            b" x\r\n",
        ),
        *(
            b"X: a\rTransfer-Encoding: chunked\r\n",
            b"X: a\rConnection: close\r\n",
            b"X" * 17_000,
            PLAIN,
            BUSY,
        ),
    ]
)


@st.composite
def wires(draw: st.DrawFn) -> tuple[bytes, list[int]]:
    """A plain reply with some of it changed, or anything; and the sizes of the pieces in which it comes."""
    wire = draw(st.sampled_from([PLAIN, PLAIN, BUSY, b""]))
    for _ in range(draw(st.integers(0, 3))):
        at, gone = draw(st.integers(0, len(wire))), draw(st.sampled_from([0, 0, 0, 1, 2, 16]))
        line = wire.rfind(b"\r\n", 0, at) + 2 if draw(st.booleans()) else at
        line = max(line, 0)
        wire = wire[:line] + draw(fragments | st.binary(max_size=3)) + wire[line + gone :]
    return wire, draw(st.lists(st.integers(1, 40) | st.just(5000), min_size=1, max_size=4))


class _Loop:
    """All that a connection asks of an event loop."""

    def create_future(self) -> _Future:
        return _Future()


class _Future:
    def __init__(self) -> None:
        self.value: Any = self

    def done(self) -> bool:
        return self.value is not self

    def set_result(self, value: Any) -> None:
        assert not self.done(), "answered twice"
        self.value = value


class _Transport:
    def __init__(self) -> None:
        self.closed = False

    def write(self, data: bytes) -> None:
        pass

    def abort(self) -> None:
        self.closed = True


def check_wire(case: tuple[bytes, list[int]]) -> int:
    """A reply is understood as the standard library understands it, or not at all, and never kept."""
    wire, sizes = case
    cuts = [[len(wire) or 1], sizes] if len(wire) <= 2000 else [[max(len(wire) // 20, 1)]]
    if len(wire) <= 200:
        cuts.append([1])
    for each in cuts:
        with bounded_time(len(wire)):
            _check_pieces(wire, each)
    return len(cuts)


def _check_pieces(wire: bytes, sizes: list[int]) -> None:
    transport = _Transport()
    connection = heartbeat_pool._Connection(cast(Any, _Loop()))
    connection.connection_made(cast(Any, transport))
    reply = cast(_Future, connection.send(heartbeat_pool.Prepared(b"POST")))
    at = turn = 0
    while at < len(wire) and not reply.done():
        size = sizes[turn % len(sizes)]
        connection.data_received(wire[at : at + size])
        assert len(connection._received) <= 3 * LONGEST_REPLY
        at, turn = at + size, turn + 1
    if not reply.done():
        assert len(wire) <= 3 * LONGEST_REPLY
        assert not transport.closed
        connection.connection_lost(None)
        assert reply.value is None
        return
    assert not connection._received, "kept for the next request"
    if reply.value is None:
        assert transport.closed
        assert not connection.understood
        return
    assert connection.understood
    assert not transport.closed
    theirs = http.client.HTTPResponse(cast(Any, _Socket(wire)), method="POST")
    theirs.begin()
    assert reply.value.status_code == theirs.status
    assert reply.value.body == theirs.read()
    assert connection.kept <= (not theirs.will_close), "kept, and the server is about to close it"
    for name, value in reply.value.headers.items():
        assert value.strip(" \t") in [each.strip(" \t") for each in theirs.headers.get_all(name, [])]
    if at < len(wire):
        connection.data_received(wire[at:])  # nobody has asked for more
        assert transport.closed
        assert not connection._received


class _Socket:
    def __init__(self, wire: bytes) -> None:
        self._wire = wire

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._wire)


# --- Errors of somebody else's requester --------------------------------------------------------------------

FOREIGN: list[type[Exception]] = [
    type("InvalidRequest", (Exception,), {}),
    type("InvalidResponse", (Exception,), {}),
    OSError,
    TimeoutError,
    ConnectionResetError,
    RuntimeError,
    KeyError,
]
foreign_texts = st.lists(
    texts
    | st.sampled_from(
        [
            "status code 404",
            "status code 9",
            "status code ٤٠٤",
            "content: ",
            " workflow ",
            "NoResultFound",
            "retry budget",
        ]
    ),
    max_size=5,
).map(" ".join)


def check_error(case: tuple[int, str]) -> int:
    """Somebody else's error becomes one of ours of one line, or is not known."""
    kind, said = case
    with bounded_time(len(said)):
        known = errors.translate(FOREIGN[kind](said))
    if known is None:
        assert kind >= 5
    else:
        assert isinstance(known, JobmonError)
        check_line(str(known))
        assert "pw@" not in str(known)
    return 1


def check_text(said: str) -> int:
    """Small readers and writers of text."""
    for length in (1, 20, 200):
        line = redaction.excerpt(said, length)
        check_line(line)
        assert len(line) <= length
        assert redaction.excerpt(line, length) == line
        assert "u:pw@" not in line
    after = responses._retry_after(said)
    assert after is None or 0 <= after < 1e6
    url = protocol.url_of(URL, f"/cluster/{quote(said.encode('utf-8', 'replace'), safe='')}")
    assert urlsplit(url).netloc == "jobmon.example"
    assert urlsplit(url).path.startswith("/api/v3/cluster/")
    assert not urlsplit(url).query
    assert not urlsplit(url).fragment
    return 5


# --- What users configure -----------------------------------------------------------------------------------

hosts = st.sampled_from(["jobmon.example", "10.0.0.7", "[::1]", "localhost", "jöbmon.example"])
userinfos = st.sampled_from(
    ["", "alice:hunter2-pw@", "hunter2-pw@", "a:hunter2-pw#x@", "a:1/hunter2-pw@", ":hunter2-pw@"]
)
odd = st.text(alphabet="/\\?#@:[]%.;,ab1 \t\r\n\x00℀\uff0e。\u202e", max_size=6)
addresses = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(["http://", "https://", "//", "", "ftp://", "http:\\\\", "HTTP://"]),
        userinfos,
        odd,
        hosts,
        odd,
    ),
)
prefixes = odd | st.sampled_from(
    ["/api/v3", "api", "", "/../..", "//evil.example", "/a/%2e%2e", "?x", "#", "/ü"]
)
header_values = (texts | st.text(max_size=10)).map("hunter2".__add__)


def check_address(case: tuple[str, str, str]) -> int:
    """An address is refused in one line, or it is a plain one whose host is that which was given."""
    address, prefix, value = case
    try:
        joined = join_prefix(address, prefix)
        settings = Settings(joined, headers={"X-Key": value})
    except (ConfigError, ValueError) as error:
        check_line(str(error))
        assert "hunter2" not in str(error)
        return 1
    url = urlsplit(settings.service_url)
    assert url.scheme in ("http", "https")
    assert url.geturl() == settings.service_url
    assert (url.username, url.query, url.fragment) == (None, "", "")
    assert url.hostname
    assert url.hostname in address.lower()
    assert not set("\\@#?% \t\r\n") & set(url.netloc)
    path = "/" + "/".join(part for part in prefix.split("/") if part)
    assert settings.service_url.endswith(path.rstrip("/"))
    assert ".." not in path.split("/")
    for shown in (settings.service_url, repr(settings), str(settings)):
        assert "hunter2" not in shown
    for name, sent in settings.headers.items():
        assert f"{name}: {sent}".isprintable()
        assert f"{name}: {sent}".isascii()
    return 1


extras = st.dictionaries(st.sampled_from(sorted(EXTRA)) | st.text(max_size=5), shapes, max_size=4)
plausible = st.fixed_dictionaries(
    {},
    optional={
        "route_prefix": prefixes,
        "gui_url": addresses,
        "headers": st.dictionaries(st.text(max_size=4), header_values, max_size=2),
        "request_timeout": st.floats() | st.sampled_from(["1", "nan", "1e400", "٣", "²", "1_0", "9" * 5000]),
        "retries_attempts": st.sampled_from([3, "3", 2.0, "1e3", "9" * 5000, 1e300]),
    },
)
connections = st.tuples(
    st.none()
    | st.builds(json.dumps, extras | plausible)
    | deep.map(lambda body: body.decode())
    | st.text(max_size=8),
    st.none() | addresses | odd,
    st.sampled_from([None, "", "alice", "a:b", "é"]),
    st.sampled_from([None, "hunter2-pw", "hunter2-pw\n", "hunter2-pw\ud800", "hunter2-pwé"]),
)


def check_connection(case: tuple[str | None, str | None, str | None, str | None]) -> int:
    """An Airflow connection is refused in one line that tells no secret, or is one that can be used."""
    extra, host, login, password = case
    connection = Connection(conn_id="jm", conn_type="jobmon", host=host, login=login, password=password)
    connection.extra = cast(Any, extra)  # its constructor would refuse some of them
    hook_logger = logging.getLogger(server_of_connection.__module__)
    hook_logger.disabled = True  # what is unsafe, or misspelt, is told in lines without number
    try:
        server = server_of_connection(connection)
    except ConfigError as error:
        check_line(str(error))
        assert "hunter2" not in str(error)
        return 1
    finally:
        hook_logger.disabled = False
    assert "hunter2" not in repr(server)
    assert server.gui_url is None or workflow_url(server.gui_url, 7)
    check_line(repr(server.settings.service_url))
    return 1


# --- Small ones ---------------------------------------------------------------------------------------------

anything = (
    shapes
    | st.sampled_from(
        ["1", " 7 ", "0", "-1", "1/../2", "٣", "²", "9" * 20, "9" * 5000, 1.0, 2**63, 10**5000, [[1] * 999]]
    )
    | st.builds(lambda depth: json.loads("[" * depth + "]" * depth), st.integers(1, 900))
)


def check_id(value: Any) -> int:
    """An id is a positive integer that a database can hold, or refused in one line."""
    try:
        number = positive_id("workflow_id", value)
    except ValueError as error:
        check_line(str(error))
        assert str(error).startswith("workflow_id must be a positive integer, not ")
        return 1
    assert type(number) is int
    assert 0 < number < 2**63
    assert f"{number}".isascii()
    return 1


def check_link(address: str) -> int:
    """A link is an http(s) address on one line, or none."""
    url = workflow_url(address, 7)
    if url:
        assert url.lower().startswith(("http://", "https://"))
        assert url.isprintable()
        assert " " not in url
        assert urlsplit(url).hostname
        assert url.endswith("/#/workflow/7")
    return 1


OF_EXECUTOR = redaction.Secrets({"Authorization": basic_authorization("me", "hunter2/pw")})


def check_output(pieces: list[bytes]) -> int:
    """What an executor writes reaches the log in lines that are text and hide the password."""
    reader = OutputReader(OF_EXECUTOR)
    lines = [line for at, piece in enumerate(pieces) for line in reader.read(piece, at * STATE_INTERVAL)]
    lines += reader.read(b"", 0.0, last=True)
    for _, text in lines:
        assert 0 < len(text) <= LONGEST_LINE
        assert text.replace("\t", "").isprintable()
        assert "hunter2" not in text
    return 1


outputs = st.lists(
    st.binary(max_size=20)
    | st.sampled_from(
        [
            *(b"hunter2/pw", b"hunter2%2Fpw", b"hun\rter2/pw", b"hunter\x1b[K2/pw", b"hunter2\b/pw"),
            *(b"x" * 3995, b"x" * 17000, b"\x1b[2J", b"\x1b]", b"\xe2\x80\xae", b"\r", b"\n", b"\b"),
            *(b"2026-11-25 10:00:00 [INFO] ", b"Traceback (most recent call last):"),
        ]
    ),
    max_size=8,
)

TARGETS = {
    "replies": Target(replies(), check_reply, share=5),
    "long": Target(st.tuples(codes, long_bodies), check_long, shrinks=False),
    "wire": Target(wires(), check_wire, share=4),
    "errors": Target(st.tuples(st.integers(0, len(FOREIGN) - 1), foreign_texts), check_error),
    "texts": Target(texts | st.text(max_size=400), check_text),
    "addresses": Target(st.tuples(addresses, prefixes, header_values), check_address, share=2),
    "connections": Target(connections, check_connection, share=2),
    "ids": Target(anything, check_id, share=0.5),
    "links": Target(addresses | texts, check_link, share=0.5),
    "output": Target(outputs, check_output, share=0.5),
}

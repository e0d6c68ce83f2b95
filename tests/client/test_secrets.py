"""What is sent in headers is told to the server that was asked, and to nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
import socket
import ssl
import traceback
import tracemalloc
import zlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from airflow_jobmon_provider.client import protocol
from airflow_jobmon_provider.client.async_requester import AsyncRequester
from airflow_jobmon_provider.client.exceptions import (
    ConfigError,
    InvalidRequest,
    JobmonError,
    ServerUnreachable,
    UnreadableReply,
)
from airflow_jobmon_provider.client.lifecycle import RunStatus
from airflow_jobmon_provider.client.protocol import routes
from airflow_jobmon_provider.client.redaction import Secrets
from airflow_jobmon_provider.client.requester import Requester, ask
from airflow_jobmon_provider.client.settings import Settings, basic_authorization
from tests.client.transports import blocking, nonblocking
from tests.stub_server import HANG_UP, Reply, StubServer

MakeStub = Callable[..., StubServer]
Send = Callable[..., Awaitable[Any]]

HEADERS = {"Authorization": basic_authorization("alice", "s3cret-pw"), "X-Key": "k3y-of-ours"}
ENCODED = HEADERS["Authorization"].split()[1]
SECRETS = ("s3cret-pw", "k3y-of-ours", ENCODED)

BEAT, LOOK, CREATE = (
    routes.peek_status(5),
    routes.is_resumable(7),
    routes.create_workflow_run(7, "a", 93),
)


@pytest.fixture(params=[blocking, nonblocking])
def send(request: pytest.FixtureRequest) -> Send:
    """Send one call once, through either transport."""
    transport: Send = request.param
    return transport


def assert_untold(shown: str) -> None:
    assert [secret for secret in SECRETS if secret in shown] == []


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "call", [BEAT, LOOK, CREATE, routes.update_status(5, RunStatus.ABORTED)], ids=lambda c: c.route
)
async def test_no_redirect_is_followed_by_anything(
    stub: MakeStub, send: Send, code: int, call: protocol.Call[Any]
) -> None:
    elsewhere = stub({"status": "L", "workflow_is_resumable": True, "workflow_run_id": 5})
    server = stub(Reply(code, b"", (("Location", elsewhere.url + "/api/v3/health"),)))
    with pytest.raises(InvalidRequest, match=f"{code}, moved to {elsewhere.url}"):
        await send(Settings(server.url, headers=HEADERS), call)
    assert [request.method for request in server.requests] == [call.verb.upper()]
    assert elsewhere.connections == 0


ECHO = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())


@pytest.mark.parametrize("call", [BEAT, LOOK], ids=["beat", "look"])
@pytest.mark.parametrize(
    "reply",
    [
        Reply(400, ECHO.encode()),
        Reply(401, {"detail": f"wrong password s3cret-pw for alice: {ECHO}"}),
        Reply(403, b"<pre>" + b" " * 100 + ECHO.encode()),
        Reply(500, b"x" * 190 + ECHO.encode()),
        Reply(503, {"headers": HEADERS}),
        Reply(302, b"", (("Location", f"http://alice:s3cret-pw@elsewhere/?key=k3y-of-ours&a={ENCODED}"),)),
        Reply(200, {"headers": HEADERS}),
        Reply(200, {"status": f"L{ENCODED}", "workflow_is_resumable": "s3cret-pw"}),
        Reply(200, ECHO.encode()),
    ],
    ids=lambda value: getattr(value, "status", None),
)
async def test_what_a_server_echoes_is_not_passed_on(
    stub: MakeStub, send: Send, call: protocol.Call[Any], reply: Reply
) -> None:
    with pytest.raises(JobmonError) as caught:
        await send(Settings(stub(reply).url, headers=HEADERS), call)
    assert_untold(str(caught.value))
    assert not any(secret[:6] in str(caught.value) for secret in SECRETS)  # nor is one cut in half
    assert "***" in str(caught.value) or reply.status == 500


async def test_what_tasks_said_is_shown_without_it(stub: MakeStub, send: Send) -> None:
    said = "Traceback:\n  401 for http://alice:s3cret-pw@jobmon/api, k3y-of-ours"
    error = await send(
        Settings(stub({"error_description": said}).url, headers=HEADERS), routes.most_recent_error(12)
    )
    assert error == "Traceback:\n  401 for http://***@jobmon/api, ***"


@pytest.mark.parametrize("slash", ["/", "\\/"])
def test_a_table_is_json_in_json(slash: str) -> None:
    headers = {"Authorization": basic_authorization("alice", 'pä/ss "word"')}
    table = json.dumps({"TASK_ID": {"0": 1}, "TASK_NAME": {"0": 'fit pä/ss "word"'}}).replace("/", slash)
    response = protocol.Response(200, {}, json.dumps({"workflow_tasks": table}).encode())
    call = routes.failed_tasks(7, 5)
    reply = protocol.decipher(call.verb, "http://jobmon", response, Secrets(headers))
    assert [task.name for task in call.read(reply)] == ["fit ***"]


def test_the_names_in_a_reply_and_what_is_short_stay_as_they_are() -> None:
    secrets = Secrets({"X-A": "workflow_runs", "X-B": "L", "Authorization": "Bearer status"})
    reply = {"workflow_runs": [["L", 5, None]], "status": "the status"}
    assert secrets.hide_in(reply, str(reply)) == {"workflow_runs": [["L", 5, None]], "status": "the ***"}


@pytest.mark.parametrize("authorization", ["Basic !", "Basic //8=", "Basic", "", "Digest abcdefgh"])
def test_a_header_that_is_no_credentials_of_ours_is_hidden_all_the_same(authorization: str) -> None:
    assert Secrets({"Authorization": authorization}).hide("Digest abcdefgh.") in ("***.", "Digest abcdefgh.")


@pytest.mark.parametrize(
    "value", ["s3cret-pw\n", "s3cret-pw\r\nX: y", "s3cret-pwé", "s3cret-pw\x00", "\ud800"]
)
def test_a_header_that_cannot_be_sent_is_refused_before_a_library_shows_it(value: str) -> None:
    with pytest.raises(ConfigError, match=r"header Authorization \(the password or token\?\) has") as caught:
        Settings("http://127.0.0.1:9", headers={"Authorization": f"Bearer {value}"})
    assert_untold(str(caught.value))
    with pytest.raises(ConfigError, match="is not a valid header name"):
        Settings("http://127.0.0.1:9", headers={"X Y": "1"})


@pytest.mark.parametrize(
    "url",
    [
        "http://alice:s3cret-pw#1@jobmon",
        "http://alice:1?s3cret-pw@jobmon",
        "http://alice:1/s3cret-pw@jobmon",
        "http://alice:s3cret-pw@jobmon\\.example",
        "http://alice:s3cret-pw@jobmon%2eexample",
        "http://alice:s3cret-pw℀@jobmon",
        "ftp://alice:s3cret-pw@jobmon",
        "http://alice:s3cret-pw@[::zz]",
        "http://alice:s3cret-pw@[::1]\\",
        "http://jobmon/?x",
        "http://jobmon/#",
    ],
)
def test_an_address_that_could_be_read_in_two_ways_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings(url)
    assert_untold(str(caught.value))


async def fail_in_every_way(stub: MakeStub, send: Send, bundle: str) -> list[BaseException]:
    """Return what comes of a refusal, an outage, a time-out, a hang-up, a wrong certificate, nonsense."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    errors: list[BaseException] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for server in (
            stub(Reply(401, b"no")).url,
            stub(Reply(500, b"oops")).url,
            stub(Reply(200, b"<p>")).url,
            stub({"other": 1}).url,
            stub(HANG_UP).url,
            stub({}, tls=tls).url,
            "http://127.0.0.1:9",
            f"http://127.0.0.1:{port}",
        ):
            for call in (BEAT, LOOK):
                with pytest.raises(JobmonError) as caught:
                    await send(Settings(server, headers=HEADERS, request_timeout=0.3), call)
                errors.append(caught.value)
    with pytest.raises((OSError, ServerUnreachable)) as missing:
        await send(Settings("https://127.0.0.1:9", headers=HEADERS, verify=bundle), BEAT)
    return [*errors, missing.value]


async def test_no_log_at_any_level_and_no_traceback_with_locals_shows_it(
    stub: MakeStub, send: Send, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    asyncio.get_running_loop().set_debug(True)
    loggers = [logging.getLogger(name) for name in ("asyncio", "aiohttp", "urllib3", "requests")]
    with contextlib.ExitStack() as stack:
        for logger in (logging.getLogger(), *loggers):
            stack.enter_context(caplog.at_level(logging.DEBUG, logger.name))
        good = stub({"status": "L"})
        await send(Settings(good.url, headers=HEADERS), BEAT)
        errors = await fail_in_every_way(stub, send, str(tmp_path / "missing"))
    assert caplog.records
    assert_untold(caplog.text)
    assert good.requests[0].headers["X-Key"] == "k3y-of-ours"
    for error in errors:
        # What tools that show local variables see of it, Sentry's among them.
        told = traceback.TracebackException.from_exception(error, capture_locals=True)
        assert_untold("".join(told.format()))


async def test_nor_does_one_of_a_heartbeat_that_is_cancelled(stub: MakeStub) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = Settings(f"http://127.0.0.1:{silent.getsockname()[1]}", headers=HEADERS)
        async with AsyncRequester(settings) as requester:
            asking = asyncio.create_task(requester.ask(BEAT))
            await asyncio.get_running_loop().run_in_executor(None, silent.accept)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError) as cancelled:
                await asking
    told = "".join(traceback.TracebackException.from_exception(cancelled.value, capture_locals=True).format())
    assert "<request of" in told
    assert_untold(told)


class ForeignRequester:
    """Jobmon's own has login and password in its address, and in its messages."""

    url = "http://alice:s3cret-pw@jobmon:8070/api/v2"

    def __init__(self, reply: Any) -> None:
        self.reply = reply

    def send_request(self, app_route: str, message: Any, request_type: str, tenacious: bool = True) -> Any:
        if isinstance(self.reply, Exception):
            raise self.reply
        return 200, self.reply


@pytest.mark.parametrize(
    "reply",
    [
        {"nothing": "of use"},
        OSError("Max retries exceeded with url: http://alice:s3cret-pw@jobmon:8070/api/v2"),
        type("InvalidResponse", (Exception,), {})("NoResultFound from http://alice:s3cret-pw@jobmon:8070"),
        RuntimeError("Exceeded HTTP request retry budget due to: http://alice:s3cret-pw@jobmon:8070"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_address_of_jobmons_own_requester_is_shown_without_it(reply: Any) -> None:
    with pytest.raises(JobmonError, match=r"//(\*\*\*@)?jobmon:8070") as caught:
        ask(ForeignRequester(reply), LOOK)
    assert_untold(str(caught.value))


def test_jobmons_own_settings_are_warned_of_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JOBMON__HTTP__SERVICE_URL", "http://alice:s3cret-pw@jobmon.example")
    Requester.from_defaults()
    assert "Jobmon's own settings sends its credentials over plain http" in caplog.text
    assert_untold(caplog.text)
    caplog.clear()
    monkeypatch.setenv("JOBMON__HTTP__SERVICE_URL", "https://alice:s3cret-pw@jobmon.example")
    Requester.from_defaults()
    assert not caplog.records


# --- packed replies -----------------------------------------------------------------------------------------


@pytest.fixture
def memory() -> Iterator[Callable[[], int]]:
    """Tell how many bytes were in use at most."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """A hundred kilobytes that unpack to a hundred megabytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    return b"".join([*(packer.compress(bytes(2**20)) for _ in range(128)), packer.flush()])


@pytest.mark.parametrize("code", [200, 500])
@pytest.mark.parametrize("packing", ["gzip", "deflate", "gzip, gzip"])
async def test_a_reply_that_unpacks_to_far_more_is_not_unpacked(
    stub: MakeStub, send: Send, memory: Callable[[], int], bomb: bytes, packing: str, code: int
) -> None:
    server = stub(Reply(code, bomb, (("Content-Encoding", packing),)))
    with pytest.raises(JobmonError, match=r"a reply of more than 16777216 bytes|packed|500"):
        await send(Settings(server.url), BEAT)
    assert memory() < 4 * protocol.MAX_REPLY_BYTES


@pytest.mark.parametrize(
    ("packing", "pack"),
    [("gzip", gzip.compress), ("X-GZIP", gzip.compress), ("deflate", zlib.compress), ("identity", bytes)],
)
async def test_a_reply_that_is_packed_unasked_is_read(
    stub: MakeStub, send: Send, packing: str, pack: Callable[[bytes], bytes]
) -> None:
    server = stub(Reply(200, pack(b'{"status": "L"}'), (("Content-Encoding", packing),)))
    assert await send(Settings(server.url), BEAT) == "L"
    assert {request.headers["Accept-Encoding"] for request in server.requests} == {"identity"}


@pytest.mark.parametrize(("packing", "says"), [("br", "neither with gzip nor deflate"), ("gzip", "is not")])
async def test_what_cannot_be_unpacked_is_said(stub: MakeStub, send: Send, packing: str, says: str) -> None:
    server = stub(Reply(200, b'{"status": "L"}', (("Content-Encoding", packing),)))
    with pytest.raises(UnreadableReply, match=says):
        await send(Settings(server.url), BEAT)

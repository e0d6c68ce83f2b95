"""The two transports on real sockets: what they send, retry, and make of everything that can come back."""

from __future__ import annotations

import asyncio
import io
import logging
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from airflow_jobmon_provider.client import protocol
from airflow_jobmon_provider.client._http import deadline
from airflow_jobmon_provider.client.async_requester import AsyncRequester
from airflow_jobmon_provider.client.conversations import Ask, Driver, Note, Pause
from airflow_jobmon_provider.client.exceptions import (
    CertificateNotTrusted,
    ConfigError,
    InvalidRequest,
    JobmonError,
    NotAuthorized,
    RecordNotFound,
    ServerFailure,
    ServerUnreachable,
    UnreadableReply,
)
from airflow_jobmon_provider.client.lifecycle import RunStatus
from airflow_jobmon_provider.client.protocol import responses, routes
from airflow_jobmon_provider.client.requester import Requester, ask, converse, retries
from airflow_jobmon_provider.client.settings import Settings
from tests.client.simulation import Simulation
from tests.client.transports import blocking, nonblocking
from tests.stub_server import HANG_UP, Reply, StubServer

MakeStub = Callable[..., StubServer]
Send = Callable[..., Awaitable[Any]]

YES = {"workflow_is_resumable": True}
NO_RESULT = Reply(500, {"error": {"type": "<class 'sqlalchemy.exc.NoResultFound'>"}})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let retries wait no time, and tell how long they would have waited."""
    waited: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waited.append)
    return waited


@pytest.fixture(params=[blocking, nonblocking])
def send(request: pytest.FixtureRequest) -> Send:
    """Send one call once, through either transport."""
    transport: Send = request.param
    return transport


# --- both transports ----------------------------------------------------------------------------------------


async def test_a_request_has_the_clients_version_and_headers(stub: MakeStub, send: Send) -> None:
    server = stub({"status": "L"}, YES)
    settings = Settings(server.url + "/api/v3", headers={"Authorization": "Bearer s3cret", "X-Site": "north"})
    assert await send(settings, routes.log_heartbeat(5, RunStatus.LINKING, 93.0)) is RunStatus.LINKING
    assert (await send(settings, routes.is_resumable(7))).resumable
    beat, look = server.requests
    assert (beat.method, look.method) == ("POST", "GET")
    version = f"client_jobmon_version={protocol.CLIENT_VERSION}"
    assert beat.path == f"/api/v3/workflow_run/5/log_heartbeat?{version}"
    assert look.path == f"/api/v3/workflow/7/is_resumable?{version}"
    assert beat.body == {"next_report_increment": 93.0, "status": "L"}
    assert look.body is None
    assert beat.headers["Authorization"] == "Bearer s3cret"
    assert beat.headers["X-Site"] == "north"
    assert beat.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(200, b"<html>Log in</html>"), UnreadableReply),
        (Reply(200, {"other": 1}), UnreadableReply),
        (Reply(200, ["list"]), UnreadableReply),
        (Reply(302, b"", (("Location", "http://elsewhere.invalid/"),)), InvalidRequest),
        (Reply(401, b"who?"), NotAuthorized),
        (Reply(404, b"<html>nginx</html>"), InvalidRequest),
        (Reply(422, {"detail": []}), InvalidRequest),
        (Reply(423, {"error": {"type": "deadlock"}}), ServerFailure),
        (Reply(500, b"oops"), ServerFailure),
        (Reply(503, b"", (("Retry-After", "3"),)), ServerFailure),
    ],
    ids=lambda value: getattr(value, "__name__", None) or f"{value.status}-{str(value.body)[:12]}",
)
async def test_what_comes_back_is_the_same_error_in_both(
    stub: MakeStub, send: Send, reply: Reply, error: type[JobmonError]
) -> None:
    server = stub(reply)
    with pytest.raises(error) as caught:
        await send(Settings(server.url + "/api/v3"), routes.is_resumable(7))
    assert f"GET {server.url}/api/v3/workflow/7/is_resumable" in str(caught.value)
    assert len(server.requests) == 1  # no redirect is followed
    if isinstance(caught.value, ServerFailure):
        assert caught.value.processed == (reply.status != 423)


async def test_a_server_that_hangs_up_has_heard_a_post_once(stub: MakeStub, send: Send) -> None:
    server = stub(HANG_UP)
    with pytest.raises(ServerUnreachable) as caught:
        await send(Settings(server.url), routes.create_workflow_run(7, "alice", 93))
    assert f"POST {server.url}/workflow_run" in str(caught.value)
    assert caught.value.processed
    assert len(server.requests) == 1


async def test_a_refused_connection_is_unreachable(send: Send) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ServerUnreachable, match=r"Connection refused; is the server up") as caught:
            await send(Settings(url), routes.is_resumable(7))
    assert not caught.value.processed
    assert url in str(caught.value)


async def test_a_silent_server_is_given_up_in_time(send: Send) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = Settings(f"http://127.0.0.1:{silent.getsockname()[1]}", request_timeout=0.2)
        with pytest.raises(ServerUnreachable, match=r"no reply within 0\.2 s") as caught:
            await send(settings, routes.is_resumable(7))
    assert caught.value.processed


async def test_a_body_without_end_is_not_read_to_it(
    stub: MakeStub, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses, "MAX_REPLY_BYTES", 100_000)
    server = stub(Reply(200, b" " * 10_000_000))
    with pytest.raises(UnreadableReply, match="a reply of more than 100000 bytes"):
        await send(Settings(server.url), routes.is_resumable(7))


async def test_credentials_in_the_address_are_sent_and_never_shown(stub: MakeStub, send: Send) -> None:
    server = stub(Reply(500, b"oops"))
    settings = Settings(server.url.replace("//", "//alice:p%40ss@"))
    with pytest.raises(ServerFailure) as caught:
        await send(settings, routes.is_resumable(7))
    assert server.requests[0].headers["Authorization"] == "Basic YWxpY2U6cEBzcw=="
    for text in (str(caught.value), repr(settings), settings.service_url):
        assert "p%40ss" not in text
        assert "p@ss" not in text
        assert "YWxp" not in text


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
async def test_certificates_are_checked_unless_told_otherwise(
    stub: MakeStub, send: Send, tmp_path: Path
) -> None:
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    server = stub(YES, tls=tls)
    with pytest.raises(CertificateNotTrusted, match="certificate verify failed") as caught:
        await send(Settings(server.url), routes.is_resumable(7))
    assert server.url in str(caught.value)
    assert not server.requests
    assert (await send(Settings(server.url, verify=str(bundle)), routes.is_resumable(7))).resumable
    assert (await send(Settings(server.url, verify=False), routes.is_resumable(7))).resumable


async def test_a_client_certificate_is_sent(stub: MakeStub, send: Send, tmp_path: Path) -> None:
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.verify_mode = ssl.CERT_REQUIRED
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.configure_trust(tls)
    bundle, both, cert, key = (str(tmp_path / name) for name in ("ca", "both", "cert", "key"))
    authority.cert_pem.write_to_path(bundle)
    client = authority.issue_cert("client@example.org")
    client.private_key_and_cert_chain_pem.write_to_path(both)
    client.private_key_pem.write_to_path(key)
    client.cert_chain_pems[0].write_to_path(cert)
    server = stub(YES, tls=tls)
    ways: list[dict[str, Any]] = [{"client_cert": both}, {"client_cert": cert, "client_key": key}]
    for files in ways:
        settings = Settings(server.url, verify=bundle, **files)
        assert (await send(settings, routes.is_resumable(7))).resumable
    with pytest.raises(ServerUnreachable):
        await send(Settings(server.url, verify=bundle), routes.is_resumable(7))
    assert len(server.requests) == 2


async def test_netrc_is_not_a_source_of_credentials(
    stub: MakeStub, send: Send, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login alice password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    server = stub(YES)
    await send(Settings(server.url), routes.is_resumable(7))
    assert "Authorization" not in server.requests[0].headers


# --- the blocking one ---------------------------------------------------------------------------------------


def look(requester: Requester) -> tuple[int, Any]:
    return requester.send_request("/workflow/7/is_resumable", {}, "get")


@pytest.mark.parametrize(
    "first", [Reply(500, b"oops"), Reply(503, b""), Reply(423, b""), Reply(429, b""), HANG_UP]
)
def test_what_is_worth_it_is_tried_again_with_growing_pauses(
    stub: MakeStub, quick: list[float], first: Reply
) -> None:
    server = stub(first, first, first, YES)
    assert look(Requester(server.url)) == (200, YES)
    assert len(server.requests) == 4
    assert len(quick) == 3
    assert all(0.5 <= wait <= 32 for wait in quick)
    assert quick[2] > quick[0]


@pytest.mark.parametrize(
    "reply",
    [Reply(400, b""), Reply(401, b""), Reply(404, b""), Reply(422, b""), NO_RESULT, Reply(200, b"<p>")],
)
def test_what_is_not_worth_a_retry_is_tried_once(stub: MakeStub, quick: list[float], reply: Reply) -> None:
    server = stub(reply)
    with pytest.raises(JobmonError):
        look(Requester(server.url))
    assert len(server.requests) == 1
    assert not quick


def test_a_connection_that_is_refused_is_tried_again(quick: list[float]) -> None:
    with pytest.raises(ServerUnreachable):
        look(Requester("http://127.0.0.1:9", retries_attempts=4))
    assert len(quick) == 3


@pytest.mark.parametrize(
    "patience", [{"retries_timeout": 0}, {"retries_attempts": 1}, {"retries_attempts": 0}]
)
def test_a_requester_without_patience_tries_once(
    stub: MakeStub, quick: list[float], patience: dict[str, Any]
) -> None:
    server = stub(Reply(500, b"oops"))
    with pytest.raises(ServerFailure):
        look(Requester(server.url, **patience))
    assert len(server.requests) == 1


def test_retries_end_before_their_time_is_over(stub: MakeStub) -> None:
    server = stub(Reply(500, b"oops"))
    started = time.monotonic()
    with pytest.raises(ServerFailure):
        look(Requester(server.url, retries_timeout=4))  # the first pause is of one to two seconds
    assert time.monotonic() - started < 5
    assert len(server.requests) >= 2


def test_one_that_is_not_tenacious_tries_once(stub: MakeStub, quick: list[float]) -> None:
    server = stub(Reply(500, b"oops"))
    with pytest.raises(ServerFailure):
        Requester(server.url).send_request("/health", {}, "get", tenacious=False)
    assert len(server.requests) == 1


def test_the_server_says_when_to_come_back(stub: MakeStub, quick: list[float]) -> None:
    server = stub(Reply(503, b"", (("Retry-After", "17"),)), YES)
    look(Requester(server.url))
    assert quick == [17]


def test_each_retry_is_logged_in_one_line(
    stub: MakeStub, quick: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    server = stub(Reply(500, b"oops"), YES)
    with caplog.at_level(logging.WARNING):
        look(Requester(server.url))
    (record,) = caplog.records
    assert f"GET {server.url}/workflow/7/is_resumable: 500 oops; trying again in" in record.getMessage()


def test_a_requester_keeps_its_connection(stub: MakeStub) -> None:
    server = stub(YES)
    requester = Requester(server.url)
    for _ in range(5):
        look(requester)
    assert server.connections == 1


def test_a_proxy_of_the_environment_is_used(stub: MakeStub, monkeypatch: pytest.MonkeyPatch) -> None:
    server = stub(YES)
    monkeypatch.setenv("http_proxy", server.url)
    assert look(Requester("http://jobmon.invalid")) == (200, YES)
    assert server.requests[0].path.startswith("http://jobmon.invalid/workflow/7/is_resumable")


def test_a_deadline_that_is_over_is_over_even_if_there_is_more_to_read() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.makefile("rb", buffering=0) as raw:
        ours.settimeout(0.2)
        reading = io.BufferedReader(deadline.Reading(raw, ours), 1)
        theirs.sendall(b"ab")
        assert reading.read(1) == b"a"
        time.sleep(0.21)  # the deadline is a matter of time, and of nothing else that could be waited for
        with pytest.raises(TimeoutError):
            reading.read(1)


def test_only_jobmons_three_request_types_are_known() -> None:
    with pytest.raises(ValueError, match="request_type must be 'get', 'post' or 'put', not 'delete'"):
        Requester("http://127.0.0.1:9").send_request("/health", {}, "delete")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"retries_timeout": -1}, "retries_timeout"),
        ({"retries_timeout": float("nan")}, "retries_timeout"),
        ({"retries_attempts": -1}, "retries_attempts"),
        ({"retries_attempts": 1.5}, "retries_attempts"),
        ({"retries_attempts": True}, "retries_attempts"),
        ({"request_timeout": 0}, "request_timeout"),
        ({"request_timeout": float("inf")}, "request_timeout"),
    ],
)
def test_a_bad_number_is_refused_by_name(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Requester("http://127.0.0.1:9", **options)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "jobmon",
        "ftp://jobmon",
        "http://",
        "http://a b",
        "http://jobmon:port",
        "http://h:0",
        None,
        "http://[::1",
    ],
)
def test_an_address_that_is_none_is_refused(url: Any) -> None:
    with pytest.raises(ConfigError, match="address must look like"):
        Requester(url)


def test_names_and_defaults_are_jobmons() -> None:
    requester = Requester("http://127.0.0.1:9/api/v3/")
    assert requester.url == requester.service_url == "http://127.0.0.1:9/api/v3"
    assert (requester.retries_timeout, requester.retries_attempts, requester.request_timeout) == (300, 10, 20)
    assert repr(requester) == "Requester('http://127.0.0.1:9/api/v3')"
    assert Requester("http://h", 1, 2, 3).request_timeout == 3


def test_any_object_with_send_request_can_be_asked() -> None:
    class Minimal:
        def send_request(
            self, app_route: str, message: dict[str, Any], request_type: str, tenacious: bool = True
        ) -> tuple[int, Any]:
            if app_route == "/boom":
                raise KeyError("a bug of its own")
            return 200, {"status": "L"}

    assert ask(Minimal(), routes.peek_status(5)) is RunStatus.LINKING
    bug: protocol.Call[Any] = protocol.Call("get", "/boom", {}, lambda reply: reply)
    with pytest.raises(KeyError, match="a bug of its own"):
        ask(Minimal(), bug)


def test_retries_stop_for_what_is_not_worth_it() -> None:
    tries = []

    def fail() -> None:
        tries.append(1)
        raise RecordNotFound("none")

    with pytest.raises(RecordNotFound):
        retries(300, 10, protocol.is_retryable)(fail)
    assert len(tries) == 1


# --- conversations ------------------------------------------------------------------------------------------


def talk() -> Any:
    yield Note(logging.WARNING, "hello 100%")
    yield Pause(0.01)
    try:
        yield Ask(routes.is_resumable(7))
    except ServerFailure:
        answer = yield Ask(routes.is_resumable(7))
        return answer.resumable


def test_a_conversation_runs_blocking(stub: MakeStub, caplog: pytest.LogCaptureFixture) -> None:
    waited: list[float] = []
    requester = Requester(stub(Reply(500, b"oops"), YES).url)
    assert converse(requester, talk(), sleep=waited.append) is True
    assert waited == [0.01]
    assert caplog.messages == ["hello 100%"]


async def test_a_conversation_runs_in_asyncio(stub: MakeStub, caplog: pytest.LogCaptureFixture) -> None:
    async with AsyncRequester(Settings(stub(Reply(500, b"oops"), YES).url)) as requester:
        assert await requester.converse(talk()) is True
    assert caplog.messages == ["hello 100%"]


def test_the_simulation_runs_it_like_the_transports() -> None:
    failed: list[int] = []

    def answer(call: protocol.Call[Any], now: float) -> Any:
        failed.append(1)
        return YES if len(failed) > 1 else ServerFailure("500")

    sim = Simulation(answer)
    assert sim.run(talk()) is True
    assert sim.warnings == ["hello 100%"]


def test_a_conversation_whose_wait_is_interrupted_is_closed() -> None:
    closed = []

    def forever() -> Any:
        try:
            yield Pause(60)
        finally:
            closed.append(True)

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        converse(Requester("http://127.0.0.1:9"), forever(), sleep=interrupted)
    assert closed == [True]


def test_a_conversation_is_told_what_came_of_each_step_and_of_no_other() -> None:
    heard = []

    def listening() -> Any:
        heard.append((yield Ask(routes.is_resumable(7))))
        heard.append((yield Note(logging.INFO, "a note")))
        heard.append((yield Pause(1)))
        try:
            yield Ask(routes.is_resumable(7))
        except ServerFailure as error:
            heard.append(str(error))
        heard.append((yield Pause(1)))
        return "the end"

    driver = Driver(listening(), logging.getLogger(__name__))
    with driver:
        assert isinstance(next(driver), Ask)
        driver.reply = "a reply"
        assert next(driver) == Pause(1)
        assert isinstance(next(driver), Ask)
        driver.error = ServerFailure("503")
        assert list(driver) == [Pause(1)]
    assert heard == ["a reply", None, None, "503", None]
    assert driver.result == "the end"


async def test_a_conversation_that_is_cancelled_is_closed(stub: MakeStub) -> None:
    closed = []

    def forever() -> Any:
        try:
            yield Pause(60)
        finally:
            closed.append(True)

    async with AsyncRequester(Settings(stub(YES).url)) as requester:
        task = asyncio.create_task(requester.converse(forever()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert closed == [True]


async def test_the_asyncio_one_must_be_entered() -> None:
    requester = AsyncRequester(Settings("http://127.0.0.1:9"))
    with pytest.raises(RuntimeError, match="asynchronous context manager"):
        await requester.ask(routes.health())
    await requester.__aexit__(None, None, None)

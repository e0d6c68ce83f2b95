"""Whose certificate is trusted, what is said of one that is not, and what happens when files are renewed."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from airflow_jobmon_provider.client import async_requester, protocol
from airflow_jobmon_provider.client._http.environment import Way, way_to
from airflow_jobmon_provider.client.async_requester import AsyncRequester
from airflow_jobmon_provider.client.exceptions import (
    CertificateNotTrusted,
    ConfigError,
    JobmonError,
    ServerUnreachable,
    UnreadableCertificate,
)
from airflow_jobmon_provider.client.protocol import routes
from airflow_jobmon_provider.client.requester import Requester, ask
from airflow_jobmon_provider.client.settings import Settings
from airflow_jobmon_provider.triggers.jobmon import WorkflowResumableTrigger, WorkflowRunHeartbeatTrigger
from tests.client.timed_transports import COSTLY_LOOK, Asking, blocking, nonblocking
from tests.stub_server import StubServer
from tests.tunnel_proxy import TunnelProxy

MakeStub = Callable[..., StubServer]

REPLY = {"status": "L", "workflow_is_resumable": True}
BEAT, LOOK = routes.peek_status(5), routes.is_resumable(7)
CREATE = routes.create_workflow_run(7, "alice", 93)


@pytest.fixture(params=[blocking, nonblocking])
def exchange(request: pytest.FixtureRequest) -> Asking:
    """Ask once in a conversation, through either transport."""
    asking: Asking = request.param
    return asking


@pytest.fixture(params=[BEAT, LOOK], ids=["beat", "look"])
def call(request: pytest.FixtureRequest) -> protocol.Call[Any]:
    """What is asked: the heartbeat goes its own way."""
    asked: protocol.Call[Any] = request.param
    return asked


@pytest.fixture(autouse=True)
def _no_way_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.lower().endswith("_proxy") or name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            monkeypatch.delenv(name)


class Site:
    """A CA, a server whose certificate is of it, and the bundle that a user has."""

    def __init__(self, stub: MakeStub, folder: Path) -> None:
        self.authority = trustme.CA()
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert("127.0.0.1").configure_cert(self.tls)
        self.server = stub(REPLY, tls=self.tls)
        self.bundle = folder / "bundle.pem"
        self.authority.cert_pem.write_to_path(str(self.bundle))
        self.settings = Settings(self.server.url, verify=str(self.bundle))

    def change_authority(self) -> None:
        """The server gets a certificate of another CA."""
        self.authority = trustme.CA()
        self.authority.issue_cert("127.0.0.1").configure_cert(self.tls)

    def renew_bundle(self) -> None:
        """The user gets that CA's bundle."""
        renewed = self.bundle.with_suffix(".new")
        self.authority.cert_pem.write_to_path(str(renewed))
        renewed.replace(self.bundle)


@pytest.fixture
def site(stub: MakeStub, tmp_path: Path) -> Site:
    """A server with a certificate that its users trust."""
    return Site(stub, tmp_path)


# --- what is not trusted ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "options", "why", "advice"),
    [
        (("127.0.0.1",), {"other": True}, "unable to get local issuer", "set verify in the connection's ext"),
        (("elsewhere.example",), {}, "IP address mismatch", "connect to a host that the certificate names"),
        (("127.0.0.1",), {"age": -2}, "certificate has expired", "the server's administrator has to renew"),
        (("127.0.0.1",), {"age": 2}, "not yet valid", "are the clocks right"),
    ],
    ids=["unknown CA", "another host", "expired", "too young"],
)
@pytest.mark.parametrize("proxied", [False, True], ids=["direct", "proxy"])
async def test_a_certificate_that_is_not_trusted_is_final_and_says_what_to_do(
    stub: MakeStub,
    exchange: Asking,
    call: protocol.Call[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...],
    options: dict[str, Any],
    why: str,
    advice: str,
    proxied: bool,
) -> None:
    authority = trustme.CA()
    now = datetime.datetime.now(datetime.timezone.utc)
    begin = now + datetime.timedelta(days=options.get("age", 0)) - datetime.timedelta(days=1)
    cert = authority.issue_cert(*names, not_before=begin, not_after=begin + datetime.timedelta(days=2))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    cert.configure_cert(tls)
    bundle = tmp_path / "ca.pem"
    (trustme.CA() if "other" in options else authority).cert_pem.write_to_path(str(bundle))
    server = stub(REPLY, tls=tls)
    with TunnelProxy() as proxy:
        if proxied:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with pytest.raises(CertificateNotTrusted) as caught:
            await exchange(Settings(server.url, verify=str(bundle)), call)
        assert bool(proxy.tunnels) is proxied
    line = str(caught.value)
    assert line.startswith(f"{call.verb.upper()} {server.url}{call.route}: certificate verify failed: ")
    assert why in line
    assert advice in line
    assert "\n" not in line
    assert not server.requests
    assert not protocol.is_retryable(caught.value)


def test_a_blocking_requester_does_not_try_an_untrusted_server_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", pytest.fail)
    with pytest.raises(CertificateNotTrusted):
        ask(Requester(site.server.url), LOOK)


def test_nor_is_it_an_outage_with_a_requester_of_another_kind(site: Site) -> None:
    import requests

    class Foreign:
        service_url = site.server.url

        def send_request(
            self, app_route: str, message: dict[str, Any], request_type: str, tenacious: bool = True
        ) -> tuple[int, Any]:
            return 200, requests.get(self.service_url + app_route, timeout=10).json()

    with pytest.raises(CertificateNotTrusted, match="CERTIFICATE_VERIFY_FAILED"):
        ask(Foreign(), LOOK)


@pytest.mark.parametrize("make", [WorkflowResumableTrigger, WorkflowRunHeartbeatTrigger])
async def test_a_trigger_ends_with_an_event_that_says_so(
    site: Site, make: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = {"conn_type": "jobmon", "host": site.server.url}
    monkeypatch.setenv("AIRFLOW_CONN_JOBMON_DEFAULT", json.dumps(connection))
    events = [event async for event in make(7).run()]
    (event,) = events
    assert event.payload["status"] == "error"
    assert "certificate verify failed" in event.payload["message"]


# --- what is an outage --------------------------------------------------------------------------------------


@pytest.fixture
def cutting() -> Iterator[str]:
    """A server that ends every connection at the first bytes of the TLS handshake."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(100)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


@pytest.mark.parametrize("asked", [BEAT, LOOK, CREATE], ids=["beat", "look", "create"])
async def test_a_handshake_that_is_cut_is_an_outage(
    exchange: Asking, cutting: str, asked: protocol.Call[Any]
) -> None:
    with pytest.raises(ServerUnreachable, match="is the server up") as caught:
        await exchange(Settings(cutting), asked)
    assert not caught.value.processed


async def test_an_untrusted_certificate_behind_a_proxy_is_told_too(
    exchange: Asking, call: protocol.Call[Any], site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TunnelProxy(cuts=True) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        with pytest.raises(ServerUnreachable, match=rf"\(through the environment's proxy {proxy.url}\)") as e:
            await exchange(site.settings, call)
    assert not e.value.processed


async def test_a_server_without_tls_is_told_as_such(
    stub: MakeStub, exchange: Asking, call: protocol.Call[Any]
) -> None:
    url = stub(REPLY).url.replace("http:", "https:")
    with pytest.raises(ServerUnreachable, match="does not speak TLS; is it http instead of https") as caught:
        await exchange(Settings(url), call)
    assert not caught.value.processed


# --- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "files",
    [
        {"verify": "/no/such/bundle"},
        {"verify": __file__},
        {"client_cert": "/no/such/certificate"},
        {"client_cert": __file__},
    ],
    ids=["no bundle", "no bundle in it", "no certificate", "no certificate in it"],
)
async def test_a_file_that_cannot_be_read_is_named(exchange: Asking, files: dict[str, Any]) -> None:
    with pytest.raises(UnreadableCertificate, match="cannot be read") as caught:
        await exchange(Settings("https://127.0.0.1:9", **files), LOOK)
    assert isinstance(caught.value, ConfigError)
    assert next(iter(files.values())) in str(caught.value)


async def test_nor_is_the_password_of_an_encrypted_key_asked_for(exchange: Asking, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    encrypted = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"secret"))
    cert, path = trustme.CA().issue_cert("client@example.org"), tmp_path / "key.pem"
    cert.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    path.write_bytes(encrypted)
    settings = Settings("https://127.0.0.1:9", client_cert=str(tmp_path / "cert.pem"), client_key=str(path))
    with pytest.raises(UnreadableCertificate, match=rf"client certificate \S+ and {path} cannot be read"):
        await exchange(settings, LOOK)


def test_a_blocking_requester_loads_a_renewed_bundle(site: Site) -> None:
    requester = Requester.from_settings(site.settings)
    ask(requester, LOOK)
    site.change_authority()
    requester.close()  # a connection that is open stays so
    with pytest.raises(CertificateNotTrusted):
        ask(requester, LOOK)
    site.renew_bundle()
    ask(requester, LOOK)


def test_it_goes_on_with_the_old_one_while_the_new_one_is_incomplete(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    requester = Requester.from_settings(site.settings)
    ask(requester, LOOK)
    site.bundle.write_text("-----BEGIN")
    ask(requester, LOOK)
    assert "bundle.pem cannot be read" in caplog.text
    assert "going on with what was read before" in caplog.text


async def test_a_bundle_is_renewed_while_a_trigger_lives(site: Site, call: protocol.Call[Any]) -> None:
    async with AsyncRequester(site.settings) as living:
        await living.ask(call)
        pool = living._pool
        site.change_authority()
        with pytest.raises(CertificateNotTrusted):
            await living.ask(COSTLY_LOOK)  # on a fresh connection; those that are open stay so
        site.renew_bundle()
        async with AsyncRequester(site.settings) as joining:
            assert joining._pool is pool
            await joining.ask(call)
        await living.ask(call)


async def test_a_trigger_that_is_alone_meets_a_renewed_bundle_without_failing(
    site: Site, call: protocol.Call[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(async_requester, "_KEEP_ALIVE", 0.001)  # so that each request connects anew
    async with AsyncRequester(site.settings) as living:
        await living.ask(call)
        site.change_authority()
        site.renew_bundle()
        asked = [living.ask(call) for _ in range(10)]
        await asyncio.gather(*asked)


async def test_the_files_are_looked_at_now_and_then_while_requests_go_on(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(async_requester, "_LOOK_AT_FILES_EVERY", 0.0)
    async with AsyncRequester(site.settings) as living:
        await living.ask(BEAT)
        pool = living._pool
        assert pool is not None
        before = pool.connections
        await pool.read_files()
        assert pool.connections is before
        site.renew_bundle()  # the same content
        await living.ask(LOOK)
        await pool.read_files()
        assert pool.connections is not before
        site.bundle.write_text("-----BEGIN")
        await pool.read_files()
        assert "going on with what was read before" in caplog.text
        await living.ask(BEAT)


async def test_connections_that_are_replaced_are_closed_when_the_last_request_over_them_has_ended(
    site: Site,
) -> None:
    async with AsyncRequester(site.settings) as living:
        pool = living._pool
        assert pool is not None
        old = pool.connections
        old.users += 1
        site.renew_bundle()
        await pool.read_files()
        assert not old.session.closed
        old.users -= 1
        await living._use(old, living._prepare(LOOK, pool), pool.loop.time() + 10)
        assert old.session.closed
        assert not pool.connections.session.closed


async def test_a_renewed_client_certificate_is_sent(
    stub: MakeStub, exchange: Asking, call: protocol.Call[Any], tmp_path: Path
) -> None:
    ours, theirs, stranger = trustme.CA(), trustme.CA(), trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.verify_mode = ssl.CERT_REQUIRED
    theirs.issue_cert("127.0.0.1").configure_cert(tls)
    ours.configure_trust(tls)
    server = stub(REPLY, tls=tls)
    bundle, client = tmp_path / "ca.pem", tmp_path / "client.pem"
    theirs.cert_pem.write_to_path(str(bundle))
    stranger.issue_cert("me@example.org").private_key_and_cert_chain_pem.write_to_path(str(client))
    settings = Settings(server.url, verify=str(bundle), client_cert=str(client), request_timeout=5)
    requester = Requester.from_settings(settings)
    async with AsyncRequester(settings) as living:

        async def send() -> Any:
            if exchange is blocking:
                return await asyncio.to_thread(ask, requester, call, tenacious=False)
            return await living.ask(call)

        with pytest.raises(JobmonError):
            await send()
        ours.issue_cert("me@example.org").private_key_and_cert_chain_pem.write_to_path(str(client))
        for _ in range(3):  # the test's own server has been seen not to take a connection in time
            with contextlib.suppress(ServerUnreachable):
                await send()
                break
    requester.close()
    assert len(server.requests) == 1


async def test_a_pool_that_is_left_while_files_are_read_is_closed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncRequester(site.settings) as living:
        pool = living._pool
        assert pool is not None
        pool._look()
    assert not async_requester._pools[asyncio.get_running_loop()]


async def test_who_stops_waiting_for_a_pool_leaves_none_behind(site: Site) -> None:
    joining = asyncio.create_task(AsyncRequester(site.settings).__aenter__())
    await asyncio.sleep(0)
    joining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await joining
    assert not async_requester._pools[asyncio.get_running_loop()]


async def test_verify_may_name_a_folder_of_cas(site: Site, exchange: Asking) -> None:
    folder = site.bundle.parent / "cas"
    folder.mkdir()
    with pytest.raises(CertificateNotTrusted):
        await exchange(Settings(site.server.url, verify=str(folder)), LOOK)


def test_every_file_that_tls_reads_is_watched_for_renewal(tmp_path: Path) -> None:
    cert, key = str(tmp_path / "cert"), str(tmp_path / "key")
    way = way_to(Settings("https://jobmon", verify="/b", client_cert=cert, client_key=key))
    assert set(way.files) == {"/b", cert, key}
    assert way.stamps() == (None, None, None)
    (tmp_path / "key").write_text("x")
    assert way.stamps() != (None, None, None)
    assert way_to(Settings("http://jobmon", verify="/b", client_cert=cert)).files == ()
    assert len(way_to(Settings("https://jobmon")).files) >= 1  # certifi's at least
    assert Way(None, False, None, None, tls=True).files == ()


async def test_a_file_system_that_hangs_holds_up_nobody_for_long(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    async with AsyncRequester(site.settings) as living:
        monkeypatch.setattr(async_requester, "_LONGEST_LOOK", 0.05)
        monkeypatch.setattr(Way, "stamps", lambda way: over.wait(60))
        async with AsyncRequester(site.settings) as joining:
            await joining.ask(BEAT)
            await living.ask(LOOK)
        over.set()

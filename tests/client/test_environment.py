"""Worker and triggerer read the environment alike: proxies, CAs, and nothing of ~/.netrc."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme

from airflow_jobmon_provider.client import protocol
from airflow_jobmon_provider.client._http.environment import Proxy, way_to
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
from airflow_jobmon_provider.client.settings import Settings, basic_authorization
from tests.client.timed_transports import Asking, blocking, nonblocking
from tests.stub_server import Reply, StubServer
from tests.tunnel_proxy import TunnelProxy

MakeStub = Callable[..., StubServer]

REPLY = {"status": "L", "workflow_is_resumable": True}
BEAT, LOOK = routes.peek_status(5), routes.is_resumable(7)


@pytest.fixture(autouse=True)
def _no_way_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.lower().endswith("_proxy") or name in (
            "REQUESTS_CA_BUNDLE",
            "CURL_CA_BUNDLE",
            "SSL_CERT_FILE",
        ):
            monkeypatch.delenv(name)


@pytest.fixture(params=[blocking, nonblocking])
def exchange(request: pytest.FixtureRequest) -> Asking:
    """Ask once in a conversation, through either transport."""
    asking: Asking = request.param
    return asking


# --- proxies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "proxied"),
    [
        ({"HTTP_PROXY": "{}"}, True),
        ({"http_proxy": "{}"}, True),
        ({"ALL_PROXY": "{}"}, True),
        ({"all_proxy": "{bare}"}, True),
        ({"HTTPS_PROXY": "{}"}, False),
        ({"HTTP_PROXY": ""}, False),
        ({"HTTP_PROXY": "{}", "NO_PROXY": "127.0.0.0/8"}, False),
        ({"HTTP_PROXY": "{}", "no_proxy": "127.0.0.1"}, False),
        ({"HTTP_PROXY": "{}", "NO_PROXY": "*"}, False),
        ({"HTTP_PROXY": "{}", "NO_PROXY": "10.0.0.0/8,.example"}, True),
        ({"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "{}"}, True),
    ],
    ids=str,
)
async def test_both_transports_take_the_same_proxy(
    stub: MakeStub,
    exchange: Asking,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    proxied: bool,
) -> None:
    server, proxy = stub(REPLY), stub(REPLY)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(proxy.url, bare=proxy.url.partition("//")[2]))
    for call in (BEAT, LOOK):
        await exchange(Settings(server.url), call)
    assert (len(proxy.requests), len(server.requests)) == ((2, 0) if proxied else (0, 2))


@pytest.mark.parametrize(
    ("no_proxy", "address"),
    [
        ("jobmon.example", "http://jobmon.example:8070/api/v3"),
        (".example", "http://jobmon.example:8070"),
        ("jobmon.example:8070", "http://jobmon.example:8070"),
        ("jobmon.example:80", "http://jobmon.example:8070"),
        ("192.168.0.0/16", "https://192.168.7.1"),
        ("192.168.0.0/16", "https://192.169.7.1"),
        (" a , 10.0.0.1 ", "http://10.0.0.1"),
        ("::1", "http://[::1]:8070"),
        ("", "http://jobmon.example"),
    ],
)
def test_who_needs_no_proxy_is_decided_as_requests_decides_it(
    monkeypatch: pytest.MonkeyPatch, no_proxy: str, address: str
) -> None:
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", f"http://{scheme}.proxy:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    theirs = requests.Session().merge_environment_settings(address, {}, None, None, None)["proxies"]
    ours = way_to(Settings(address)).proxy
    assert (ours and ours.address) == theirs.get(address.partition(":")[0])


async def test_both_transports_tunnel_to_https(
    stub: MakeStub, exchange: Asking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, bundle = secure(stub, tmp_path)
    authorization = basic_authorization("alice", "p@ss/w:rd")
    with TunnelProxy(authorization) as proxy:
        for login, passes in (("alice:p%40ss%2Fw%3Ard@", True), ("alice:wr0ng-pw@", False), ("", False)):
            monkeypatch.setenv("https_proxy", proxy.url.replace("//", f"//{login}"))
            for call in (BEAT, LOOK):
                if passes:
                    await exchange(Settings(server.url, verify=bundle), call)
                    continue
                with pytest.raises(
                    ServerUnreachable, match=f"environment's proxy {proxy.url}.*407"
                ) as caught:
                    await exchange(Settings(server.url, verify=bundle), call)
                assert "wr0ng" not in str(caught.value)
                assert not caught.value.processed
        assert len(proxy.tunnels) == 6
    assert len(server.requests) == 2
    assert not any("Proxy-Authorization" in request.headers for request in server.requests)


async def test_the_password_of_a_proxy_is_sent_to_it_and_never_shown(
    stub: MakeStub, exchange: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = stub(REPLY, REPLY, Reply(407, b"who?"))
    monkeypatch.setenv("http_proxy", proxy.url.replace("//", "//alice:s3cret-pw@"))
    settings = Settings("http://jobmon.invalid")
    for call in (BEAT, LOOK):
        await exchange(settings, call)
    expected = basic_authorization("alice", "s3cret-pw")
    assert [request.headers["Proxy-Authorization"] for request in proxy.requests] == [expected] * 2
    assert "Authorization" not in proxy.requests[0].headers
    with pytest.raises(JobmonError) as refused:
        await exchange(settings, LOOK)
    monkeypatch.setenv("http_proxy", "http://alice:s3cret-pw@127.0.0.1:9")
    with pytest.raises(ServerUnreachable, match=r"proxy http://127\.0\.0\.1:9\): Connection refused") as dead:
        await exchange(settings, LOOK)
    assert not dead.value.processed
    for shown in (str(refused.value), str(dead.value), repr(way_to(settings))):
        assert "s3cret" not in shown
        assert expected.split()[1] not in shown


@pytest.mark.parametrize(
    ("proxy", "says"),
    [
        ("socks5://alice:s3cret-pw@proxy:1080", "has the scheme 'socks5', which is not supported"),
        ("socks5h://proxy:1080", "has the scheme 'socks5h', which is not supported"),
        ("https://alice:s3cret-pw@proxy:443", "has the scheme 'https', which is not supported"),
        ("http://", "cannot be read"),
        ("http://alice:s3cret-pw@proxy:port", "cannot be read"),
    ],
)
async def test_a_proxy_that_one_of_them_cannot_use_is_refused_by_both(
    exchange: Asking, monkeypatch: pytest.MonkeyPatch, proxy: str, says: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(ConfigError, match=says) as caught:
        await exchange(Settings("http://jobmon.example/api"), LOOK)
    line = str(caught.value)
    assert "name jobmon.example in NO_PROXY" in line
    assert "s3cret" not in line
    assert "\n" not in line
    monkeypatch.setenv("NO_PROXY", "jobmon.example")
    assert way_to(Settings("http://jobmon.example/api")).proxy is None


def test_a_proxy_must_have_a_whole_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "alice@[::1]")
    assert way_to(Settings("http://h")).proxy == Proxy("http://[::1]:80", basic_authorization("alice", ""))


async def test_the_environment_is_read_when_a_requester_is_made(
    stub: MakeStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, proxy = stub(REPLY), stub(REPLY)
    settings = Settings(server.url)
    async with AsyncRequester(settings) as direct:
        requester = Requester.from_settings(settings)
        monkeypatch.setenv("http_proxy", proxy.url)
        async with AsyncRequester(settings) as proxied:
            for asyncronous in (direct, proxied):
                await asyncronous.ask(LOOK)
        ask(requester, LOOK)
        ask(Requester.from_settings(settings), LOOK)
    assert (len(server.requests), len(proxy.requests)) == (2, 2)


# --- ~/.netrc -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("no_proxy", ["", "127.0.0.0/8"])
async def test_no_transport_reads_netrc(
    stub: MakeStub, exchange: Asking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_proxy: str
) -> None:
    for name in (".netrc", "_netrc"):
        (tmp_path / name).write_text("default login alice password s3cret-pw\n")
        (tmp_path / name).chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    server = stub(REPLY)
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", no_proxy)
    for call in (BEAT, LOOK):
        await exchange(Settings(server.url), call)
    sent = {name.lower() for request in server.requests for name in request.headers}
    assert sent.isdisjoint({"authorization", "proxy-authorization"})
    assert len(server.requests) == 2


# --- CAs ----------------------------------------------------------------------------------------------------


def secure(stub: MakeStub, folder: Path) -> tuple[StubServer, str]:
    """Return a server over TLS, and the path of its CA bundle."""
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    bundle = folder / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    return stub(REPLY, tls=tls), str(bundle)


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
async def test_both_trust_the_bundle_that_the_environment_names(
    stub: MakeStub, exchange: Asking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    server, bundle = secure(stub, tmp_path)
    with pytest.raises(CertificateNotTrusted):
        await exchange(Settings(server.url), LOOK)
    monkeypatch.setenv(variable, bundle)
    for call in (BEAT, LOOK):
        await exchange(Settings(server.url), call)


async def test_what_the_connection_says_comes_first(
    stub: MakeStub, exchange: Asking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, bundle = secure(stub, tmp_path)
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other))
    monkeypatch.setenv("CURL_CA_BUNDLE", bundle)
    with pytest.raises(CertificateNotTrusted):
        await exchange(Settings(server.url), LOOK)
    await exchange(Settings(server.url, verify=bundle), LOOK)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/bundle")
    with pytest.raises(UnreadableCertificate, match="/no/such/bundle cannot be read: No such file"):
        await exchange(Settings(server.url), LOOK)


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
async def test_a_connection_that_checks_no_certificate_needs_no_bundle(
    stub: MakeStub, exchange: Asking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = secure(stub, tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/bundle")
    for call in (BEAT, LOOK):
        await exchange(Settings(server.url, verify=False), call)


# --- whose error it is --------------------------------------------------------------------------------------


@pytest.mark.parametrize("handled", [KeyError("of the caller"), TimeoutError("of the caller")], ids=repr)
async def test_an_error_that_the_caller_is_handling_is_none_of_ours(
    exchange: Asking, handled: Exception
) -> None:
    def ask_here(call: protocol.Call[Any]) -> object:
        try:
            raise handled
        except Exception:
            return ask(Requester("http://127.0.0.1:9"), call, tenacious=False)

    for call in (BEAT, LOOK):
        with pytest.raises(ServerUnreachable, match="Connection refused; is the server up"):
            ask_here(call)
        try:
            raise handled
        except Exception:
            with pytest.raises(ServerUnreachable, match="Connection refused; is the server up"):
                await exchange(Settings("http://127.0.0.1:9"), call)

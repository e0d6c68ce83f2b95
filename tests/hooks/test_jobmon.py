"""An Airflow connection becomes a client; everything wrong with it is one line."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme
from airflow.providers.common.compat import connection as airflow_connection
from airflow.providers.common.compat.sdk import AirflowNotFoundException, Connection

from airflow_jobmon_provider.client.exceptions import ConfigError, WorkflowNotFound
from airflow_jobmon_provider.client.heartbeat import Heartbeat
from airflow_jobmon_provider.client.protocol import routes
from airflow_jobmon_provider.client.settings import Settings
from airflow_jobmon_provider.hooks import jobmon as hook_module
from airflow_jobmon_provider.hooks.connection import JobmonServer, server_of_connection
from airflow_jobmon_provider.hooks.fields import EXTRA, FORM_BEHAVIOUR, Kind, form_fields
from airflow_jobmon_provider.hooks.jobmon import JobmonHook
from dev.jobmon_sandbox import JobmonSandbox
from tests.running_airflow import AIRFLOW
from tests.stub_server import Reply, StubServer


def server(extra: Any = None, **fields: Any) -> JobmonServer:
    text = extra if extra is None or isinstance(extra, str) else json.dumps(extra)
    fields.setdefault("host", "jobmon.example")
    return server_of_connection(Connection(conn_id="jm", conn_type="jobmon", extra=text, **fields))


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({"host": "jobmon.example"}, "http://jobmon.example/api/v3"),
        ({"host": "jobmon.example", "port": 8070}, "http://jobmon.example:8070/api/v3"),
        ({"host": "jobmon.example", "schema": "https"}, "https://jobmon.example/api/v3"),
        ({"host": "https://jobmon.example"}, "https://jobmon.example/api/v3"),
        ({"host": "https://jobmon.example", "schema": "https"}, "https://jobmon.example/api/v3"),
        ({"host": "jobmon.example", "schema": " HTTPS "}, "https://jobmon.example/api/v3"),
        ({"host": "HTTPS://jobmon.example"}, "https://jobmon.example/api/v3"),
        ({"host": "https://jobmon.example/jobmon/", "port": 444}, "https://jobmon.example:444/jobmon/api/v3"),
        ({"host": "http://jobmon.example:81", "port": 81}, "http://jobmon.example:81/api/v3"),
        ({"host": "http://jobmon.example:", "port": 81}, "http://jobmon.example:81/api/v3"),
        ({"host": "jobmon.example", "port": 0}, "http://jobmon.example/api/v3"),
        ({"host": "jobmon.example/jobmon"}, "http://jobmon.example/jobmon/api/v3"),
        ({"host": "https://jobmon.example", "schema": "/a/b/"}, "https://jobmon.example/a/b/api/v3"),
        ({"host": "::1", "port": 8070}, "http://[::1]:8070/api/v3"),
        ({"host": "[::1]"}, "http://[::1]/api/v3"),
        ({"host": " jobmon.example "}, "http://jobmon.example/api/v3"),
        ({"extra": {"route_prefix": "/api/v2"}}, "http://jobmon.example/api/v2"),
        ({"extra": {"route_prefix": ""}}, "http://jobmon.example"),
        ({"host": "https://jobmon.example/api/v2"}, "https://jobmon.example/api/v2"),
        (
            {"host": "https://jobmon.example/api/v2", "extra": {"route_prefix": "x"}},
            "https://jobmon.example/api/v2/x",
        ),
    ],
)
def test_the_address_is_put_together_from_host_schema_and_port(fields: dict[str, Any], url: str) -> None:
    assert server(**fields).settings.service_url == url


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("jobmon://h:8070", "http://h:8070"),
        ("jobmon://h:8070/https", "https://h:8070"),
        ("jobmon://https://h", "https://h"),
        ("jobmon://https://h/base", "https://h/base"),
        ("jobmon://https://h:8070/a%2Fb", "https://h:8070/a/b"),
        ("jobmon://https://alice:pw@h:8070/base?retries_attempts=3", "https://h:8070/base"),
        ("jobmon+https://h:8070", "https://h:8070"),
        ("jobmon+https://h/base", "https://h/base"),
        ("https://h/base", "https://h/base"),
        ("http://h/base", "http://h/base"),
        ("http://h/https", "https://h"),
        ('{"conn_type": "jobmon", "host": "https://h/base", "schema": "https", "port": 0}', "https://h/base"),
        ('{"conn_type": "jobmon", "host": "h", "schema": "", "port": ""}', "http://h"),
    ],
)
def test_nothing_of_a_connection_in_the_environment_is_lost(
    written: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_JM", written)
    hook = JobmonHook("jm")
    assert hook.server.settings.service_url == f"{url}/api/v3"
    assert asyncio.run(JobmonHook("jm").aserver()).settings == hook.server.settings


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("jobmon://h/base", "the schema must be http or https; a path belongs to the host"),
        ("jobmon://https://h/http", "the host says 'https' and the schema says 'http'"),
        ("jobmon+https://h/http", "the schema says 'http' and the type says 'https'"),
        ("jobmon+ftp://h", "got scheme 'ftp'"),
        ("jobmon://:8070", "the host is missing"),
        ("jobmon://:8070/https", "the host is missing"),
        ("jobmon:///https", "the host is missing"),
        ("jobmon://alice:pw@", "the host is missing"),
        ('{"conn_type": "jobmon", "schema": "https"}', "the host is missing"),
        ('{"conn_type": "jobmon", "host": "https://h/base", "schema": "http"}', "leave one of them out"),
    ],
)
def test_what_contradicts_itself_in_the_environment_is_said_in_one_line(
    written: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_JM", written)
    with pytest.raises(ConfigError) as caught:
        read_now("jm")
    assert_one_error(caught.value, "connection 'jm': ", says)


@pytest.mark.parametrize(
    ("fields", "header"),
    [
        ({}, None),
        ({"login": "alice", "password": "pw"}, "Basic YWxpY2U6cHc="),
        ({"login": "alice"}, "Basic YWxpY2U6"),
        ({"host": "http://alice:pw@h"}, "Basic YWxpY2U6cHc="),
        ({"password": "token"}, "Bearer token"),
    ],
)
def test_login_and_password_become_a_header(fields: dict[str, Any], header: str | None) -> None:
    found = server(**fields)
    assert found.settings.headers.get("Authorization") == header
    assert "pw" not in repr(found)
    assert "token" not in repr(found)


def test_the_extra_is_read_into_settings(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.touch()
    found = server(
        {
            "request_timeout": 5,
            "retries_attempts": 3,
            "retries_timeout": "60",
            "verify": str(bundle),
            "client_cert": str(bundle),
            "client_key": str(bundle),
            "headers": {"X-Site": "north"},
            "workflow_run_heartbeat_interval": 12.5,
            "heartbeat_report_by_buffer": "2.5",
            "gui_url": "https://gui.example/",
            "jobmon_python": "/opt/jobmon/bin/python",
        }
    )
    assert found.jobmon_python == "/opt/jobmon/bin/python"
    assert found.gui_url == "https://gui.example"
    assert found.settings == Settings(
        "http://jobmon.example/api/v3",
        retries_timeout=60,
        retries_attempts=3,
        request_timeout=5,
        headers={"X-Site": "north"},
        verify=str(bundle),
        heartbeat=Heartbeat(12.5, 2.5),
        client_cert=str(bundle),
        client_key=str(bundle),
    )


def test_what_is_not_given_is_jobmons_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert server({"gui_url": "", "retries_timeout": None, "verify": ""}).settings == Settings(
        "http://jobmon.example/api/v3", heartbeat=Heartbeat(eases=True)
    )
    monkeypatch.setenv("JOBMON__HEARTBEAT__WORKFLOW_RUN_INTERVAL", "45")
    assert server().settings.heartbeat.interval == 45


@pytest.mark.parametrize(
    ("value", "verify"), [(True, True), (False, False), ("false", False), ("True", True)]
)
def test_verify_takes_a_flag_or_a_path(value: Any, verify: bool) -> None:
    assert server({"verify": value}).settings.verify is verify


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"requst_timeout": 5}, "'requst_timeout' in the extra; did you mean request_timeout?"),
        (
            {"Verify": False, "gui-url": "x"},
            "'Verify', 'gui-url' in the extra; did you mean verify and gui_url?",
        ),
        ({"colour": "s3cret"}, "'colour' in the extra"),
        ({"a\nb": "s3cret"}, "'a\\nb' in the extra"),
    ],
)
def test_a_misspelt_key_is_pointed_out(
    extra: dict[str, Any], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert server({**extra, "verify": True}).unread == f"nothing reads {says}"
    assert caplog.messages == [f"connection 'jm': nothing reads {says}"]


@pytest.mark.parametrize(
    ("fields", "warns"),
    [
        ({"password": "s3cret"}, True),
        ({"extra": {"headers": {"X-Key": "s3cret"}}}, True),
        ({"host": "10.0.0.7", "login": "alice", "password": "s3cret"}, True),
        ({"password": "s3cret", "schema": "https"}, False),
        ({"password": "s3cret", "host": "localhost"}, False),
        ({"password": "s3cret", "host": "127.0.0.9"}, False),
        ({"password": "s3cret", "host": "::1"}, False),
        ({}, False),
    ],
)
def test_credentials_over_plain_http_are_warned_of(
    fields: dict[str, Any], warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    server(**fields)
    warned = [line for line in caplog.messages if "'jm' sends its credentials over plain http" in line]
    assert bool(warned) is warns
    assert "s3cret" not in caplog.text


def test_an_unchecked_certificate_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    server({"verify": False}, schema="https")
    assert "connection 'jm' does not check its server's certificate" in caplog.text


def test_headers_may_come_as_text_from_a_form() -> None:
    assert server({"headers": '{"X-Site": "north"}'}).settings.headers == {"X-Site": "north"}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"host": None}, "the host is missing"),
        ({"host": "  "}, "the host is missing"),
        ({"host": "ftp://h"}, "got scheme 'ftp'"),
        ({"schema": "ftp"}, "the schema must be http or https; a path belongs to the host"),
        (
            {"host": "https://h", "schema": "http"},
            "the host says 'https' and the schema says 'http': leave one",
        ),
        (
            {"host": "https://h/base", "schema": "other"},
            "the schema must be http or https, as the host has a",
        ),
        ({"host": "http://h:81", "port": 82}, "the host says port 81 and the port 82: leave one of them out"),
        ({"host": "h:0"}, "its port is 0"),
        ({"port": -5}, "the port must be a number from 1 to 65535, not -5"),
        ({"port": 70000}, "the port must be a number from 1 to 65535, not 70000"),
        (
            {"host": "https://u:pw@h", "login": "alice"},
            "the host has a login in it, and the connection has one",
        ),
        (
            {"extra": {"headers": {"authorization": "s3cret"}}},
            "login and password, and headers in the extra, both say Authorization",
        ),
        ({"host": "u:s3cret://h", "schema": "https"}, "got scheme 'u'"),
        # What is left of a password with a slash in it, which was not quoted.
        ({"host": "u", "port": 12, "schema": "s3cret@h"}, "the schema must be http or https"),
        ({"host": "https://u", "port": 12, "schema": "s3cret@h"}, "quote them in a password"),
        ({"host": "a b"}, "must look like"),
        ({"extra": "{not json"}, "the extra is not valid JSON"),
        ({"extra": "[1]"}, "the extra must be a JSON object"),
        ({"extra": {"route_prefix": 3}}, "route_prefix in the extra must be one line of text, not 3"),
        ({"extra": {"route_prefix": "/../x"}}, "is not a path such as"),
        ({"extra": {"request_timeout": "soon"}}, "request_timeout in the extra must be a number, not 'soon'"),
        ({"extra": {"request_timeout": 0}}, "request_timeout must be larger than 0"),
        ({"extra": {"retries_timeout": -1}}, "retries_timeout in the extra must be a number"),
        ({"extra": {"retries_attempts": 1.5}}, "retries_attempts in the extra must be an integer"),
        (
            {"extra": {"workflow_run_heartbeat_interval": True}},
            "workflow_run_heartbeat_interval in the extra",
        ),
        ({"extra": {"verify": "/no/such/bundle"}}, "names a CA bundle that does not exist"),
        ({"extra": {"client_cert": "/no/such/cert"}}, "client_cert in the extra names a file that does not"),
        ({"extra": {"client_key": __file__}}, "client_key in the extra is of no use without client_cert"),
        ({"extra": {"verify": 3}}, "verify in the extra must be true, false or the path"),
        ({"extra": {"headers": ["s3cret"]}}, "headers in the extra must be a JSON object of one-line texts"),
        ({"extra": {"headers": "{s3cret"}}, "headers in the extra must be"),
        ({"extra": {"headers": {"X": "s3cret\r\nY: 1"}}}, "headers in the extra must be"),
        (
            {"extra": {"gui_url": "javascript:alert(1)"}},
            "gui_url in the extra must be an http or https address",
        ),
        ({"extra": {"gui_url": "http://u:s3cret@h"}}, "without credentials"),
        ({"extra": {"gui_url": "http://u:s3cret℀@h"}}, "without credentials"),
        ({"extra": {"request_timeout": 10**400}}, "request_timeout in the extra must be a number"),
        ({"extra": {"retries_timeout": -(10**400)}}, "retries_timeout in the extra must be a number"),
        ({"extra": {"headers": "[" * 5000}}, "headers in the extra must be"),
        ({"extra": {"verify": "/x" * 5000}}, "names a CA bundle that does not exist"),
        (
            {"extra": {"verify": "maybe"}},
            "verify in the extra must be true, false or the path of a CA bundle, not",
        ),
        ({"extra": {"retries_timeout": "-5"}}, "retries_timeout in the extra must be a number, at least 0"),
        ({"extra": {"retries_attempts": -5}}, "retries_attempts in the extra must be a number, at least 0"),
        (
            {"extra": '{"request_timeout": NaN}'},
            "request_timeout in the extra must be a number, at least 0 and",
        ),
        (
            {"extra": {"request_timeout": "nan"}},
            "request_timeout in the extra must be a number, at least 0 and",
        ),
        (
            {"extra": {"request_timeout": 1e12}},
            "request_timeout in the extra must be at most 31536000, not 1000000000000.0",
        ),
        (
            {"extra": {"retries_attempts": 10**9}},
            "retries_attempts in the extra must be at most 31536000, not",
        ),
        (
            {"extra": {"workflow_run_heartbeat_interval": "1e99"}},
            "workflow_run_heartbeat_interval in the extra",
        ),
        ({"extra": {"jobmon_python": "a\nb"}}, "jobmon_python in the extra must be one line of text"),
        ({"extra": {"jobmon_python": True}}, "jobmon_python in the extra must be one line of text, not True"),
        ({"host": "http://u:s3cret℀@h"}, "its host or port cannot be read"),
        ({"host": "http://u:1#s3cret@h"}, "quote them in a password"),
        ({"password": "s3cret\n"}, "has a line break"),
    ],
)
def test_a_malformed_connection_is_one_line_that_names_what_is_wrong(
    fields: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        server(**{"password": "s3cret", **fields})
    line = str(caught.value)
    assert line.startswith("connection 'jm': ")
    assert says in line
    assert "s3cret" not in line
    assert line.isprintable()
    assert len(line) < 500
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_an_extra_that_is_nested_too_deeply_is_no_valid_json() -> None:
    # Not Airflow's connection: that of 2.11 reads the extra itself, and cannot be made with this one.
    connection: Any = SimpleNamespace(conn_id="jm", extra="[" * 5000)
    with pytest.raises(ConfigError, match=r"^connection 'jm': the extra is not valid JSON$") as caught:
        server_of_connection(connection)
    assert caught.value.__cause__ is None


def test_the_hook_reads_the_connection_once(connection: Callable[..., None], sandbox: JobmonSandbox) -> None:
    hook = JobmonHook()
    assert hook.get_conn() is hook.get_conn()
    assert hook.get_conn().url == f"{sandbox.url}/api/v2"
    assert asyncio.run(hook.aserver()) is hook.server


def test_a_hook_reads_the_connection_that_it_is_given(connection: Callable[..., None]) -> None:
    connection("http://other.example", conn_id="other")
    assert JobmonHook("other").get_conn().url == "http://other.example/api/v2"


def test_a_hook_without_connection_and_settings_says_so() -> None:
    with pytest.raises(AirflowNotFoundException) as caught:
        JobmonHook("nowhere").get_conn()
    assert "connection 'nowhere' is not defined" in str(caught.value)
    assert "JOBMON__HTTP__SERVICE_URL" in str(caught.value)
    with pytest.raises(AirflowNotFoundException, match="connection 'nowhere' is not defined"):
        asyncio.run(JobmonHook("nowhere").get_async_conn())


def read_now(conn_id: str) -> None:
    _ = JobmonHook(conn_id).server


def read_in_an_event_loop(conn_id: str) -> None:
    asyncio.run(JobmonHook(conn_id).aserver())


@pytest.mark.parametrize("read", [read_now, read_in_an_event_loop])
@pytest.mark.parametrize(
    ("conn_id", "settings", "says"),
    [
        ("jobmon_default", {}, "and instead of it: no Jobmon server is configured"),
        (
            "jobmon_default",
            {"HTTP__SERVICE_URL": "http://h", "HTTP__REQUEST_TIMEOUT": "0"},
            "request_timeout must",
        ),
        ("jobmon_default", {"CONFIG_FILE": "/no/such/file"}, "cannot be read"),
        ("nowhere", {}, "stand in for 'jobmon_default' only"),
        ("nowhere", {"HTTP__SERVICE_URL": "http://h"}, "stand in for 'jobmon_default' only"),
    ],
)
def test_a_missing_connection_is_one_error_in_the_task_log_and_no_chain(
    read: Callable[[str], None],
    conn_id: str,
    settings: dict[str, str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(f"JOBMON__{name}", value)
    with pytest.raises(AirflowNotFoundException) as caught:
        read(conn_id)
    assert_one_error(caught.value, f"connection {conn_id!r} is not defined", says)


def assert_one_error(error: BaseException, *says: str) -> None:
    """Check that a traceback, as task logs show it, has no other error behind this one."""
    shown = "".join(traceback.format_exception(error))
    assert shown.count("Traceback (most recent call last)") == 1
    assert all(part in shown.splitlines()[-1] for part in says)


@pytest.mark.parametrize("extra", ["{", {"headers": "{"}, {"retries_timeout": "x"}, {"verify": 3}])
def test_nor_has_a_malformed_one_a_chain(extra: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_BAD", json.dumps({"conn_type": "jobmon", "host": "h", "extra": extra}))
    # Airflow 3.0 and 3.1 refuse an extra that is no JSON: they log that, and say that there is no connection.
    is_refused = (3, 0) <= AIRFLOW < (3, 2) and extra == "{"
    with pytest.raises(AirflowNotFoundException if is_refused else ConfigError) as caught:
        read_now("bad")
    assert_one_error(caught.value, "connection 'bad'")


def test_jobmons_own_settings_stand_in_for_the_default_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBMON__HTTP__SERVICE_URL", "http://from.settings")
    assert JobmonHook().get_conn().url == "http://from.settings/api/v3"
    assert asyncio.run(JobmonHook().aserver()).settings.service_url == "http://from.settings/api/v3"


def test_credentials_of_jobmons_own_settings_over_plain_http_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JOBMON__HTTP__SERVICE_URL", "http://alice:s3cret@from.settings")
    assert "s3cret" not in repr(JobmonHook().server)
    name = "airflow_jobmon_provider.hooks.connection"
    (line,) = [record.getMessage() for record in caplog.records if record.name == name]
    assert line.startswith(
        "connection 'jobmon_default' is not defined, and Jobmon's own server sends its credentials"
    )
    assert "s3cret" not in caplog.text


def test_both_transports_reach_the_server(connection: Callable[..., None], sandbox: JobmonSandbox) -> None:
    run = sandbox.make_workflow_in("L").workflow_run_id or 0
    hook = JobmonHook()

    async def peek() -> str:
        async with await hook.get_async_conn() as requester:
            return (await requester.ask(routes.peek_status(run))).value

    assert hook.ask(routes.peek_status(run)).value == asyncio.run(peek()) == "L"


def test_the_factory_is_on_the_hooks_transport(
    connection: Callable[..., None], sandbox: JobmonSandbox
) -> None:
    hook = JobmonHook()
    workflow = sandbox.make_workflow_in("E")
    factory = hook.get_workflow_run_factory(str(workflow.workflow_id))
    assert factory.requester is hook.get_conn()
    factory.set_workflow_resume()
    details = hook.get_workflow_details(workflow.workflow_id)
    assert details is not None
    assert details.status == "F"
    with pytest.raises(WorkflowNotFound):
        hook.get_workflow_run_factory(987_654_321).wait_for_workflow_resume(0)


def test_test_connection_says_which_jobmon_answers(
    connection: Callable[..., None], sandbox: JobmonSandbox
) -> None:
    assert JobmonHook().test_connection() == (True, f"Jobmon answers at {sandbox.url}/api/v2, API v2")


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (Reply(404, {"detail": "Not Found"}), "check the address and the route prefix"),
        (Reply(200, b"<html>Welcome</html>"), "is this Jobmon?"),
        (Reply(500, b"oops"), "500 oops"),
    ],
)
def test_test_connection_says_what_is_wrong(
    connection: Callable[..., None], stub: Callable[..., StubServer], reply: Reply, says: str
) -> None:
    other = stub(reply)
    connection(other.url, password="s3cret", extra={"retries_timeout": 300})
    good, line = JobmonHook().test_connection()
    assert not good
    assert says in line
    assert f"GET {other.url}/api/v2/health" in line
    assert "s3cret" not in line
    # Whoever pressed the button does not wait for retries.
    assert len({request.path for request in other.requests}) == len(other.requests)


def test_test_connection_says_which_prefix_answers_where_the_given_one_does_not(
    connection: Callable[..., None], sandbox: JobmonSandbox
) -> None:
    connection(extra={"route_prefix": "/api/v9"}, password="s3cret")
    good, line = JobmonHook().test_connection()
    assert not good
    assert line == (
        f"{sandbox.url}/api/v9: Jobmon does not answer under /api/v9, but under /api/v3: set route_prefix to"
        " /api/v3"
    )


@pytest.mark.parametrize(
    ("given", "asked", "says"),
    [
        (
            "/api/v3",
            ["/api/v3", "/api/v2", "/api/v2"],
            "under /api/v3, but under /api/v2: set route_prefix to /api/v2",
        ),
        (
            "",
            ["", "/api/v3", "/api/v3"],
            "without a route prefix, but under /api/v3: set route_prefix to /api/v3",
        ),
        (
            "/api/v3",
            ["/api/v3", "/api/v2", "", ""],
            'under /api/v3, but without a route prefix: set route_prefix to "" (an empty text)',
        ),
    ],
)
@pytest.mark.parametrize("base", ["", "/base"])
@pytest.mark.parametrize("wrong", [404, 302, 403, 200], ids=str)
def test_it_says_so_whatever_answers_in_the_wrong_place(
    connection: Callable[..., None],
    stub: Callable[..., StubServer],
    given: str,
    asked: list[str],
    says: str,
    base: str,
    wrong: int,
) -> None:
    elsewhere = Reply(wrong, b"<p>", (("Location", "http://elsewhere"),))
    server = stub(*[elsewhere] * (len(asked) - 2), {"status": "OK"}, {"status": "v3"})
    connection(server.url + base, extra={"route_prefix": given})
    line = f"{server.url}{base}{given}: Jobmon does not answer {says}"
    assert JobmonHook().test_connection() == (False, line)
    routes = ["/health"] * (len(asked) - 1) + ["/api_version"]
    paths = [request.path.partition("?")[0] for request in server.requests]
    assert paths == [f"{base}{prefix}{route}" for prefix, route in zip(asked, routes, strict=True)]


def test_test_connection_says_that_the_port_is_plain_http_and_sends_it_no_credentials(
    connection: Callable[..., None], stub: Callable[..., StubServer]
) -> None:
    plain = stub({"status": "OK"})
    url = plain.url.replace("http", "https")
    connection(url, password="s3cret")
    assert JobmonHook().test_connection() == (
        False,
        f"{url}/api/v2: the server speaks plain http on this port: set the schema to http",
    )
    assert [request.headers.get("Authorization") for request in plain.requests] == [None]


def test_test_connection_says_that_the_port_is_tls(
    connection: Callable[..., None], stub: Callable[..., StubServer]
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    server = stub({"status": "OK"}, tls=tls)
    url = server.url.replace("https", "http")
    connection(url, password="s3cret")
    assert JobmonHook().test_connection() == (
        False,
        f"{url}/api/v2: the server speaks TLS on this port: set the schema to https",
    )
    assert not server.requests  # its certificate is not trusted


def test_a_name_in_the_extra_that_nothing_reads_is_in_the_answer_whether_the_server_answers_or_not(
    connection: Callable[..., None], sandbox: JobmonSandbox
) -> None:
    misspelt = "; nothing reads 'requst_timeout' in the extra; did you mean request_timeout?"
    connection(extra={"requst_timeout": 5})
    well, line = JobmonHook().test_connection()
    assert well
    assert line == f"Jobmon answers at {sandbox.url}/api/v2, API v2{misspelt}"
    connection("http://127.0.0.1:9", extra={"requst_timeout": 5})
    well, line = JobmonHook().test_connection()
    assert not well
    assert line.endswith(misspelt)


def test_test_connection_of_a_host_that_is_not_known_says_so(connection: Callable[..., None]) -> None:
    connection("http://jobmon..example")
    good, line = JobmonHook().test_connection()
    assert not good
    assert (
        "host 'jobmon..example' is not known (it cannot be a name); check the host of the connection" in line
    )


def test_what_a_proxy_replies_says_nothing_about_the_servers_port(
    connection: Callable[..., None], stub: Callable[..., StubServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", stub(Reply(502, b"no")).url)
    monkeypatch.setenv("HTTP_PROXY", stub({"status": "OK"}).url)
    connection("https://jobmon.example")
    good, line = JobmonHook().test_connection()
    assert not good
    assert "plain http" not in line


def test_test_connection_of_a_malformed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_BAD", json.dumps({"conn_type": "jobmon", "host": ""}))
    assert JobmonHook("bad").test_connection() == (
        False,
        "connection 'bad': the host is missing: give Jobmon's host name or address",
    )
    assert JobmonHook("nowhere").test_connection()[0] is False


def test_no_secret_is_logged(
    connection: Callable[..., None], sandbox: JobmonSandbox, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        connection(sandbox.url, login="alice", password="s3cret", extra={"headers": {"X-Key": "k3y"}})
        JobmonHook().test_connection()
        connection("http://127.0.0.1:9", password="s3cret", extra={"headers": {"X-Key": "k3y"}})
        JobmonHook().test_connection()
    assert caplog.records
    for secret in ("s3cret", "k3y", "YWxpY2U6czNjcmV0"):
        assert secret not in caplog.text


def test_the_form_begins_with_what_nearly_every_user_gives() -> None:
    assert list(form_fields())[:2] == list(EXTRA)[:2] == ["gui_url", "jobmon_python"]
    assert list(JobmonHook.get_connection_form_widgets())[:2] == ["gui_url", "jobmon_python"]


def test_no_placeholder_of_the_form_looks_like_a_value_that_is_filled_in() -> None:
    assert set(FORM_BEHAVIOUR["placeholders"]) == {"host"}


def test_no_field_of_the_form_holds_two_types_and_none_is_a_box_to_tick_that_would_show_what_is_not_so() -> (
    None
):
    for name, field in form_fields().items():
        (kind, null) = field["schema"]["type"]
        assert (null, name) == ("null", name)
        assert kind != "boolean"
    assert form_fields()["verify"]["schema"]["examples"] == ["true", "false"]


def test_the_form_refuses_the_numbers_that_the_reader_refuses() -> None:
    for name, field in form_fields().items():
        if field["schema"]["type"][0] in ("number", "integer"):
            for bad in (field["schema"]["minimum"] - 1, field["schema"]["maximum"] + 1):
                with pytest.raises(ConfigError, match=f"{name} in the extra must be"):
                    server({name: bad})


def test_the_hook_gives_the_form_to_airflow_before_3_3() -> None:
    behaviour = JobmonHook.get_ui_field_behaviour()
    assert set(behaviour) == {"hidden_fields", "relabeling", "placeholders"}
    assert "Bearer" in behaviour["relabeling"]["password"]
    widgets = JobmonHook.get_connection_form_widgets()
    assert set(widgets) == set(EXTRA)


def test_every_field_of_the_form_is_read(tmp_path: Path) -> None:
    """A field that nothing takes would end in Settings, which would refuse it."""
    (tmp_path / "file").touch()
    file = str(tmp_path / "file")
    samples: dict[Kind, Any] = {
        Kind.TEXT: "text",
        Kind.FILE: file,
        Kind.ADDRESS: "https://gui.example",
        Kind.NUMBER: 4,
        Kind.INTEGER: 4,
        Kind.CHECK_OR_FILE: file,
        Kind.HEADERS: {"X-Header": "text"},
    }
    read = repr(server({name: samples[field.kind] for name, field in EXTRA.items()}, host="jobmon.example"))
    assert read.count(file) == 3
    assert read.count("=4") == 4 + 1  # request_timeout, retries_attempts, retries_timeout, interval, buffer


# Runs


@pytest.mark.parametrize(("before", "after"), [("L", "A"), ("R", "R"), ("D", "D")])
def test_only_a_run_that_nobody_has_taken_is_aborted(
    connection: Callable[..., None], sandbox: JobmonSandbox, before: str, after: str
) -> None:
    run = sandbox.make_workflow_in(before).workflow_run_id or 0
    assert JobmonHook().abort_workflow_run(str(run)) == after
    assert sandbox.run_status(run) == after


@pytest.mark.parametrize("value", ["1/../2", 0, None])
def test_a_run_id_that_is_none_is_refused(connection: Callable[..., None], value: Any) -> None:
    with pytest.raises(ValueError, match="workflow_run_id must be a positive integer"):
        JobmonHook().abort_workflow_run(value)


# Many triggers at the same moment


async def test_hooks_of_a_loop_read_the_connection_once(
    connection: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Airflow's accessors are watched, not replaced: how often one is called is the point.
    asked: list[str] = []
    read, read_async = JobmonHook.get_connection, airflow_connection.get_async_connection

    def reading(conn_id: str) -> Any:
        asked.append(conn_id)
        return read(conn_id)

    async def reading_async(conn_id: str) -> Any:
        asked.append(conn_id)
        return await read_async(conn_id)

    monkeypatch.setattr(JobmonHook, "get_connection", staticmethod(reading))  # before Airflow 3.3.2
    monkeypatch.setattr(airflow_connection, "get_async_connection", reading_async)
    connection(conn_id="other")
    servers = await asyncio.gather(
        *(JobmonHook().aserver() for _ in range(50)), JobmonHook("other").aserver()
    )
    assert len({id(server) for server in servers}) == 2
    assert sorted(asked) == ["jobmon_default", "other"]


async def test_a_connection_is_read_again_after_a_while(
    connection: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await JobmonHook().aserver()
    connection("http://elsewhere.example")
    assert await JobmonHook().aserver() is first
    monkeypatch.setattr(hook_module, "_READ_AGAIN_AFTER", -1.0)
    assert (await JobmonHook().aserver()).settings.service_url.startswith("http://elsewhere.example")


async def test_a_reading_that_failed_is_repeated(
    connection: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection("no address")
    for _ in range(2):
        with pytest.raises(ConfigError):
            await JobmonHook().aserver()
    connection()
    await JobmonHook().aserver()


async def test_a_cancelled_trigger_leaves_the_others_their_reading(connection: Callable[..., None]) -> None:
    tasks = [asyncio.create_task(JobmonHook().aserver()) for _ in range(2)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    assert (await tasks[1]).settings.service_url
    assert tasks[0].cancelled()


def test_the_first_transports_of_a_process_may_be_made_at_once(connection: Callable[..., None]) -> None:
    # In a process of its own: in this one all is imported already.
    script = """
import asyncio
from airflow_jobmon_provider.hooks.jobmon import JobmonHook

async def main():
    async def one(delay):
        await asyncio.sleep(delay)
        return await JobmonHook().get_async_conn()

    return await asyncio.gather(*(one(i / 100) for i in range(100)))

assert len({type(made) for made in asyncio.run(main())}) == 1
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1000:]


def test_the_first_connection_of_a_process_imports_nothing_in_the_event_loop(
    connection: Callable[..., None],
) -> None:
    script = """
import asyncio
import sys
import threading
from airflow_jobmon_provider.hooks.jobmon import JobmonHook

seen = {}

class Watcher:
    def find_spec(self, name, path=None, target=None):
        seen[name] = threading.current_thread() is threading.main_thread()

async def connect():
    sys.meta_path.insert(0, Watcher())
    await JobmonHook().get_async_conn()

asyncio.run(connect())
assert "airflow_jobmon_provider.hooks.connection" in seen and "aiohttp" in seen
print([name for name, in_loop in seen.items() if in_loop and name.startswith(("airflow_jobmon", "aiohttp"))])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


async def test_triggers_that_waited_for_a_reading_go_on_one_at_a_time(
    connection: Callable[..., None],
) -> None:
    """All in one turn of the event loop, thousands of them would block it."""
    turn = 0
    went_on: list[int] = []

    async def count_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    async def trigger() -> None:
        await JobmonHook().aserver()
        went_on.append(turn)

    counting = asyncio.create_task(count_turns())
    await asyncio.gather(*(trigger() for _ in range(20)))
    counting.cancel()
    assert len(set(went_on)) == 20

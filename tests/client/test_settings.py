"""Jobmon's own settings: environment over file over defaults."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_jobmon_provider.client.exceptions import ConfigError
from airflow_jobmon_provider.client.heartbeat import Heartbeat
from airflow_jobmon_provider.client.requester import Requester
from airflow_jobmon_provider.client.settings import Settings, heartbeat_defaults, join_prefix
from airflow_jobmon_provider.client.workflow_run import WorkflowRun, WorkflowRunFactory


@pytest.fixture
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "jobmon.yaml"
    monkeypatch.setenv("JOBMON__CONFIG_FILE", str(path))
    return path


def test_environment_over_file_over_defaults(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBMON_HOST", "jobmon.example")
    config_file.write_text(
        """
http:
  service_url: http://${JOBMON_HOST}:8070
  route_prefix: /api/v2
  retries_timeout: 7
heartbeat:
  workflow_run_interval: 45
"""
    )
    monkeypatch.setenv("JOBMON__HTTP__RETRIES_TIMEOUT", "9")
    monkeypatch.setenv("JOBMON__HEARTBEAT__REPORT_BY_BUFFER", "2.5")
    settings = Settings.from_defaults()
    assert settings.service_url == "http://jobmon.example:8070/api/v2"
    assert settings.retries_timeout == 9
    assert settings.retries_attempts == 10
    assert settings.request_timeout == 20
    assert settings.heartbeat == Heartbeat(45, 2.5)
    assert Requester.from_defaults().retries_timeout == 9


def test_settings_have_jobmons_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBMON__HTTP__SERVICE_URL", "https://jobmon.example/")
    settings = Settings.from_defaults()
    assert settings.service_url == "https://jobmon.example/api/v3"
    assert settings.heartbeat == Heartbeat(30, 3.1)
    run = WorkflowRun(7)
    assert (run.heartbeat_interval, run.heartbeat_report_by_buffer) == (30, 3.1)
    assert WorkflowRunFactory(7).requester.url == "https://jobmon.example/api/v3"


@pytest.mark.parametrize(
    ("prefix", "url"), [("", "http://h"), ("api/v2/", "http://h/api/v2"), ("/", "http://h")]
)
def test_the_route_prefix_is_read_as_jobmon_does(
    monkeypatch: pytest.MonkeyPatch, prefix: str, url: str
) -> None:
    monkeypatch.setenv("JOBMON__HTTP__SERVICE_URL", "http://h")
    monkeypatch.setenv("JOBMON__HTTP__ROUTE_PREFIX", prefix)
    assert Settings.from_defaults().service_url == url


@pytest.mark.parametrize("prefix", ["/../admin", "/api?x=", "/api#", "/a b", "/api/%2e%2e", "//h/."])
def test_a_prefix_cannot_leave_its_place(prefix: str) -> None:
    with pytest.raises(ConfigError, match="is not a path such as '/api/v3'"):
        join_prefix("http://h", prefix)


def test_settings_without_a_server_are_refused() -> None:
    with pytest.raises(ConfigError, match="set JOBMON__HTTP__SERVICE_URL"):
        Settings.from_defaults()


@pytest.mark.parametrize("value", ["soon", "-1", "nan", ""])
def test_a_malformed_number_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("JOBMON__HTTP__SERVICE_URL", "http://h")
    monkeypatch.setenv("JOBMON__HEARTBEAT__WORKFLOW_RUN_INTERVAL", value)
    with pytest.raises(ConfigError, match="JOBMON__HEARTBEAT__WORKFLOW_RUN_INTERVAL must be a number"):
        heartbeat_defaults()


def test_a_number_that_is_out_of_range_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBMON__HTTP__SERVICE_URL", "http://h")
    monkeypatch.setenv("JOBMON__HTTP__REQUEST_TIMEOUT", "0")
    with pytest.raises(ConfigError, match="request_timeout must be larger than 0"):
        Settings.from_defaults()


@pytest.mark.parametrize("attempts", ["1.5"])
def test_attempts_must_be_a_whole_number(monkeypatch: pytest.MonkeyPatch, attempts: str) -> None:
    monkeypatch.setenv("JOBMON__HTTP__SERVICE_URL", "http://h")
    monkeypatch.setenv("JOBMON__HTTP__RETRIES_ATTEMPTS", attempts)
    with pytest.raises(ConfigError, match="retries_attempts must be an integer"):
        Settings.from_defaults()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("http: [", "cannot be read"),
        ("- a list", "must hold sections"),
        ("http: 5", "section 'http'"),
        (f"http: {{service_url: 'http://h', request_timeout: 1{'0' * 400}}}", "must be a number"),
        (
            "http: {service_url: 'http://h', request_timeout: [1]}",
            "http.request_timeout in .* must be a number",
        ),
    ],
)
def test_a_malformed_file_is_named(config_file: Path, content: str, says: str) -> None:
    config_file.write_text(content)
    with pytest.raises(ConfigError, match=says) as caught:
        Settings.from_defaults()
    assert str(config_file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(config_file: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Settings.from_defaults()


def test_an_empty_file_is_no_setting(config_file: Path) -> None:
    config_file.write_text("")
    with pytest.raises(ConfigError, match="set JOBMON__HTTP__SERVICE_URL"):
        Settings.from_defaults()

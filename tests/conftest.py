"""What every kind of test uses: a real Jobmon, and a small HTTP server for what Jobmon never replies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_jobmon_provider.client.requester import Requester
from dev.jobmon_sandbox import JobmonSandbox
from tests.order import (  # noqa: F401  # a fixture and hooks
    _give_way,
    pytest_collection_modifyitems,
    pytest_xdist_make_scheduler,
)
from tests.running_airflow import LOGS_WITH_STRUCTLOG
from tests.stub_server import StubServer
from tests.teardown_limit import pytest_runtest_teardown  # noqa: F401  # a hook of pytest's

pytest.register_assert_rewrite("tests.operators.placements")  # tests that several modules collect


@pytest.fixture(scope="session")
def empty_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def own_home(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let jobs, which begin in a login shell, meet no profile of the developer's, and leave nothing there."""
    monkeypatch.setenv("HOME", str(empty_home))


@pytest.fixture(scope="session")
def sandbox() -> Iterator[JobmonSandbox]:
    """A real Jobmon for the whole session; each test makes workflows of its own."""
    with JobmonSandbox() as jobmon:
        yield jobmon


@pytest.fixture(params=["/api/v2", "/api/v3"])
def prefix(request: pytest.FixtureRequest) -> str:
    """Run a test on the server as released, and with the newer routes."""
    return str(request.param)


@pytest.fixture
def requester(sandbox: JobmonSandbox, prefix: str) -> Iterator[Requester]:
    """This project's requester for the sandbox, without patience: tests wait for nothing by chance."""
    requester = Requester(sandbox.url + prefix, retries_timeout=0)
    yield requester
    requester.close()


@pytest.fixture
def connection(sandbox: JobmonSandbox, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Define the connection ``jobmon_default``; by default to the sandbox, released routes, no patience."""

    def define(url: str = sandbox.url, *, conn_id: str = "jobmon_default", **fields: Any) -> None:
        extra = {"route_prefix": "/api/v2", "retries_timeout": 0, **fields.pop("extra", {})}
        value = {"conn_type": "jobmon", "host": url, "extra": extra, **fields}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(value))

    define()
    return define


@pytest.fixture
def logged(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """Return what Airflow has logged so far, a line each: ``[warning  ] event``.

    The loggers are structlog's and write to standard output, or Python's.
    """
    seen: list[str] = []

    def read() -> str:
        seen.append(capsys.readouterr().out)
        return "".join(seen)

    def read_records() -> str:
        return "".join(
            f"[{record.levelname.lower():<9}] {record.getMessage()}\n" for record in list(caplog.records)
        )

    return read if LOGS_WITH_STRUCTLOG else read_records


@pytest.fixture
def kind_of_stub() -> type[StubServer]:
    """Which servers ``stub`` makes."""
    return StubServer


@pytest.fixture
def stub(kind_of_stub: type[StubServer]) -> Iterator[Callable[..., StubServer]]:
    """Make servers that reply what a test says."""
    servers: list[StubServer] = []

    def make(*replies: object, **options: Any) -> StubServer:
        servers.append(kind_of_stub(*replies, **options))
        return servers[-1]

    yield make
    for server in servers:
        server.close()

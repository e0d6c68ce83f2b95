"""A Jobmon and a submit host beside a real Slurm, for tests that need no Airflow of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from dev import services
from dev.jobmon_sandbox import JobmonSandbox
from dev.slurm import Slurm
from dev.submit_host import SubmitHost

PASSWORD = "not-for-slurm"  # noqa: S105  # of the sandbox, which asks for none


@pytest.fixture(scope="module")
def jobmon() -> Iterator[JobmonSandbox]:
    with JobmonSandbox() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def host(jobmon: JobmonSandbox, slurm: Slurm) -> Iterator[SubmitHost]:
    environment = {**jobmon.environment(), **slurm.environment}
    with SubmitHost(environment, server=services.sshd_server) as host:
        yield host


@pytest.fixture
def connected(jobmon: JobmonSandbox, slurm: Slurm, host: SubmitHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Define the connections to both, and let this process use the Slurm."""
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    extra = {"route_prefix": "/api/v2", "retries_timeout": 0}
    server = {"conn_type": "jobmon", "host": jobmon.url, "login": "me", "password": PASSWORD, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_JOBMON_DEFAULT", json.dumps(server))
    monkeypatch.setenv("AIRFLOW_CONN_SUBMIT_HOST", json.dumps(host.connection))

"""A Jobmon of its own for the tests with a real Slurm, and a submit host that leads to both."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator
from dev import services
from dev.jobmon_sandbox import JobmonSandbox, SandboxWorkflow
from dev.slurm import Slurm
from dev.submit_host import SubmitHost
from tests.stack.slurm.runs import PASSWORD, Make


@pytest.fixture(autouse=True)
def _at_home(own_home: None) -> None:
    """Run jobs with a home of the tests' own: what is killed may be a shell that reads its user's profile."""


@pytest.fixture(scope="session")
def jobmon() -> Iterator[JobmonSandbox]:
    """With quick heartbeats, and a cluster ``slurm`` whose tasks are jobs, too. No reaper is at work."""
    with JobmonSandbox() as sandbox:
        sandbox.add_slurm("long")
        yield sandbox


@pytest.fixture(scope="session")
def host(jobmon: JobmonSandbox, slurm: Slurm) -> Iterator[SubmitHost]:
    environment = {**jobmon.environment(), **slurm.environment}
    with SubmitHost(environment, server=services.sshd_server) as host:
        yield host


@pytest.fixture
def connected(jobmon: JobmonSandbox, slurm: Slurm, host: SubmitHost, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    extra = {"route_prefix": "/api/v2", "retries_timeout": 0}
    server = {"conn_type": "jobmon", "host": jobmon.url, "login": "me", "password": PASSWORD, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_JOBMON_DEFAULT", json.dumps(server))
    open_server = {"conn_type": "jobmon", "host": jobmon.url, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_WITHOUT_CREDENTIALS", json.dumps(open_server))
    monkeypatch.setenv("AIRFLOW_CONN_SUBMIT_HOST", json.dumps(host.connection))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "jobs $HOME;'"


@pytest.fixture
def make(jobmon: JobmonSandbox, folder: Path) -> Make:
    """Make the operator for a workflow."""

    def operator(workflow: SandboxWorkflow, **options: Any) -> CreateWorkflowRunOperator:
        options = {
            "cluster_name": "multiprocess",
            "jobmon_python": str(jobmon.python),
            "launcher": "slurm",
            "remote_dir": str(folder),
            "workflow_run_heartbeat_interval": 2,
            "heartbeat_report_by_buffer": 20,
            "poll_interval": 1,
            **options,
        }
        return CreateWorkflowRunOperator(task_id="run", workflow_id=workflow.workflow_id, **options)

    return operator


@pytest.fixture
def reaper(jobmon: JobmonSandbox) -> Iterator[None]:
    """Jobmon's own reaper is at work."""
    jobmon.start_reaper()
    yield
    jobmon.stop_reaper()

"""A worker that is killed at every step between creating a run and deferring: one run, one job, DONE.

The submit host is a real SSH server and the job a real process there, whose executor is a stand-in: it moves
the run as an executor does, and has no tasks to execute. With Jobmon's own it is in ``tests/proofs``, and
jobs of Slurm are in ``tests/stack``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dev.jobmon_sandbox import JobmonSandbox
from dev.submit_host import SubmitHost
from tests.operators.killed import CREATED, Deaths, stand_in, steps_of

pytestmark = [pytest.mark.executes, pytest.mark.timeout(300), pytest.mark.usefixtures("connection")]


@pytest.fixture(scope="module")
def host(sandbox: JobmonSandbox) -> Iterator[SubmitHost]:
    with SubmitHost(sandbox.environment()) as host:
        yield host


@pytest.fixture
def deaths(
    sandbox: JobmonSandbox, host: SubmitHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Deaths]:
    monkeypatch.setenv("AIRFLOW_CONN_SUBMIT_HOST", json.dumps(host.connection))
    deaths = Deaths(sandbox, tmp_path, python=stand_in(tmp_path))
    yield deaths
    deaths.kill_what_is_left()


def test_one_run_and_one_job_wherever_a_worker_dies(deaths: Deaths) -> None:
    place: dict[str, Any] = {"ssh_conn_id": "submit_host", "deferrable": True}
    steps = steps_of(deaths, place)
    for moment in (
        "before SSH",
        "before command 1",
        "amid command 1",
        "after command 1",
        "deferred",
        CREATED,
    ):
        assert moment in steps
    assert len(steps) >= 20
    # What comes before a step is the same moment as what comes after the last one: the proofs have both.
    moments = [
        step
        for last, step in zip(["", *steps], steps, strict=False)
        if not (step.startswith("before") and last.startswith("after"))
    ]
    deaths.happen(moments, place)


@pytest.mark.parametrize("ssh_conn_id", [None, "submit_host"], ids=["this worker", "submit host"])
def test_a_worker_that_waits_itself_leaves_a_job_with_which_a_retry_goes_on(
    deaths: Deaths, ssh_conn_id: str | None
) -> None:
    steps = ["before command 1", "amid command 1", "after command 1", "after command 3"]
    deaths.happen(steps, {"ssh_conn_id": ssh_conn_id, "deferrable": False})

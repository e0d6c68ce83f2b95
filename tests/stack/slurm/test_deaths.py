"""A worker that is killed at every step until its job of Slurm is submitted and its task deferred."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dev.jobmon_sandbox import JobmonSandbox
from dev.slurm import Slurm
from tests.operators.killed import CREATED, Deaths, failed_workflow, stand_in, steps_of

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("connected")]


@pytest.mark.parametrize("ssh_conn_id", [None, "submit_host"], ids=["this worker", "submit host"])
def test_one_run_and_one_job_of_slurm_wherever_a_worker_dies(
    jobmon: JobmonSandbox,
    slurm: Slurm,
    tmp_path: Path,
    ssh_conn_id: str | None,
    report: Callable[[str], None],
) -> None:
    """Also Slurm itself has seen one job of each run, of all that were submitted."""
    deaths = Deaths(jobmon, tmp_path, python=stand_in(tmp_path))
    place: dict[str, Any] = {"ssh_conn_id": ssh_conn_id, "launcher": "slurm", "deferrable": True}
    steps = steps_of(deaths, place)
    for moment in ("before command 1", "amid command 1", "after command 1", "deferred", CREATED):
        assert moment in steps
    deaths.happen(steps, place)
    submitted = slurm.run("squeue", "--noheader", "--states=all", "--format=%j").split()
    assert len(submitted) == len(set(submitted)) >= len(steps)
    report(f"a worker killed at each of {len(steps)} steps: one job of Slurm each, all runs DONE")


@pytest.mark.parametrize("ssh_conn_id", [None, "submit_host"], ids=["this worker", "submit host"])
def test_the_tasks_are_done_by_the_one_job(
    jobmon: JobmonSandbox,
    tmp_path: Path,
    ssh_conn_id: str | None,
) -> None:
    """With Jobmon's own executor, at the steps that the host sees."""
    deaths = Deaths(jobmon, tmp_path, python=jobmon.python, workflow=lambda: failed_workflow(jobmon))
    steps = ["before command 1", "amid command 1", "after command 1", "deferred"]
    deaths.happen(steps, {"ssh_conn_id": ssh_conn_id, "launcher": "slurm", "deferrable": True})

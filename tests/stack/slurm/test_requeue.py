"""A job that Slurm puts back into its queue starts a second executor, for a run that may have moved on."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import AirflowException

from dev.jobmon_sandbox import JobmonSandbox, wait_until
from dev.slurm import Slurm
from tests.airflow_task import fire
from tests.stack.slurm.runs import Make, deferred, failed, job_number, newest_run, run_while

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("connected", "reaper")]

ON_SUBMIT_HOST = {"ssh_conn_id": "submit_host", "deferrable": True, "heartbeat_report_by_buffer": 5}


def requeue(slurm: Slurm, number: str) -> None:
    """Put a job back into the queue, and let it begin again soon; at once, a node still refuses it."""
    slurm.run("scontrol", "requeue", number)

    def waits() -> bool:
        return "PENDING" in slurm.run("squeue", "-h", "-j", number, "-o", "%T")

    wait_until(waits, 60, "the job to be back in the queue")
    slurm.run("scontrol", "update", f"jobid={number}", "starttime=now+4")


def starts_of_tasks(jobmon: JobmonSandbox, run: int) -> int:
    """How often a task was started for a run."""
    ((count,),) = jobmon.query("SELECT count(*) FROM task_instance WHERE workflow_run_id = ?", run)
    return int(count)


def tasks_at_work(jobmon: JobmonSandbox, run: int) -> None:
    """Wait until both tasks have begun."""
    wait_until(lambda: starts_of_tasks(jobmon, run) == 2, 60, "two tasks at work")


def test_a_job_that_is_requeued_before_it_has_the_run_executes_it(
    jobmon: JobmonSandbox, slurm: Slurm, make: Make, folder: Path, logged: Callable[[], str]
) -> None:
    workflow = failed(jobmon)
    workflow.release()
    go = folder.parent / "go"

    def put_back() -> None:
        number = job_number(folder)
        wait_until(lambda: f"job {number} RUNNING" in logged(), 60, "the job to begin")
        requeue(slurm, number)
        go.touch()

    run = run_while(
        make(workflow, setup_commands=[f"until test -e {go}; do sleep 0.2; done"], **ON_SUBMIT_HOST), put_back
    )
    assert jobmon.runs(workflow.workflow_id)[-1] == (run, "D")
    assert starts_of_tasks(jobmon, run) == 2
    assert logged().count(f"executor: executing workflow run {run}") == 1


def test_a_job_that_is_requeued_at_work_ends_its_run_and_does_not_begin_again(
    jobmon: JobmonSandbox, slurm: Slurm, make: Make, folder: Path
) -> None:
    workflow = failed(jobmon, waits=True)

    def put_back() -> None:
        tasks_at_work(jobmon, newest_run(jobmon, workflow, "R"))
        slurm.run("scontrol", "requeue", job_number(folder))

    with pytest.raises(AirflowException, match=r"ended STOPPED"):
        run_while(make(workflow, **ON_SUBMIT_HOST), put_back)
    run = newest_run(jobmon, workflow, "S")
    wait_until(lambda: not slurm.run("squeue", "--noheader"), 60, "the job to be cancelled")
    assert starts_of_tasks(jobmon, run) == 2


def test_the_second_executor_of_a_job_finds_a_dead_run_and_ends(
    jobmon: JobmonSandbox, slurm: Slurm, make: Make, folder: Path
) -> None:
    """Its first one dies without a word, while no triggerer is there."""
    workflow = failed(jobmon, waits=True)
    options = {**ON_SUBMIT_HOST, "jobmon_conn_id": "without_credentials"}
    trigger = deferred(make(workflow, **options))
    run, number = newest_run(jobmon, workflow, "R"), job_number(folder)
    tasks_at_work(jobmon, run)
    (job,) = (folder / "runs").iterdir()
    kill_all_of(str(job))
    wait_until(lambda: not slurm.run("squeue", "--noheader"), 60, "the job to be over")
    requeue(slurm, number)
    wait_until((job / "exit").exists, 60, "the second executor to end")
    assert jobmon.run_status(run) in "RE"
    event = asyncio.run(fire(trigger))
    assert f"executor then has left workflow run {run}" in event["message"]
    assert jobmon.run_status(run) == "E"
    assert starts_of_tasks(jobmon, run) == 2


def kill_all_of(job: str) -> None:
    """Kill what has a job's folder in its arguments: its script, and then the executor."""
    own = str(os.getpid())
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        if file.parent.name != own and job.encode() in file.read_bytes():
            os.kill(int(file.parent.name), signal.SIGKILL)

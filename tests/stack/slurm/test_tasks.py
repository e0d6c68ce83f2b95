"""The whole chain on real parts: Airflow, SSH, a job that executes the run, array jobs that are its tasks.

All of it deferred, as users run it.
"""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException

from dev.jobmon_sandbox import SLURM, JobmonSandbox, SandboxWorkflow, wait_until
from dev.slurm import Slurm
from dev.submit_host import SubmitHost
from tests.airflow_task import fire
from tests.airflow_task import kill as kill_trigger
from tests.stack.slurm.runs import Make, deferred, failed, job_number, newest_run, run_while

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("connected")]

CHAIN: dict[str, Any] = {
    "cluster_name": SLURM,
    "ssh_conn_id": "submit_host",
    "deferrable": True,
    # A task whose job is gone is given up after these 3 s times the buffer, and a run after 2.
    "setup_commands": ["export JOBMON__HEARTBEAT__TASK_INSTANCE_INTERVAL=3"],
    "workflow_run_heartbeat_interval": 2,
    "heartbeat_report_by_buffer": 5,
}


def on_slurm(jobmon: JobmonSandbox, *, waits: bool = True) -> SandboxWorkflow:
    return failed(jobmon, cluster=SLURM, waits=waits)


def jobs_of_tasks(jobmon: JobmonSandbox, run: int) -> dict[str, str]:
    """Slurm's number of each task's job, and the task's status."""
    sql = "SELECT distributor_id, status FROM task_instance WHERE workflow_run_id = ? ORDER BY id"
    return dict(jobmon.query(sql, run))


def running(jobmon: JobmonSandbox, workflow: SandboxWorkflow) -> tuple[int, list[str]]:
    """Wait until both tasks are at work; return the run and the numbers of their jobs."""
    run = newest_run(jobmon, workflow, "R")
    wait_until(lambda: [*jobs_of_tasks(jobmon, run).values()] == ["R", "R"], 60, "two tasks at work")
    return run, list(jobs_of_tasks(jobmon, run))


def assert_no_job_is_left(slurm: Slurm) -> None:
    wait_until(lambda: not slurm.run("squeue", "--noheader"), 30, "an empty queue")


def test_tasks_are_array_jobs_and_a_submit_host_that_is_killed_meanwhile_changes_nothing(
    jobmon: JobmonSandbox, slurm: Slurm, host: SubmitHost, make: Make, logged: Any
) -> None:
    workflow = on_slurm(jobmon)

    def restart_sshd() -> None:
        _, jobs = running(jobmon, workflow)
        array = jobs[0].partition("_")[0]
        assert sorted(jobs) == [f"{array}_0", f"{array}_1"]
        assert slurm.run("squeue", "-h", "-r", "-j", array, "-o", "%i %P %T").count(" long RUNNING") == 2
        host.kill()
        try:
            wait_until(lambda: "submit_host does not answer" in logged(), 60, "the outage to be seen")
        finally:
            host.restart()
        wait_until(lambda: "submit_host answers again, after" in logged(), 60, "its end to be seen")
        workflow.release()

    run = run_while(make(workflow, **CHAIN), restart_sshd)
    assert jobmon.runs(workflow.workflow_id)[-1] == (run, "D")
    assert jobmon.task_statuses(workflow.workflow_id) == ["D", "D"]
    log = logged()
    warnings = [line for line in log.splitlines() if "[warning" in line and "Task Runner" not in line]
    assert len(warnings) == 1  # besides Airflow's own about this test
    for line in ("submit_host does not answer", "submit_host answers again", "2 of 2 tasks done, 0 failed"):
        assert log.count(line) == 1
    assert_no_job_is_left(slurm)


def test_tasks_that_fail_fail_the_task_by_their_names(
    jobmon: JobmonSandbox, slurm: Slurm, make: Make
) -> None:
    workflow = on_slurm(jobmon, waits=False)
    with pytest.raises(AirflowException, match="2 of 2 tasks failed") as error:
        run_while(make(workflow, **CHAIN), lambda: None)
    error_of_task = rf"exit code 1 in Slurm job \d+_\d: cat: {workflow.marker}: No such file.*"
    why = rf"2 × {error_of_task} \(e\.g\. task \d+ 'task-\d'\)"
    assert re.search(why, str(error.value))
    assert jobmon.runs(workflow.workflow_id)[-1][1] == "E"
    assert_no_job_is_left(slurm)


def test_a_task_that_is_cancelled_fails_alone(jobmon: JobmonSandbox, slurm: Slurm, make: Make) -> None:
    workflow = on_slurm(jobmon)

    def cancel_one() -> None:
        run, (first, second) = running(jobmon, workflow)
        slurm.run("scancel", first)
        wait_until(lambda: jobs_of_tasks(jobmon, run)[first] not in "RT", 60, "the task to be given up")
        assert jobs_of_tasks(jobmon, run)[second] == "R"
        workflow.release()

    with pytest.raises(AirflowException, match="1 of 2 tasks failed, 1 done") as error:
        run_while(make(workflow, **CHAIN), cancel_one)
    assert re.search(r"1 × Slurm job \d+_\d ended CANCELLED .*\(task \d+ 'task-\d'\)", str(error.value))
    assert jobmon.runs(workflow.workflow_id)[-1][1] == "E"


def test_cancelling_the_executor_takes_its_tasks_along(
    jobmon: JobmonSandbox, slurm: Slurm, make: Make, folder: Path
) -> None:
    workflow = on_slurm(jobmon)

    def cancel() -> None:
        running(jobmon, workflow)
        slurm.run("scancel", job_number(folder))

    with pytest.raises(AirflowException, match=r"^[^\n]*Slurm job \d+ ended CANCELLED by scancel"):
        run_while(make(workflow, **CHAIN), cancel)
    assert jobmon.runs(workflow.workflow_id)[-1][1] == "S"
    assert_no_job_is_left(slurm)


@pytest.mark.usefixtures("reaper")
def test_cancelling_everything_of_the_user(jobmon: JobmonSandbox, slurm: Slurm, make: Make) -> None:
    workflow = on_slurm(jobmon)

    def cancel() -> None:
        running(jobmon, workflow)
        slurm.run("scancel", "--user=root")

    with pytest.raises(AirflowException, match=r"^[^\n]*Slurm job \d+ ended CANCELLED by scancel"):
        run_while(make(workflow, **CHAIN), cancel)
    assert jobmon.runs(workflow.workflow_id)[-1][1] in "SE"
    assert_no_job_is_left(slurm)


def test_marking_the_task_failed_leaves_no_job_behind(
    jobmon: JobmonSandbox, slurm: Slurm, make: Make
) -> None:
    workflow = on_slurm(jobmon)
    trigger = deferred(make(workflow, **CHAIN))
    running(jobmon, workflow)
    asyncio.run(kill_trigger(trigger))
    newest_run(jobmon, workflow, "T")
    assert_no_job_is_left(slurm)


def test_a_time_that_is_over_leaves_no_job_behind(jobmon: JobmonSandbox, slurm: Slurm, make: Make) -> None:
    workflow = on_slurm(jobmon)
    trigger: Any = deferred(make(workflow, **CHAIN))
    running(jobmon, workflow)
    trigger.deadline = time.time() + 2
    assert asyncio.run(fire(trigger))["status"] == "timeout"
    newest_run(jobmon, workflow, "T")
    assert_no_job_is_left(slurm)


def test_a_node_that_is_drained_makes_the_job_wait(
    jobmon: JobmonSandbox, slurm: Slurm, make: Make, logged: Any
) -> None:
    workflow = on_slurm(jobmon)
    workflow.release()

    def resume() -> None:
        try:
            why = re.compile(r"job \d+ PENDING: [^\[]*(DRAIN|NotAvail)")
            wait_until(lambda: why.search(logged()), 60, "why the job waits")
            assert newest_run(jobmon, workflow, "L")
        finally:
            slurm.run("scontrol", "update", "nodename=node", "state=resume")

    slurm.run("scontrol", "update", "nodename=node", "state=drain", "reason=maintenance")
    run = run_while(make(workflow, **CHAIN), resume)
    assert jobmon.runs(workflow.workflow_id)[-1] == (run, "D")


@pytest.mark.usefixtures("reaper")
def test_a_run_whose_job_waits_for_long_is_kept_alive(
    jobmon: JobmonSandbox, slurm: Slurm, make: Make, folder: Path
) -> None:
    """For forty heartbeats, ten times as long as one is good for, while Jobmon's reaper is at work.

    With Jobmon's defaults that would be twenty minutes.
    """
    workflow = on_slurm(jobmon)
    workflow.release()

    def hold() -> None:
        number = job_number(folder)
        run = newest_run(jobmon, workflow, "L")

        def beats() -> int:
            seen = jobmon.requests(f"/workflow_run/{run}/log_heartbeat")
            return sum(request.is_ours and request.reply["status"] == "L" for request in seen)

        wait_until(lambda: beats() >= 40, 60, "forty heartbeats")
        assert jobmon.run_status(run) == "L"
        assert jobmon.requests(f"/workflow_run/{run}/reap") == []
        slurm.run("scontrol", "release", number)

    quick = {"workflow_run_heartbeat_interval": 1, "heartbeat_report_by_buffer": 4}
    run = run_while(make(workflow, **CHAIN | quick, launcher_options={"hold": True}), hold)
    assert jobmon.runs(workflow.workflow_id)[-1] == (run, "D")
    moved = [request.path for request in jobmon.requests(f"/workflow_run/{run}/") if "reap" in request.path]
    assert moved == []

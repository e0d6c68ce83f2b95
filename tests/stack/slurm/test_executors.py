"""Executors that are jobs of a real Slurm, submitted on this worker and over OpenSSH's own server."""

from __future__ import annotations

import asyncio
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException

from airflow_jobmon_provider.execution.files import read_output
from airflow_jobmon_provider.execution.hosts import ThisHost
from airflow_jobmon_provider.execution.job import Job, JobSpec
from airflow_jobmon_provider.execution.launchers.slurm import LAUNCHER
from dev.jobmon_sandbox import JobmonSandbox, wait_until
from dev.slurm import Slurm
from tests.airflow_task import Tries, fire
from tests.airflow_task import kill as kill_trigger
from tests.stack.slurm.runs import PASSWORD, Make, deferred, failed, job_number, newest_run, run_while

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("connected")]

PLACES = [
    pytest.param({"ssh_conn_id": ssh, "deferrable": deferrable}, id=f"{where}-{how}")
    for ssh, where in ((None, "this worker"), ("submit_host", "submit host"))
    for deferrable, how in ((False, "blocking"), (True, "deferrable"))
]
HANDOFF_TIMEOUT = 15.0  # seconds
everywhere = pytest.mark.parametrize("place", PLACES)


def beaten_for(jobmon: JobmonSandbox, run: int) -> float:
    """Return the seconds from the first heartbeat of a run to the latest."""
    beats = jobmon.requests(f"/workflow_run/{run}/log_heartbeat")
    return beats[-1].time - beats[0].time if beats else 0.0


@everywhere
def test_a_job_executes_the_run(
    jobmon: JobmonSandbox,
    slurm: Slurm,
    make: Make,
    folder: Path,
    place: dict[str, Any],
    logged: Callable[[], str],
) -> None:
    """Held at first: that is no reason to give the run up, whatever ``handoff_timeout`` says."""
    workflow = failed(jobmon)
    workflow.release()
    options = {"partition": "long", "time": "7-0", "mem": "64M", "hold": True, "comment": "a'b $(c) --wrap=d"}
    operator = make(workflow, launcher_options=options, handoff_timeout=HANDOFF_TIMEOUT, **place)

    def release() -> None:
        number = job_number(folder)
        wait_until(lambda: f"job {number} PENDING: JobHeldUser" in logged(), 30, "why it waits")
        shown = slurm.run("scontrol", "show", "job", number)
        assert "Comment=a'b $(c) --wrap=d" in shown
        assert "TimeLimit=7-00:00:00" in shown
        run = newest_run(jobmon, workflow, "L")
        assert f"JobName=jobmon-{workflow.workflow_id}-{run}\n" in shown
        assert_nothing_secret(slurm, number, folder)
        wait_until(lambda: beaten_for(jobmon, run) > HANDOFF_TIMEOUT, 60, "the hand-off to be overdue")
        slurm.run("scontrol", "release", number)

    result = run_while(operator, release)
    assert jobmon.runs(workflow.workflow_id)[-1] == (result, "D")
    log = logged()
    for line in (f"executor: executing workflow run {result}", "2 of 2 tasks done, 0 failed"):
        assert log.count(line) == 1
    assert list((folder / "runs").iterdir()) == []


def assert_nothing_secret(slurm: Slurm, number: str, folder: Path) -> None:
    """What others may see of a job has no credentials: its record, its script, the list of processes."""
    shown = slurm.run("scontrol", "show", "job", "-d", number) + slurm.run("squeue", "-O", "Command,Comment")
    script = slurm.run("scontrol", "write", "batch_script", number, "-")
    processes = subprocess.run(["/bin/ps", "axww"], capture_output=True, text=True, check=True).stdout
    assert PASSWORD not in shown + script + processes
    (secrets,) = folder.glob("runs/*/secrets")
    assert PASSWORD in secrets.read_text()
    assert secrets.stat().st_mode & 0o777 == 0o600
    assert secrets.parent.stat().st_mode & 0o777 == 0o700


@everywhere
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"launcher_options": {"partition": "nowhere"}}, "Slurm does not take the job: .*Invalid partition"),
        ({"setup_commands": ["module load nowhere"]}, "setup command 1 failed: module load nowhere"),
        (
            {"setup_commands": ["scancel $SLURM_JOB_ID; sleep 60"]},
            r"Slurm job \d+ ended CANCELLED by scancel",
        ),
        ({"setup_commands": ["kill -9 $$"]}, r"job \d+ FAILED, and its executor has left no exit code"),
    ],
    ids=["refused", "setup", "cancelled", "killed"],
)
def test_a_job_that_ends_before_it_has_the_run_aborts_it(
    jobmon: JobmonSandbox,
    make: Make,
    place: dict[str, Any],
    options: dict[str, Any],
    says: str,
) -> None:
    workflow = failed(jobmon)
    with pytest.raises(AirflowException, match=rf"^[^\n]*{says}"):
        run_while(make(workflow, **place, **options), lambda: None)
    assert jobmon.runs(workflow.workflow_id)[-1][1] == "A"


def test_a_job_that_is_too_late_says_so(jobmon: JobmonSandbox, make: Make) -> None:
    workflow = failed(jobmon)
    slow = make(workflow, setup_commands=["sleep 300"], launcher_options={"time": 1}, deferrable=True)
    with pytest.raises(AirflowException, match=r"^Slurm job \d+ ended TIMEOUT after 1:00"):
        run_while(slow, lambda: None)
    assert jobmon.runs(workflow.workflow_id)[-1][1] == "A"


@everywhere
def test_a_job_that_waits_too_long_is_cancelled(
    jobmon: JobmonSandbox,
    slurm: Slurm,
    make: Make,
    place: dict[str, Any],
) -> None:
    workflow = failed(jobmon)
    held = make(workflow, launcher_options=["--hold"], queue_timeout=10, **place)
    with pytest.raises(AirflowException, match=r"within 10 s, as it waited in the queue \(queue_timeout\)"):
        run_while(held, lambda: None)
    run = newest_run(jobmon, workflow, "A")
    name = f"jobmon-{workflow.workflow_id}-{run}"
    wait_until(lambda: not slurm.run("squeue", "-h", "-n", name), 20, "the job to be cancelled")


@everywhere
def test_a_controller_that_is_restarted_changes_nothing(
    jobmon: JobmonSandbox,
    slurm: Slurm,
    make: Make,
    place: dict[str, Any],
    logged: Callable[[], str],
) -> None:
    workflow = failed(jobmon, waits=True)

    def restart() -> None:
        newest_run(jobmon, workflow, "R")
        slurm.kill_controller()
        try:
            wait_until(lambda: "does not answer, which changes nothing" in logged(), 60, "the outage")
        finally:
            slurm.start_controller()
        wait_until(lambda: "answers again, after" in logged(), 90, "its end")
        workflow.release()

    result = run_while(make(workflow, **place), restart)
    assert jobmon.runs(workflow.workflow_id)[-1] == (result, "D")


def test_marking_the_task_failed_cancels_a_job_that_waits(
    jobmon: JobmonSandbox, slurm: Slurm, make: Make, folder: Path
) -> None:
    workflow = failed(jobmon)
    trigger = deferred(make(workflow, launcher_options={"hold": True}, deferrable=True))
    number = job_number(folder)
    asyncio.run(kill_trigger(trigger))
    newest_run(jobmon, workflow, "A")
    wait_until(lambda: not slurm.run("squeue", "-h", "-j", number), 20, "the job to be cancelled")


def test_a_time_that_is_over_cancels_a_job_that_waits(
    jobmon: JobmonSandbox, slurm: Slurm, make: Make, folder: Path
) -> None:
    workflow = failed(jobmon)
    trigger: Any = deferred(make(workflow, launcher_options={"hold": True}, deferrable=True))
    number = job_number(folder)
    trigger.deadline = time.time() + 2
    assert asyncio.run(fire(trigger))["status"] == "timeout"
    newest_run(jobmon, workflow, "A")
    wait_until(lambda: not slurm.run("squeue", "-h", "-j", number), 20, "the job to be cancelled")


def test_a_clear_of_which_nobody_tells_cancels_a_job_that_waits(
    jobmon: JobmonSandbox, slurm: Slurm, make: Make, folder: Path
) -> None:
    """Before Airflow 3.3: the next try does."""
    workflow, tries = failed(jobmon), Tries()
    held = {"launcher_options": {"hold": True}, "deferrable": True}
    deferred(make(workflow, **held), tries)
    number = job_number(folder)
    tries.clear()
    deferred(make(workflow, **held), tries)
    second = job_number(folder)
    slurm.run("scancel", second)
    assert second != number
    assert [status for _, status in jobmon.runs(workflow.workflow_id)][-2:] == ["A", "L"]
    wait_until(lambda: not slurm.run("squeue", "-h", "-j", number), 20, "the job to be cancelled")


def test_a_submission_whose_reply_was_lost_is_found_again(slurm: Slurm, folder: Path) -> None:
    spec = JobSpec("http://jobmon/api/v3", 7, 8, "sequential", remote_dir=str(folder))
    host, start = ThisHost(), LAUNCHER.start(spec, ["--hold"])
    job = host.run(start)
    Path(job.folder, "handle").unlink()
    assert host.run(start) == job
    assert slurm.run("squeue", "-h", "-o", "%i", "-n", spec.name).split() == [job.handle]
    host.run(LAUNCHER.end(job, kill=False))


@pytest.mark.parametrize("given", ["--job-name=mine", "-Jmine", "--job-name=yours,mine"])
def test_a_name_of_the_users_own(slurm: Slurm, folder: Path, given: str) -> None:
    spec = JobSpec("http://jobmon/api/v3", 7, 9, "sequential", remote_dir=str(folder))
    host, start = ThisHost(), LAUNCHER.start(spec, ["--hold", given])
    job = host.run(start)
    assert slurm.run("squeue", "-h", "-o", "%j", "-j", job.handle).strip() == re.split("-J|=", given)[1]
    Path(job.folder, "handle").unlink()
    assert host.run(start) == job
    host.run(LAUNCHER.end(job, kill=False))


def test_a_second_job_of_the_same_run_ends_at_once(slurm: Slurm, folder: Path) -> None:
    """Should ever two be submitted, one of them executes."""
    spec = JobSpec(
        "http://jobmon/api/v3", 7, 10, "sequential", "/bin/echo", ["sleep 5"], remote_dir=str(folder)
    )
    host = ThisHost()
    job = host.run(LAUNCHER.start(spec, []))
    wait_until(Path(job.folder, "claim", "by").exists, 30, "the first one to begin")
    other = slurm.run(
        "sbatch", "--parsable", "-o/dev/null", f"{job.folder}/job.sh", job.folder, "slurm"
    ).strip()
    wait_until(lambda: Path(job.folder, "exit").exists(), 30, "the first one to end")
    wait_until(lambda: not slurm.run("squeue", "-h", "-j", other), 30, "the second one to end")
    written = host.run(read_output({job.folder: 0}))[job.folder]
    assert written.count(b"--workflow-run-id=10") == 1


def test_a_job_that_slurm_has_forgotten_is_over(slurm: Slurm, folder: Path) -> None:
    job = Job(str(folder), "4711")
    seen = ThisHost().run(LAUNCHER.look([job]))[job]
    assert (
        seen.ending == "Slurm job 4711 is over: Slurm does not know it any more, and it has left no exit code"
    )

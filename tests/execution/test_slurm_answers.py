"""What the answers of Slurm's commands mean: as Slurm 22.05 gives them, which tests/stack compares."""

from __future__ import annotations

import pytest

from airflow_jobmon_provider.execution.command import MARK, HostNotReached, HostRefused
from airflow_jobmon_provider.execution.job import Job, JobSpec
from airflow_jobmon_provider.execution.launchers import JobSeen, JobStage
from airflow_jobmon_provider.execution.launchers.slurm import LAUNCHER

JOB = Job("/home/me/.airflow-jobmon/runs/ab-8", "4711")
SPEC = JobSpec("http://jobmon.example.org/api/v3", 7, 8, "slurm")
UNTAKEN, TAKEN = "left none untaken", "left none taken"


def seen(left: str, *lines: str, exit_code: int = 0, errors: str = "") -> JobSeen:
    text = "\n".join([left, *lines, ""]).encode()
    return LAUNCHER.look([JOB]).understand(exit_code, MARK + text, errors.encode())[JOB]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("job 4711|PENDING|7-00:00:00||Priority", "job 4711 PENDING: Priority"),
        ("job 4711|PENDING|1:00||None", "job 4711 PENDING"),
        ("job 4711|SUSPENDED|1:00|n12|None", "job 4711 SUSPENDED: on n12"),
        ("job 4711|REQUEUED|1:00||BeginTime", "job 4711 REQUEUED: BeginTime"),
    ],
)
def test_a_job_that_waits_says_why(line: str, said: str) -> None:
    job = seen(UNTAKEN, line)
    assert (job.stage, job.said) == (JobStage.WAITING, said)


@pytest.mark.parametrize("state", ["RUNNING", "COMPLETING", "STAGE_OUT"])
def test_a_job_at_work(state: str) -> None:
    job = seen(TAKEN, f"job 4711|{state}|1:00|n12|None")
    assert (job.stage, job.said, job.left.taken) == (JobStage.AT_WORK, f"job 4711 {state}: on n12", True)


@pytest.mark.parametrize(
    ("state", "ending"),
    [
        ("TIMEOUT", "Slurm job 4711 ended TIMEOUT after 7-00:00:00"),
        ("CANCELLED", "Slurm job 4711 ended CANCELLED by scancel"),
        ("OUT_OF_MEMORY", "Slurm job 4711 ended OUT_OF_MEMORY"),
        ("NODE_FAIL", "Slurm job 4711 ended NODE_FAIL of n12"),
        ("PREEMPTED", "Slurm job 4711 ended PREEMPTED"),
    ],
)
@pytest.mark.parametrize("left", [UNTAKEN, "left 143 taken"])
def test_how_slurm_ended_a_job_comes_before_the_exit_code(state: str, ending: str, left: str) -> None:
    job = seen(left, f"job 4711|{state}|7-00:00:00|n12|None")
    assert (job.stage, job.ending) == (JobStage.OVER, ending)


@pytest.mark.parametrize(
    ("left", "code"), [("left 0 taken", 0), ("left 4 untaken", 4), ("left 137 taken", -9)]
)
@pytest.mark.parametrize(
    "lines", [(), ("job 4711|COMPLETED|1:00|n12|None",), ("job 4711|FAILED|1:00|n12|x",)]
)
def test_an_executor_that_has_ended_by_itself(left: str, code: int, lines: tuple[str, ...]) -> None:
    job = seen(left, *lines)
    assert (job.stage, job.left.exit_code, job.ending) == (JobStage.OVER, code, "")


def test_a_requeued_job_is_not_over_though_it_has_left_an_exit_code() -> None:
    assert seen("left 143 taken", "job 4711|PENDING|1:00||BeginTime").stage is JobStage.WAITING


def test_a_state_that_nobody_knows_is_no_end() -> None:
    assert seen(UNTAKEN, "job 4711|DREAMING|1:00||None").stage is JobStage.NOT_KNOWN


@pytest.mark.parametrize("errors", ["", "slurm_load_jobs error: Invalid job id specified"])
def test_a_job_that_slurm_has_forgotten(errors: str) -> None:
    job = seen(UNTAKEN, exit_code=1 if errors else 0, errors=errors)
    assert job.stage is JobStage.OVER
    assert "Slurm does not know it any more" in job.ending


def test_a_controller_that_is_away_is_an_outage() -> None:
    error = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    with pytest.raises(HostNotReached, match="Unable to contact slurm controller"):
        seen(UNTAKEN, exit_code=1, errors=error)
    with pytest.raises(HostNotReached, match="squeue ended with exit code 127"):
        seen(UNTAKEN, exit_code=127)
    with pytest.raises(HostNotReached, match="did not tell what its executors have left"):
        seen("nothing of ours")


def started(exit_code: int, *lines: str, errors: str = "") -> Job:
    text = "\n".join([*lines, ""]).encode()
    return LAUNCHER.start(SPEC, []).understand(exit_code, MARK + text, errors.encode())


def test_a_start() -> None:
    assert started(0, "/home/me/x", "4711") == Job("/home/me/x", "4711")
    assert started(0, "/home/me/x", "4711;big") == Job("/home/me/x", "4711;big")


@pytest.mark.parametrize(
    ("exit_code", "errors", "kind", "says"),
    [
        (73, "mkdir: cannot create directory '/x': Permission denied", HostRefused, "remote_dir cannot be"),
        (75, "slurm_load_jobs error: Unable to contact", HostNotReached, "Unable to contact"),
        (75, "", HostNotReached, "Slurm does not answer"),
        (1, "sbatch: error: Batch job submission failed: Socket timed out", HostNotReached, "timed out"),
        (
            1,
            "sbatch: error: Invalid account",
            HostRefused,
            "does not take the job: sbatch: error: Invalid acc",
        ),
        (1, "", HostRefused, "does not take the job: no reason given"),
    ],
)
def test_a_start_that_fails(exit_code: int, errors: str, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        started(exit_code, errors=errors)


def test_jobs_of_other_clusters_are_asked_for_there() -> None:
    jobs = [Job("/a", "1;big"), Job("/b", "2"), Job("/c", "3;old")]
    assert "--clusters=big,old --jobs=1,2,3 " in LAUNCHER.look(jobs).script
    assert "scancel --clusters=big 1" in LAUNCHER.end(jobs[0], kill=False).script
    assert "scancel --signal=KILL --full 2" in LAUNCHER.end(jobs[1], kill=True).script
    assert " --clusters=big " in LAUNCHER.start(SPEC, ["--clusters=big"]).script


def test_what_scancel_says_counts_only_in_an_outage() -> None:
    end = LAUNCHER.end(JOB, kill=False)
    end.understand(1, MARK, b"scancel: error: Kill job error on job id 4711: Invalid job id specified")
    with pytest.raises(HostNotReached, match="Unable to contact"):
        end.understand(1, MARK, b"scancel: error: Unable to contact slurm controller")

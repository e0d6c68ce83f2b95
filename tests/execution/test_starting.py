"""Two starts of one job at the same time: a worker has died amid the first, whose shell goes on."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from airflow_jobmon_provider.execution import job
from airflow_jobmon_provider.execution.command import HostNotReached
from airflow_jobmon_provider.execution.hosts import ThisHost
from airflow_jobmon_provider.execution.job import JobSpec
from airflow_jobmon_provider.execution.launchers import find_launcher
from dev.jobmon_sandbox import wait_until

PROGRAMS = {
    "squeue": "true",
    "flock": 'echo asked >>"$TOLD"/flock; PATH=${PATH#*:} exec flock "$@"',
    "sbatch": 'echo asked >>"$TOLD"/sbatch; i=0;'
    ' until [ -e "$TOLD"/go ] || [ "$i" -gt 400 ]; do sleep 0.05; i=$((i + 1)); done; echo $$',
}


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a Slurm on PATH that takes a job when it is told to, and returns what was asked of it."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, line in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setenv("TOLD", str(tmp_path))
    return tmp_path


def asked(told: Path, program: str) -> int:
    file = told / program
    return file.read_text().count("asked") if file.exists() else 0


def spec(folder: Path) -> JobSpec:
    return JobSpec("http://jobmon", 1, 2, "c", remote_dir=str(folder / "jobs"))


def test_the_second_one_waits_and_finds_the_job_of_the_first(told: Path) -> None:
    start = find_launcher("slurm").start(spec(told), [])
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ThisHost().run, start)
        wait_until(lambda: asked(told, "sbatch") == 1, 20, "the first one to submit")
        second = pool.submit(ThisHost().run, start)
        wait_until(lambda: asked(told, "flock") == 2, 20, "the second one to wait")
        (told / "go").touch()
        assert second.result() == first.result()
    assert asked(told, "sbatch") == 1


def test_one_that_waits_too_long_says_not_now(told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "_ONE_AT_A_TIME", job._ONE_AT_A_TIME.replace("-w 30", "-w 0"))
    start = find_launcher("slurm").start(spec(told), [])
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ThisHost().run, start)
        wait_until(lambda: asked(told, "sbatch") == 1, 20, "the first one to submit")
        with pytest.raises(HostNotReached, match="another try is starting the job just now"):
            ThisHost().run(start)
        (told / "go").touch()
        assert first.result() == ThisHost().run(start)


@pytest.mark.parametrize("code", [69, 127], ids=["no locks here", "no such command"])
def test_where_there_are_no_locks_a_job_is_started_all_the_same(told: Path, code: int) -> None:
    (told / "bin" / "flock").write_text(f"#!/bin/sh\nexit {code}\n")
    (told / "go").touch()
    assert ThisHost().run(find_launcher("slurm").start(spec(told), [])).handle.isdigit()


def test_what_ended_long_ago_and_nobody_has_removed_is_removed(told: Path) -> None:
    days, runs = 86400, told / "jobs" / "runs"
    ages = {"old": 31.0, "older": 400.0, "recent": 29.0, "at work": 400.0}
    for name, age in ages.items():
        (runs / name).mkdir(parents=True)
        for file in ("exit", "output", "claim") if name != "at work" else ("output", "claim"):
            (runs / name / file).touch()
            os.utime(runs / name / file, (time.time() - age * days,) * 2)
    (told / "go").touch()
    kept = Path(ThisHost().run(find_launcher("slurm").start(spec(told), [])).folder).name
    wanted = {"recent", "at work", kept}
    wait_until(lambda: {each.name for each in runs.iterdir()} == wanted, 20, "the old ones to go")


def test_a_process_that_was_started_does_not_hold_the_lock(tmp_path: Path) -> None:
    slow = JobSpec("http://jobmon", 1, 2, "c", "true", ["sleep 60"], remote_dir=str(tmp_path))
    launcher, host = find_launcher("process"), ThisHost()
    started = host.run(launcher.start(slow, []))
    try:
        lock = Path(started.folder, "lock").stat()
        handles = Path("/proc", started.handle.split()[0], "fd").iterdir()
        assert all(handle.stat().st_ino != lock.st_ino for handle in handles if handle.exists())
        assert host.run(launcher.start(slow, [])) == started
    finally:
        host.run(launcher.end(started, kill=True))

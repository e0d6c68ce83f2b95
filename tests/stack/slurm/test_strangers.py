"""What gets into a job of a real Slurm by its options and lines, and what other users see of it."""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from airflow_jobmon_provider.execution.command import Command, HostRefused
from airflow_jobmon_provider.execution.hosts import Host, SshHost, ThisHost
from airflow_jobmon_provider.execution.job import Job, JobSpec
from airflow_jobmon_provider.execution.launchers.slurm import LAUNCHER
from airflow_jobmon_provider.execution.placement import checked_folder, setup_lines
from dev.jobmon_sandbox import wait_until
from dev.slurm import Slurm
from tests import stranger
from tests.execution.hostile import lines, texts

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("connected")]

HOSTS = [pytest.param(ThisHost, id="this worker"), pytest.param(lambda: SshHost("submit_host"), id="sshd")]
some = settings(
    max_examples=30,  # each is a job
    phases=[Phase.explicit, Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder into which everybody may look: what is below sees to itself."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("kind", HOSTS)
def test_others_see_nothing_of_a_password(slurm: Slurm, open_folder: Path, kind: Any) -> None:
    """Neither in the job's record, script and environment, nor in the processes, nor in the folder."""
    password = f"p{secrets.token_hex(8)}"
    go = open_folder / "go"
    jobs = open_folder / "jobs"
    jobs.mkdir(mode=0o755)
    # What it runs in the place of a Python reads the secrets as the executor does, and removes them.
    program = open_folder / "program"
    program.write_text(f"#!/bin/sh\nrm {jobs}/runs/*/secrets; touch {open_folder}/read; exec sleep 300\n")
    program.chmod(0o755)
    spec = JobSpec(
        *("http://jobmon/api/v3", 7, 8, "sequential", str(program)),
        setup_commands=[f"until test -e {go}; do sleep 0.1; done"],
        credentials=f"me:{password}",
        remote_dir=str(jobs),
    )
    site: Host = kind()
    job = site.run(LAUNCHER.start(spec, []))
    try:
        file = Path(job.folder, "secrets")
        wait_until(Path(job.folder, "claim", "by").exists, 60, "the job to begin")
        assert password in file.read_text()
        assert file.stat().st_mode & 0o777 == 0o600
        assert_unseen(slurm, job, jobs, password)
        go.touch()
        wait_until((open_folder / "read").exists, 60, "the executor")
        assert not file.exists()
        assert_unseen(slurm, job, jobs, password)
    finally:
        site.run(LAUNCHER.end(job, kill=False))
        site.close()
        wait_until(lambda: not slurm.run("squeue", "-h", "-j", job.handle), 60, "the job to end")


def assert_unseen(slurm: Slurm, job: Job, jobs: Path, password: str) -> None:
    texts = stranger.forms_of("me", password)
    assert stranger.processes_with([job.folder])  # the job is seen, whose first argument this is
    assert stranger.processes_with(texts) == []
    assert stranger.readable_below(jobs) == []
    environment = {**slurm.environment}
    shown = stranger.run("scontrol", "show", "job", "-d", job.handle, environment=environment)
    assert f"JobId={job.handle}" in shown
    script = stranger.run("scontrol", "write", "batch_script", job.handle, "-", environment=environment)
    mine = slurm.run("scontrol", "write", "batch_script", job.handle, "-")
    assert "Executes workflow run 8" in mine
    # Not even in all that Slurm keeps, and root may read: script and environment in spool and state.
    written = b"".join(map(content, Path(slurm.environment["SLURM_CONF"]).parent.rglob("*")))
    assert b"Executes workflow run 8" in written
    assert not any(text in shown + script + mine or text.encode() in written for text in texts)


def content(file: Path) -> bytes:
    """Return what is in a file; Slurm may have removed it by now."""
    with contextlib.suppress(FileNotFoundError):
        return file.read_bytes() if file.is_file() else b""
    return b""


numbers = iter(range(1000, 10**6))


@pytest.mark.parametrize("kind", HOSTS)
def test_whatever_stands_in_a_template_is_quoted_or_refused(slurm: Slurm, tmp_path: Path, kind: Any) -> None:
    """The record of the job that a real sbatch has made of it says so; each is held, and never begins."""
    site: Host = kind()
    taken: list[int] = []

    @some
    @given(comment=lines, own=lines, folder=lines, setup=texts, cluster=texts, python=texts)
    def check(comment: str, own: str, folder: str, setup: str, cluster: str, python: str) -> None:
        number = next(numbers)
        options = LAUNCHER.check_options({"comment": comment, "job-name": f"n{own}", "hold": True})
        remote_dir = checked_folder(f"{tmp_path}/{number} {folder}")
        spec = JobSpec(
            *("http://jobmon", 7, number, cluster, python),
            setup_commands=setup_lines([setup]),
            remote_dir=remote_dir,
        )
        try:
            job = site.run(LAUNCHER.start(spec, options))
        except HostRefused as refused:
            assert "\n" not in str(refused)
            assert str(number) not in slurm.run("squeue", "-h", "-o", "%o")
            return
        try:
            shown = slurm.run("squeue", "-h", "-o", "%j|%o|%k", "-j", job.handle)
            assert shown == f"n{own}|{job.folder}/job.sh {job.folder} slurm|{comment}\n"
            taken.append(number)
            script = slurm.run("scontrol", "write", "batch_script", job.handle, "-")
            assert script.rstrip("\0") == Path(job.folder, "job.sh").read_text()
        finally:
            site.run(LAUNCHER.end(job, kill=False))

    try:
        check()
        assert len(taken) > 10  # the others were refused
        home = site.run(Command("pwd; ls", lambda answer: answer.lines))
        assert "pwned" not in home
        assert not list(tmp_path.rglob("pwned"))
    finally:
        site.close()

"""Whatever templates put into a job, over a real SSH server and its real shells: words, no commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings

from airflow_jobmon_provider.execution.command import Command, quote
from airflow_jobmon_provider.execution.hosts import SshHost
from airflow_jobmon_provider.execution.job import JobSpec
from airflow_jobmon_provider.execution.launchers.process import LAUNCHER
from airflow_jobmon_provider.execution.placement import checked_folder
from dev.jobmon_sandbox import wait_until
from dev.submit_host import SubmitHost
from tests.execution.hostile import lines, texts

some = settings(
    max_examples=12,  # each is a job
    phases=[Phase.explicit, Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
numbers = count(1)

RECORDER = """\
#!{python} -SE
import json, os, sys
with open({folder!r} + "/told-" + sys.argv[3].partition("=")[2], "w") as told:
    json.dump([sys.argv[0], *sys.argv[2:], os.environ["GIVEN"]], told)
"""


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[SshHost]:
    with SubmitHost({}) as server:
        monkeypatch.setenv("AIRFLOW_CONN_HOSTILE", json.dumps(server.connection))
        host = SshHost("hostile")
        yield host
        host.close()


def test_a_job_is_told_what_was_given(host: SshHost, tmp_path: Path) -> None:
    recorder = tmp_path / "recorder"
    recorder.write_text(RECORDER.format(python=sys.executable, folder=str(tmp_path)))
    recorder.chmod(0o755)

    @some
    @example(*[r"a\\b\n"] * 5)  # which the ``echo`` of some shells, such as dash's, takes apart
    @given(cluster=texts, folder=lines, python=lines, given=texts, setup=texts)
    def check(cluster: str, folder: str, python: str, given: str, setup: str) -> None:
        number = next(numbers)
        remote_dir = checked_folder(f"{tmp_path}/jobs {number} {folder}")
        program = tmp_path / str(number) / python.strip().replace("/", "").replace("\n", " ")[:50]
        program = program if program.parent.name == str(number) else program / "python"
        program.parent.mkdir()
        program.symlink_to(recorder)
        spec = JobSpec(
            *("http://jobmon", 7, number, cluster, str(program)),
            setup_commands=[f"set -- {quote(setup)}", ": <<'IN'\n$(touch pwned)\nIN"],
            environment={"GIVEN": given},
            remote_dir=remote_dir,
        )
        job = host.run(LAUNCHER.start(spec, []))
        wait_until(Path(job.folder, "exit").exists, 30, "the job to end")
        told = json.loads((tmp_path / f"told-{number}").read_text())
        name, workflow, run, on, *files, was_given = told
        assert (name, workflow, run) == (str(program), "--workflow-id=7", f"--workflow-run-id={number}")
        assert (on, was_given) == (f"--cluster-name={cluster}", given)
        assert files == [f"--taken-file={job.folder}/taken"]

    check()
    assert "pwned" not in host.run(Command('cd "$HOME"; ls -A', lambda answer: answer.lines))
    assert not list(tmp_path.rglob("pwned"))

"""What becomes part of a command line: read by real shells as it was given, or refused."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings

from airflow_jobmon_provider.execution.command import (
    Answer,
    Command,
    HostNotReached,
    heredoc,
    path,
    quote,
    script,
)
from airflow_jobmon_provider.execution.files import keep_logged, read_logged, read_output
from airflow_jobmon_provider.execution.hosts import ThisHost
from airflow_jobmon_provider.execution.job import Job, JobSpec
from airflow_jobmon_provider.execution.launchers import JobStage, process, slurm
from airflow_jobmon_provider.execution.placement import checked_folder, setup_lines
from tests.execution.hostile import HOSTILE
from tests.execution.hostile import texts as hostile_texts

texts = hostile_texts.filter(lambda text: text.isprintable() or text in HOSTILE)
some = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def run(line: str) -> Answer:
    return ThisHost().run(Command(line, lambda answer: answer))


@some
@given(texts)
def test_a_word_is_one_word(text: str) -> None:
    assert run(f"printf %s {quote(text)}").output.decode() == text


@some
@example("END¡")
@example("E¡\nEN¡\n|¡\nEND")
@given(texts)
def test_a_text_comes_into_a_file_as_it_is(tmp_path: Path, text: str) -> None:
    target = tmp_path / "file"
    run(heredoc(f"END\n{text}\n|\n\n", quote(str(target))))
    assert target.read_bytes().decode() == f"END\n{text}\n|\n\n"


@some
@given(texts.filter(lambda text: text and "/" not in text))
def test_a_path_below_the_home_begins_there(text: str) -> None:
    home = run('printf %s "$HOME"').output.decode()
    assert run(f"printf %s {path('~/' + text, 'runs')}").output.decode() == f"{home}/{text}/runs"


@some
@given(texts)
def test_setup_commands_are_one_line_each(text: str) -> None:
    """Whatever stands in one, the job's script is whole."""
    spec = JobSpec("http://jobmon", 1, 2, text or "c", "p", [text, "true"], {"NAME": text})
    checked = subprocess.run(["/bin/bash", "-n"], input=spec._job("executor.py"), text=True, check=False)
    assert checked.returncode == 0


@some
@given(texts)
def test_an_option_of_slurm_is_one_word_or_refused(text: str) -> None:
    try:
        (word,) = slurm.LAUNCHER.check_options({"comment": text})
    except ValueError as error:
        assert "\n" in text
        assert "must not hold a line break" in str(error)
    else:
        assert word == f"--comment={text}"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"wrap": "true"}, "'wrap' cannot be given"),
        (["--wrap=true"], "'wrap' cannot be given"),
        (["--wra=true"], "'wra' cannot be given"),
        ({"array": "1-9"}, "'array' cannot be given"),
        (["-a1-9"], "'a' cannot be given"),
        (["job.sh"], "is no option of sbatch"),
        (["-p", "long"], "is no option of sbatch"),
        (["--"], "is no option of sbatch"),
        ({"a b": "c"}, "is no name of an option of sbatch"),
        ({"time": ["7-0"]}, "time must be a text, a number or a bool"),
    ],
)
def test_what_is_no_option_of_one_plain_job_is_refused(options: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        slurm.LAUNCHER.check_options(options)


def test_options_by_their_names() -> None:
    given = {"time": "7-0", "p": "long", "exclusive": True, "requeue": False, "nodes": 1, "qos": None}
    assert slurm.LAUNCHER.check_options(given) == ["--time=7-0", "-plong", "--exclusive", "--nodes=1"]


def test_a_process_takes_no_options() -> None:
    assert process.LAUNCHER.check_options({}) == []
    with pytest.raises(ValueError, match="launcher_options are the scheduler's"):
        process.LAUNCHER.check_options({"time": 1})


@pytest.mark.parametrize("folder", ["", "jobs", "~", "/", "$HOME/jobs", "/a\nb"])
def test_a_folder_is_absolute_or_below_the_home(folder: str) -> None:
    with pytest.raises(ValueError, match="remote_dir must be an absolute path, or begin with '~/'"):
        checked_folder(folder)


@pytest.mark.parametrize("given", ["module load x", [1], [b"x"]])
def test_setup_commands_are_a_list_of_lines(given: Any) -> None:
    with pytest.raises(ValueError, match="setup_commands must be a list of lines"):
        setup_lines(given)


def test_what_a_login_shell_says_first_is_not_the_answer() -> None:
    command = Command("echo mine", lambda answer: answer.lines)
    mark = command.data.splitlines()[0]
    assert mark.startswith(b"printf")
    written = subprocess.run(["/bin/sh", "-s"], input=b"echo Welcome\n" + command.data, capture_output=True)
    assert command.understand(0, written.stdout, b"") == ["mine"]
    with pytest.raises(HostNotReached, match=r"no shell began there \(exit code 1\); it said: No logins"):
        command.understand(1, b"No logins today\n", b"")


def test_outputs_are_read_from_where_they_are_known(tmp_path: Path) -> None:
    folders = [str(tmp_path / name) for name in ("a", "b b", "not there", "c")]
    for folder, text in zip(folders, ("one\n", "two\nthree\n", None, ""), strict=True):
        if text is not None:
            Path(folder).mkdir()
            Path(folder, "output").write_text(text)
    known = dict(zip(folders, (0, 4, 0, 0), strict=True))
    assert ThisHost().run(read_output(known)) == {folders[0]: b"one\n", folders[1]: b"three\n"}


def test_a_large_output_is_read_in_parts(tmp_path: Path) -> None:
    folders = [str(tmp_path / str(number)) for number in range(20)]
    for folder in folders:
        Path(folder).mkdir()
        Path(folder, "output").write_bytes(b"x" * 300_000)
    known, answers = dict.fromkeys(folders, 0), 0
    while read := ThisHost().run(read_output(known)):
        answers += 1
        assert sum(map(len, read.values())) < 5 << 20
        known.update({folder: known[folder] + len(more) for folder, more in read.items()})
    assert set(known.values()) == {300_000}
    assert answers <= 4


def test_how_much_of_each_output_was_logged(tmp_path: Path) -> None:
    folders = [str(tmp_path / name) for name in ("a", "b b", "not there", "empty")]
    for folder, text in zip(folders, ("7\n", "7\n12\n", None, ""), strict=True):
        if text is not None:
            Path(folder).mkdir()
            Path(folder, "logged").write_text(text)
    assert ThisHost().run(read_logged(folders)) == dict(zip(folders, (7, 12, 0, 0), strict=True))
    ThisHost().run(keep_logged({folders[0]: 8}))
    assert ThisHost().run(read_logged(folders[:1])) == {folders[0]: 8}


def test_what_one_look_starts_does_not_grow_with_the_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A submit host serves many users, and a look at 1,000 jobs comes every few seconds."""
    started = tmp_path / "started"
    for name in ("uname", "stat", "tr", "xargs", "cat", "tail", "head"):
        real = shutil.which(name)
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} >>{started}\nexec {real} "$@"\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    handle = f"{os.getpid()} {stat[19]} {boot} {os.uname().nodename}"
    jobs = [Job(str(tmp_path / f"run {number}"), handle) for number in range(1000)]
    for job in jobs:
        Path(job.folder).mkdir()
        Path(job.folder, "output").write_text("one\ntwo\n")
    folders = [job.folder for job in jobs]
    seen = ThisHost().run(process.LAUNCHER.look(jobs))
    assert {each.stage for each in seen.values()} == {JobStage.AT_WORK}
    assert set(ThisHost().run(read_logged(folders)).values()) == {0}
    known = dict.fromkeys(folders, 8) | {folders[-1]: 4}
    assert ThisHost().run(read_output(known)) == {folders[-1]: b"two\n"}
    assert sorted(started.read_text().split()) == ["head", "stat", "tail", "tr", "uname", "xargs"]


def test_a_script_reads_no_input() -> None:
    assert run(script("cat", "echo after")).output == b"after\n"

"""A job: an executor that was started on a host, by a launcher, and what is kept about it there. No I/O.

Each run has a folder of its own on the host, below ``remote_dir``, named after server and run. So a job is
found again whatever was lost on the way here, and is never started twice:

* ``job.sh``: what the launcher starts. It claims the run, sets up the environment, and runs the executor.
* ``lock``: held by who starts the job. A start whose worker has died may still be under way.
* ``claim/``: made by the first ``job.sh`` that begins; any other one ends at once.
* ``handle``: how the launcher knows the job: a process, or a number of the scheduler's.
* ``secrets``: the connection's credentials, which only its owner may read. The executor removes it.
* ``output``: what the executor writes. ``logged``: the bytes of it in the task's log; its last line counts.
* ``taken``: made when the executor takes the run. ``exit``: its exit code.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from airflow_jobmon_provider.execution.command import (
    Answer,
    Command,
    HostNotReached,
    HostRefused,
    heredoc,
    path,
    quote,
    script,
)
from airflow_jobmon_provider.execution.executor import Exit

EXECUTOR = Path(__file__).with_name("executor.py")

REMOTE_DIR = "~/.airflow-jobmon"

_ANY = re.compile(r"\S.*")

NOT_WRITTEN = 73  # exit code of a start that could not write its files: EX_CANTCREAT
NOT_NOW = 75  # exit code of a start that may be tried again: EX_TEMPFAIL

KEPT_DAYS = 30
"""Days for which the folder of a job that has ended is kept, where nobody has removed it."""

_TURN = 30  # seconds for which a start waits until another one of the same job has ended


class Job(NamedTuple):
    """A job that was started.

    :param folder: path of its folder on the host.
    :param handle: how its launcher knows it.
    """

    folder: str
    handle: str


@dataclass(frozen=True)
class JobSpec:
    """What a job is to do.

    :param server: address of the run's server with its route prefix, without credentials.
    :param workflow_id: the workflow.
    :param workflow_run_id: its run.
    :param cluster_name: the cluster on which the run's tasks are to run, by Jobmon's name.
    :param python: the Python with Jobmon's client, on the host: a path or a command. None: the host looks.
    :param setup_commands: lines of bash that come before it.
    :param environment: variables for the executor, no secrets. What the setup commands set comes after them.
    :param credentials: login and password as they stand before the host in an address; empty: none.
    :param remote_dir: a folder of the user's on the host.
    """

    server: str
    workflow_id: int
    workflow_run_id: int
    cluster_name: str
    python: str | None = None
    setup_commands: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    credentials: str = ""
    remote_dir: str = REMOTE_DIR

    @property
    def name(self) -> str:
        """What users see in a list of jobs."""
        return f"jobmon-{self.workflow_id}-{self.workflow_run_id}"

    @property
    def folder(self) -> str:
        """The run's folder on the host, relative to ``remote_dir``: one for each run of each server."""
        server = hashlib.sha256(self.server.encode()).hexdigest()[:12]
        return f"runs/{server}-{self.workflow_run_id}"

    @cached_property
    def _executor(self) -> tuple[str, str]:
        text = EXECUTOR.read_text()
        return f"executor-{hashlib.sha256(text.encode()).hexdigest()[:16]}.py", text

    def install(self) -> str:
        """Return the lines of a shell that put everything in its place, unless the job has begun.

        They set ``$run`` to the run's folder, say it, and leave the shell in the user's home. Until it ends,
        no other one comes this far: the shell of a try whose worker has died may still be at work. What it
        leaves behind must not have descriptor 9, which holds the lock.
        """
        name, text = self._executor
        executor = '"$base"/' + name
        url = urlsplit(self.server)
        secrets = {"server": f"{url.scheme}://{url.netloc}", "credentials": self.credentials}
        # Moved to its place whole: a job that is beginning there must not read half of it.
        new = '"$run"/job.sh'
        files = [heredoc(self._job(name), f"{new}.$$"), f"mv -f {new}.$$ {new} || exit {NOT_WRITTEN}"]
        if self.credentials:
            files.append(heredoc(json.dumps(secrets) + "\n", '"$run"/secrets'))
        return script(
            f"base={path(self.remote_dir)}",
            f'run="$base"/{self.folder}',
            f'(umask 077; mkdir -p "$run" && touch "$run"/lock) || exit {NOT_WRITTEN}',
            _ONE_AT_A_TIME,
            "(",
            "umask 077",
            f"if [ ! -s {executor} ]; then",
            heredoc(text, f"{executor}.$$"),
            f"mv -f {executor}.$$ {executor} || exit {NOT_WRITTEN}",
            "fi",
            'if [ ! -e "$run"/claim ] && [ ! -s "$run"/handle ]; then',
            files,
            _CLEAN_UP,
            "fi",
            f") || exit {NOT_WRITTEN}",
            f'run=$(cd "$run" && pwd -P) || exit {NOT_WRITTEN}',
            'printf "%s\\n" "$run"',
            'cd "$HOME" || cd /',
        )

    def attach(self) -> Command[Job]:
        """Return the command that finds the job, if it was started."""
        find = script(
            f"run={path(self.remote_dir)}/{self.folder}",
            'run=$(cd "$run" 2>/dev/null && pwd -P) || exit 0',
            'printf "%s\\n" "$run"; cat "$run"/handle',
        )

        def read(answer: Answer) -> Job:
            job = read_start(answer, _ANY)
            if job is None:
                raise HostRefused(f"there is no job of workflow run {self.workflow_run_id}")
            return job

        return Command(find, read)

    def _job(self, executor: str) -> str:
        """Return ``job.sh``, whose arguments are the run's folder and the launcher's name."""
        options = {
            "workflow-id": self.workflow_id,
            "workflow-run-id": self.workflow_run_id,
            "cluster-name": self.cluster_name,
        }
        arguments = " ".join(quote(f"--{name}={value}") for name, value in options.items())
        files = '--taken-file="$run"/taken' + (' --secrets="$run"/secrets' if self.credentials else "")
        variables = [f"export {name}={quote(value)}" for name, value in self.environment.items()]
        return script(
            "#!/bin/bash -l",
            f"# Executes workflow run {self.workflow_run_id} of workflow {self.workflow_id}.",
            _CLAIM,
            variables,
            [_setup(number, each) for number, each in enumerate(self.setup_commands, 1)],
            _find_python(self.python),
            f'"$python" "${{run%/runs/*}}"/{executor} {arguments} {files} &',
            _WAIT,
            "",
        )


# Where a file system has no locks, or a host no such command, the claim sees to it that one job executes.
_ONE_AT_A_TIME = f"""exec 9>"$run"/lock
flock -w {_TURN} 9 2>/dev/null
if [ "$?" -eq 1 ]; then echo "another try is starting the job just now" >&2; exit {NOT_NOW}; fi"""

# Of runs that nobody has seen to the end. In the background: a file system may be slow.
_CLEAN_UP = f"""(
find "$base"/runs -mindepth 2 -maxdepth 2 -type f -name exit -mtime +{KEPT_DAYS} | head -n 100 |
while IFS= read -r each; do rm -rf -- "${{each%/exit}}"; done
) </dev/null >/dev/null 2>&1 9>&- &"""

_CLAIM = r"""run=$1 launcher=$2
say() { echo "executor: $*"; }
if ! mkdir "$run"/claim 2>/dev/null; then
  # A job that the scheduler has put back into its queue may go on; any other one is one too many.
  read -r by <"$run"/claim/by
  if [ "$launcher" = process ] || [ "$by" != "$SLURM_JOB_ID" ]; then exit 0; fi
  rm -f "$run"/exit
fi
if [ "$launcher" = process ]; then by=$$; else by=$SLURM_JOB_ID; fi
echo "$by" >"$run"/claim/by
trap 'code=$?; echo "$code" >"$run"/exit.new; mv -f "$run"/exit.new "$run"/exit' EXIT
trap : TERM INT HUP
if [ "$launcher" = process ]; then
  read -r stat </proc/$$/stat
  set -- ${stat##*) }
  read -r boot </proc/sys/kernel/random/boot_id
  echo "$$ ${20} $boot $(uname -n)" >"$run"/handle.new
  mv -f "$run"/handle.new "$run"/handle
fi
set --
"""

_WAIT = r"""child=$!
trap 'kill -TERM "$child" 2>/dev/null' TERM INT HUP
wait "$child"; code=$?
while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done
exit "$code"
"""


LEFT = r"""left() {
  if [ -s "$1"/exit ]; then read -r code <"$1"/exit; else code=none; fi
  if [ -e "$1"/taken ]; then taken=taken; else taken=untaken; fi
  echo "left $code $taken"
}"""
"""A function of a shell that says what the executor has left in a job's folder."""


class Left(NamedTuple):
    """What an executor has left in its job's folder.

    :param exit_code: its exit code; negative: the signal that killed it; None: it has not ended by itself.
    :param taken: whether it has asked the server for the run.
    """

    exit_code: int | None
    taken: bool


NOTHING_LEFT = Left(None, taken=False)


def read_left(line: str) -> Left:
    """Return what a line of :data:`LEFT` says.

    :raises HostNotReached: it is no such line.
    """
    words = line.split()
    if len(words) != 3 or words[0] != "left":
        raise HostNotReached("it did not tell what its executors have left")
    if not words[1].isdigit():
        return Left(None, words[2] == "taken")
    code = int(words[1])
    return Left(128 - code if code > 128 else code, words[2] == "taken")


def read_start(answer: Answer, handle: re.Pattern[str]) -> Job | None:
    """Return the job that the start of a launcher tells of: folder and handle, the last lines of the answer.

    :param handle: what a handle looks like.
    :returns: None: it tells of none.
    :raises HostRefused: its files could not be written.
    :raises HostNotReached: it is to be tried again.
    """
    if answer.exit_code == NOT_NOW:
        raise HostNotReached(answer.complaint or "it says: not now")
    if answer.exit_code == NOT_WRITTEN:
        raise HostRefused(f"remote_dir cannot be written there: {answer.complaint or 'no reason given'}")
    if answer.exit_code != 0 or len(answer.lines) < 2 or not handle.fullmatch(answer.lines[-1].strip()):
        return None
    return Job(answer.lines[-2], answer.lines[-1].strip())


def _setup(number: int, line: str) -> str:
    """Return what runs a setup command, and ends the job if it fails."""
    failed = quote(f"setup command {number} failed: {' '.join(line.split())[:200]}")
    # `eval`, so that a line that is not whole is its own error, and not the script's.
    return f"eval {quote(line)} || {{ say {failed}; exit {Exit.NO_SETUP:d}; }}"


def _find_python(python: str | None) -> str:
    if python is not None:
        home = f'"$HOME"{quote(python[1:])}' if python.startswith("~/") else quote(python)
        missing = quote(f"jobmon_python: {python!r} is not an executable file on")
        return script(
            f"python=$(command -v {home})",
            f'if [ -z "$python" ]; then say {missing} "$(uname -n)"; exit {Exit.NO_CLIENT:d}; fi',
        )
    return script(
        'jobmon=$(readlink -f "$(command -v jobmon)" 2>/dev/null)',
        "python=",
        'for each in "${jobmon:+${jobmon%/*}/python}" python3 python; do',
        '  if [ -n "$each" ] && "$each" -c "import importlib.util as u; u.find_spec(\'jobmon.client\').name"'
        " >/dev/null 2>&1; then python=$each; break; fi",
        "done",
        'if [ -z "$python" ]; then',
        "  say \"no Python with Jobmon's client on $(uname -n): give its path (jobmon_python), or"
        ' setup_commands that put it on PATH"',
        f"  exit {Exit.NO_CLIENT:d}",
        "fi",
    )

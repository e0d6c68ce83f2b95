"""An executor as a batch job of Slurm. Its handle: the job's number, as ``sbatch --parsable`` prints it.

Slurm forgets a job minutes after its end, and not every site lets users ask its accounting. So the executor's
exit code is read from a file, and Slurm is asked why a job ended that has left none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from airflow_jobmon_provider.execution.command import (
    Answer,
    Command,
    HostNotReached,
    HostRefused,
    quote,
    script,
)
from airflow_jobmon_provider.execution.job import LEFT, NOT_NOW, Job, JobSpec, Left, read_left, read_start
from airflow_jobmon_provider.execution.launchers import JobSeen, JobStage, Options

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
_HANDLE = re.compile(r"\d+(;[\w.-]+)?")

# Options that change what is started, how often, or what sbatch prints.
_REFUSED = frozenset(
    ["wrap", "parsable", "array", "a", "test-only", "wait", "W", "help", "h", "usage", "version", "V"]
)

# What a state means for the executor.
_STAGES = {
    JobStage.WAITING: "PENDING CONFIGURING REQUEUED REQUEUE_FED REQUEUE_HOLD RESV_DEL_HOLD SPECIAL_EXIT"
    " STOPPED SUSPENDED",
    JobStage.AT_WORK: "RUNNING COMPLETING STAGE_OUT SIGNALING RESIZING",
    JobStage.OVER: "COMPLETED FAILED CANCELLED TIMEOUT OUT_OF_MEMORY NODE_FAIL BOOT_FAIL DEADLINE PREEMPTED"
    " REVOKED",
}
_STAGE_OF = {state: stage for stage, states in _STAGES.items() for state in states.split()}

# What sbatch and squeue say when the controller is busy or away: https://slurm.schedmd.com/troubleshoot.html
_OUTAGE = re.compile(
    r"unable to contact|socket timed out|connection (refused|timed out|reset)|communication|"
    r"temporarily unable|slurm_persist|transport endpoint|backup controller|zero bytes|"
    r"protocol authentication",
    re.IGNORECASE,
)

_NOT_THERE = re.compile(r"invalid job id", re.IGNORECASE)


class SlurmLauncher:
    """See the module."""

    def check_options(self, options: Options) -> list[str]:
        """Return the options as words: of a dict, ``{"time": "7-0"}`` is ``--time=7-0``.

        A value of True gives the option without a value; False and None leave it out.
        """
        words = list(_words(options)) if isinstance(options, Mapping) else list(options)
        for word in words:
            if not isinstance(word, str) or not re.match(r"--?[A-Za-z]", word):
                raise ValueError(
                    f"launcher_options: {word!r} is no option of sbatch; write each as one word, such as"
                    " '--partition=long', or give a dict"
                )
            if "\n" in word or "\0" in word:
                raise ValueError(f"launcher_options: {word!r} must not hold a line break")
            name = word.lstrip("-").partition("=")[0] if word.startswith("--") else word[1]
            if name in _REFUSED or (word.startswith("--") and _is_short_for(name)):
                raise ValueError(
                    f"launcher_options: {name!r} cannot be given: one plain job runs the executor"
                )
        return words

    def start(self, job: JobSpec, options: Sequence[str]) -> Command[Job]:
        """Return the command that submits the job, unless Slurm has it already."""
        name = next((value for value in _given(options, "job-name", "J")), job.name)
        own = ["--parsable", f"--job-name={job.name}"]
        on = "".join(f" --clusters={quote(value)}" for value in _given(options, "clusters", "M"))
        named = "" if "," in name else f" --name={quote(name)}"  # which takes a list of names
        words = " ".join(map(quote, [*own, *options]))
        output = "" if any(True for _ in _given(options, "output", "o")) else ' --output="$run"/output'
        start = script(
            job.install(),
            'if [ ! -s "$run"/handle ]; then',
            '  id=""; if [ -e "$run"/claim/by ]; then read -r id <"$run"/claim/by; fi',
            # A submission whose reply was lost: the job is known by the file that it runs.
            '  if [ -z "$id" ]; then',
            f"    seen=$(LC_ALL=C squeue --noheader --states=all{on}{named}"
            f' --user="$(id -un)" --format="%i|%o") || exit {NOT_NOW}',  # not known what is queued
            '    id=$(printf "%s\\n" "$seen" | while IFS="|" read -r number command; do',
            '      case $command in "$run"/job.sh*) echo "$number"; break;; esac; done)',
            "  fi",
            '  if [ -z "$id" ]; then',
            f"    id=$(LC_ALL=C sbatch {words} --open-mode=append{output}"
            ' "$run"/job.sh "$run" slurm </dev/null) || exit 1',
            "  fi",
            '  echo "$id" >"$run"/handle.new && mv -f "$run"/handle.new "$run"/handle',
            "fi",
            'cat "$run"/handle',
        )
        return Command(start, _read_start, 120)

    def look(self, jobs: Sequence[Job]) -> Command[dict[Job, JobSeen]]:
        """Return the command that asks for all jobs at once."""
        numbers = ",".join(_number(job) for job in jobs)
        on = _clusters(*(job.handle.partition(";")[2] for job in jobs))
        look = script(
            LEFT,
            # Slurm first: what has ended by then has left its exit code.
            f"states=$(LC_ALL=C squeue --noheader --states=all{on} --jobs={quote(numbers)}"
            ' --format="job %i|%T|%l|%N|%r")',
            "answered=$?",
            [f"left {quote(job.folder)}" for job in jobs],
            'printf "%s\\n" "$states"',
            'exit "$answered"',
        )

        def read(answer: Answer) -> dict[Job, JobSeen]:
            if answer.exit_code != 0 and not _NOT_THERE.search(answer.complaint):
                raise HostNotReached(answer.complaint or f"squeue ended with exit code {answer.exit_code}")
            left = [read_left(line) for line in answer.lines[: len(jobs)]]
            states = _read_states(answer.lines[len(jobs) :])
            return {job: _seen(_number(job), each, states) for job, each in zip(jobs, left, strict=True)}

        return Command(look, read)

    def end(self, job: Job, *, kill: bool) -> Command[None]:
        """Return the command that cancels the job; Slurm kills what has not ended in its ``KillWait``."""
        on = _clusters(job.handle.partition(";")[2])
        signal = " --signal=KILL --full" if kill else ""

        def read(answer: Answer) -> None:
            if answer.exit_code != 0 and _OUTAGE.search(answer.complaint):
                raise HostNotReached(answer.complaint)

        return Command(f"LC_ALL=C scancel{on}{signal} {quote(_number(job))}", read)


def _number(job: Job) -> str:
    return job.handle.partition(";")[0]


def _clusters(*names: str) -> str:
    """Return the option that names clusters of a federation; empty: the host's own."""
    named = sorted({name for name in names if name})
    return f" --clusters={quote(','.join(named))}" if named else ""


def _words(options: Mapping[str, object]) -> Iterator[str]:
    for name, value in options.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"launcher_options: {name!r} is no name of an option of sbatch, such as 'partition'"
            )
        if value is None or value is False:
            continue
        dashes = "-" if len(name) == 1 else "--"
        if value is True:
            yield f"{dashes}{name}"
        elif isinstance(value, (str, int, float)):
            yield f"{dashes}{name}{'' if len(name) == 1 else '='}{value}"
        else:
            raise ValueError(f"launcher_options: {name} must be a text, a number or a bool, not {value!r}")


def _is_short_for(name: str) -> bool:
    """Whether sbatch may take it for an option that is refused: a unique beginning is enough for it."""
    return len(name) > 1 and any(each.startswith(name) for each in _REFUSED)


def _given(options: Sequence[str], long: str, short: str) -> Iterator[str]:
    """Give the values that an option has."""
    for word in options:
        name, _, value = word.partition("=")
        if name == f"--{long}":
            yield value
        elif word[:2] == f"-{short}":
            yield word[2:]


def _read_start(answer: Answer) -> Job:
    if answer.exit_code == NOT_NOW and not answer.complaint:
        raise HostNotReached("Slurm does not answer")
    job = read_start(answer, _HANDLE)
    if job is not None:
        return job
    if _OUTAGE.search(answer.complaint):
        raise HostNotReached(answer.complaint)
    raise HostRefused(f"Slurm does not take the job: {answer.complaint or 'no reason given'}")


def _read_states(lines: Sequence[str]) -> dict[str, list[str]]:
    """Return Slurm's fields by a job's number."""
    rows = (line.removeprefix("job ").split("|", 4) for line in lines if line.startswith("job "))
    return {number: fields for number, *fields in rows}


def _seen(number: str, left: Left, states: Mapping[str, list[str]]) -> JobSeen:
    state, limit, nodes, reason = (states.get(number, []) + [""] * 4)[:4]
    job = f"Slurm job {number}"
    stage = _STAGE_OF.get(state, JobStage.NOT_KNOWN)
    if left.exit_code is not None and stage is not JobStage.WAITING:
        # The reason why Slurm ended it says more than the exit code that followed from that.
        return JobSeen(JobStage.OVER, f"{job} has ended", left, _ending(job, state, limit, nodes))
    if not state:
        ending = f"{job} is over: Slurm does not know it any more, and it has left no exit code"
        return JobSeen(JobStage.OVER, f"{job} is over", left, ending)
    said = f"job {number} {state}"
    if stage is JobStage.OVER:
        return JobSeen(stage, said, left, _ending(job, state, limit, nodes))
    why = reason if stage is JobStage.WAITING and reason != "None" else f"on {nodes}" if nodes else ""
    return JobSeen(stage, f"{said}: {why}" if why else said, left)


def _ending(job: str, state: str, limit: str, nodes: str) -> str:
    """Return how Slurm ended a job; empty: the job ended by itself."""
    if state in ("", "COMPLETED", "COMPLETING", "FAILED", "RUNNING"):
        return ""
    what = {"TIMEOUT": f" after {limit}", "CANCELLED": " by scancel", "NODE_FAIL": f" of {nodes}"}
    return f"{job} ended {state}{what.get(state, '')}"


LAUNCHER = SlurmLauncher()

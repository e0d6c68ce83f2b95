"""An executor as a process of the host that was reached, which outlives the session that started it.

Its handle: the id of its process, which leads a group of its own, when it began, and the boot and the name of
its host. The id alone may be another process's by now, and the name of a submit host may lead to another host
each time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from airflow_jobmon_provider.execution.command import (
    Answer,
    Command,
    HostNotReached,
    HostRefused,
    quote,
    script,
)
from airflow_jobmon_provider.execution.job import LEFT, Job, JobSpec, Left, read_left, read_start
from airflow_jobmon_provider.execution.launchers import JobSeen, JobStage, Options

_HANDLE = re.compile(r"\d+ \d+ [0-9a-f-]+ \S+")

START_TIMEOUT = 60  # seconds until it has said who it is: a login shell may have much to do

# Sets `found` to how a process fares, by the four words of its handle.
_FIND = r"""host=$(uname -n)
read -r boot </proc/sys/kernel/random/boot_id
find_process() {
  found=gone
  if [ "$4" != "$host" ]; then found="elsewhere $4"; return; fi
  if [ "$3" != "$boot" ]; then return; fi
  wanted=$2
  { read -r stat </proc/"$1"/stat; } 2>/dev/null || return
  set -- ${stat##*) }
  if [ "${20}" = "$wanted" ] && [ "$1" != Z ]; then found=alive; fi
}"""


_LOOK = r"""look() {
  left "$1"
  shift
  find_process "$@"
  echo "$found"
}"""


class ProcessLauncher:
    """See the module."""

    def check_options(self, options: Options) -> list[str]:
        """Refuse options: a process takes none."""
        if options:
            raise ValueError('launcher_options are the scheduler\'s: with launcher="process" there is none')
        return []

    def start(self, job: JobSpec, options: Sequence[str]) -> Command[Job]:
        """Return the command that starts a process, unless one has the run already."""
        start = script(
            job.install(),
            'if [ ! -e "$run"/claim ] && [ ! -s "$run"/handle ]; then',
            # Of no session, no terminal and no pipe that ends with this shell.
            '  nohup setsid bash -l "$run"/job.sh "$run" process </dev/null >>"$run"/output 2>&1 9>&- &',
            "fi",
            f'i=0; while [ ! -s "$run"/handle ] && [ "$i" -lt {START_TIMEOUT * 10} ]; do',
            "  sleep 0.1; i=$((i + 1)); done",
            '[ -s "$run"/handle ] || { tail -c 500 "$run"/output >&2; exit 1; }',
            'cat "$run"/handle',
        )
        return Command(start, _read_start, START_TIMEOUT + 30.0)

    def look(self, jobs: Sequence[Job]) -> Command[dict[Job, JobSeen]]:
        """Return the command that looks at processes: one is started for that, however many there are."""
        looks = [f"look {quote(job.folder)} {' '.join(map(quote, job.handle.split()))}" for job in jobs]

        def read(answer: Answer) -> dict[Job, JobSeen]:
            lines = answer.lines
            if len(lines) != 2 * len(jobs):
                raise HostNotReached(f"it did not tell of its processes: {answer.complaint or 'no reason'}")
            return {
                job: _seen(job.handle, read_left(left), found)
                for job, left, found in zip(jobs, lines[::2], lines[1::2], strict=True)
            }

        return Command(script(LEFT, _FIND, _LOOK, looks), read)

    def end(self, job: Job, *, kill: bool) -> Command[None]:
        """Return the command that signals the process group, if it is still the job's."""
        words = [quote(word) for word in job.handle.split()]
        end = script(
            _FIND,
            f"find_process {' '.join(words)}",
            f'if [ "$found" = alive ]; then kill -s {"KILL" if kill else "TERM"} -- -{words[0]}; fi',
            "true",
        )
        return Command(end, lambda answer: None)


def _read_start(answer: Answer) -> Job:
    job = read_start(answer, _HANDLE)
    if job is None:
        raise HostRefused(f"the executor did not begin: {answer.complaint or 'it has written nothing'}")
    return job


def _seen(handle: str, left: Left, found: str) -> JobSeen:
    process, _, _, host = handle.split()
    who = f"process {process} on {host}"
    if left.exit_code is not None:
        return JobSeen(JobStage.OVER, f"{who} has ended", left)
    if found == "alive":
        return JobSeen(JobStage.AT_WORK, f"{who} is at work", left)
    if found.startswith("elsewhere"):
        return JobSeen(JobStage.NOT_KNOWN, f"{who} cannot be seen from another host", left)
    ending = f"{who} was killed, or its host was restarted"
    return JobSeen(JobStage.OVER, f"{who} is gone", left, ending)


LAUNCHER = ProcessLauncher()

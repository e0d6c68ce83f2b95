"""The files that jobs have on a host: read what executors have written, keep what was logged, clean up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from airflow_jobmon_provider.execution.command import Answer, Command, HostNotReached, quote, script

MOST_AT_ONCE = 256 * 1024
"""Bytes of one job's output that are read at once."""

_ENOUGH = 4 * 1024 * 1024  # bytes of all outputs, after which the rest is for the next time

# The sizes come on standard input, those of files that are there; the list, which is in the same order, comes
# on descriptor 3.
_READ = f"""each() {{
number=-1
left={_ENOUGH}
while read -r size path; do
  file=
  until [ "$file" = "$path" ]; do
    read -r known file <&3 || break 2
    number=$((number + 1))
  done
  more=$((size - known))
  if [ "$more" -gt {MOST_AT_ONCE} ]; then more={MOST_AT_ONCE}; fi
  if [ "$more" -gt 0 ] && [ "$left" -gt 0 ]; then
    left=$((left - more))
    echo "output $number $more"
    tail -c "+$((known + 1))" -- "$file" | head -c "$more"
    echo
  fi
done
}}"""


def read_output(known: Mapping[str, int]) -> Command[dict[str, bytes]]:
    """Return the command that reads what jobs have written.

    However many jobs there are, one process finds the sizes of all files, or of as many as have room in a
    command line, and two more are started for each job that has written something. A file that is not there
    is left out: it may be removed at any moment.

    :param known: how many bytes were read before, by the jobs' folders.
    :returns: the next bytes of those that have more, :data:`MOST_AT_ONCE` at most.
    """
    folders = list(known)
    names = "".join(f"{folder}/output\n" for folder in folders)
    places = "".join(f"{place} {folder}/output\n" for folder, place in known.items())
    whole = script(
        _READ,
        "tr '\\n' '\\0' <<'END' | xargs -0 stat -L -c '%s %n' -- 2>/dev/null | each 3<<'END_3'",
        f"{names}END",
        f"{places}END_3",
        'echo "the end"',
    )

    def understand(answer: Answer) -> dict[str, bytes]:
        return _read(answer, folders)

    return Command(whole, understand)


def _read(answer: Answer, folders: Sequence[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    rest = answer.output
    while rest != b"the end\n":
        head, _, rest = rest.partition(b"\n")
        words = head.split()
        size = int(words[2]) if len(words) == 3 and words[0] == b"output" else -1
        if size < 0 or len(rest) <= size:
            raise HostNotReached("it did not send all that the executors have written")
        found[folders[int(words[1])]] = rest[:size]
        rest = rest[size + 1 :]
    return found


def keep_logged(logged: Mapping[str, int]) -> Command[None]:
    """Return the command that keeps how much of each job's output is in the task's log.

    :param logged: bytes, by the jobs' folders.
    """
    # A line more, the last of which counts: another reader must never find the file empty.
    lines = [f"echo {place} >>{quote(folder + '/logged')}" for folder, place in logged.items()]
    return Command(script(lines, "true"), lambda answer: None)


_LOGGED = """logged() {
  place=
  { while read -r line; do place=$line; done <"$1"/logged; } 2>/dev/null
  echo "${place:-0}"
}"""


def read_logged(folders: Sequence[str]) -> Command[dict[str, int]]:
    """Return the command that reads how much of the output of jobs is in their tasks' logs, by their folders.

    No process is started for that, however many there are.
    """

    def read(answer: Answer) -> dict[str, int]:
        if len(answer.lines) != len(folders):
            raise HostNotReached("it did not tell how much of the output was read before")
        places = (int(line) if line.isdigit() else 0 for line in answer.lines)
        return dict(zip(folders, places, strict=True))

    return Command(script(_LOGGED, [f"logged {quote(folder)}" for folder in folders]), read)


def remove(folder: str) -> Command[None]:
    """Return the command that removes a job's folder."""
    return Command(f"rm -rf -- {quote(folder)}", lambda answer: None)

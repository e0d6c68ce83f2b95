"""The files that jobs have on a host: read what executors have written, keep what was logged, clean up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from airflow_jobmon_provider.execution.command import Answer, Command, HostNotReached, quote, script

MOST_AT_ONCE = 256 * 1024
"""Bytes of one job's output that are read at once."""

_ENOUGH = 4 * 1024 * 1024  # bytes of all outputs, after which the rest is for the next time

# One process finds all sizes. A file that is not there counts as empty.
_SIZES = """sizes() {
  for each do [ -f "$each" ] || each=/dev/null; set -- "$@" "$each"; shift; done
  stat -L -c %s -- "$@"
}"""

_READ = f"""number=0
left={_ENOUGH}
while read -r size && read -r known file <&3; do
  more=$((size - known))
  if [ "$more" -gt {MOST_AT_ONCE} ]; then more={MOST_AT_ONCE}; fi
  if [ "$more" -gt 0 ] && [ "$left" -gt 0 ]; then
    left=$((left - more))
    echo "output $number $more"
    tail -c "+$((known + 1))" -- "$file" | head -c "$more"
    echo
  fi
  number=$((number + 1))
done"""


def read_output(known: Mapping[str, int]) -> Command[dict[str, bytes]]:
    """Return the command that reads what jobs have written.

    However many jobs there are, it starts one process, and two more for each job that has written something.

    :param known: how many bytes were read before, by the jobs' folders.
    :returns: the next bytes of those that have more, :data:`MOST_AT_ONCE` at most.
    """
    folders = list(known)
    places = "".join(f"{place} {folder}/output\n" for folder, place in known.items())
    files = " ".join(quote(f"{folder}/output") for folder in folders)
    # The sizes come on standard input, the list on descriptor 3.
    whole = script(
        _SIZES,
        "each() {",
        _READ,
        "}",
        f"sizes {files} | each 3<<'END'",
        f"{places}END",
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
    lines = [f"echo {place} >{quote(folder + '/logged')}" for folder, place in logged.items()]
    return Command(script(lines, "true"), lambda answer: None)


def read_logged(folder: str) -> Command[int]:
    """Return the command that reads how much of a job's output is in the task's log already."""

    def read(answer: Answer) -> int:
        text = answer.output.strip()
        return int(text) if text.isdigit() else 0

    return Command(f"cat {quote(folder + '/logged')} 2>/dev/null; true", read)


def remove(folder: str) -> Command[None]:
    """Return the command that removes a job's folder."""
    return Command(f"rm -rf -- {quote(folder)}", lambda answer: None)

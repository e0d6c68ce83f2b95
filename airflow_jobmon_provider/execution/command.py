"""What a host is to run and how to read what comes back, as ``Call`` is for HTTP. No I/O.

A host runs a script in ``sh``, which reads it from standard input: so nothing of it is seen in a list of
processes, it may be of any length, and no login shell has to understand it. The shell prints :data:`MARK`
first: what comes before is not the script's, such as the greeting of a login shell.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

SHELL = "exec sh -s"
"""What a host's login shell is given, whichever it is; the script comes on standard input."""

MARK = b"--- airflow-provider-jobmon ---\n"

MOST_OUTPUT = 8 << 20  # bytes that are read of an answer


class HostNotReached(Exception):
    """A command got no answer, or one that says "not now": an outage, which may be over at the next try."""


class HostRefused(Exception):
    """A host, or its scheduler, says no to a command; asking again would not help. One line for the user."""


@dataclass(frozen=True)
class Answer:
    """What came of a command.

    :param exit_code: the script's.
    :param output: what it wrote, after :data:`MARK`.
    :param errors: what it wrote to standard error.
    """

    exit_code: int
    output: bytes
    errors: bytes

    @property
    def lines(self) -> list[str]:
        """Its output, by lines."""
        return self.output.decode(errors="replace").splitlines()

    @property
    def complaint(self) -> str:
        """The last thing that it wrote to standard error, in one line; empty: nothing."""
        lines = [line.strip() for line in self.errors.decode(errors="replace").splitlines() if line.strip()]
        return lines[-1][:500] if lines else ""


@dataclass(frozen=True)
class Command(Generic[T]):
    """A script for a host.

    :param script: for a POSIX shell. Nothing in it reads standard input.
    :param read: says what the answer means; raises :class:`HostNotReached` or :class:`HostRefused`.
    :param timeout: seconds that it may take. Default 60.
    """

    script: str
    read: Callable[[Answer], T]
    timeout: float = 60.0

    @property
    def data(self) -> bytes:
        """What :data:`SHELL` gets on standard input."""
        # A function is read to its end before it runs, and so is all of the script.
        return (
            f"printf %s {quote(MARK.decode())}\nscript() {{\n{self.script}\n}}\nscript </dev/null\n".encode()
        )

    def understand(self, exit_code: int, written: bytes, errors: bytes) -> T:
        """Return what the answer means.

        :param written: the shell's output.
        :raises HostNotReached: the script did not begin, or its scheduler does not answer.
        :raises HostRefused: it was refused.
        """
        before, mark, output = written.partition(MARK)
        answer = Answer(exit_code, output, errors)
        if not mark:
            said = answer.complaint or before.decode(errors="replace").strip()[-500:] or "nothing"
            raise HostNotReached(f"no shell began there (exit code {exit_code}); it said: {said}")
        return self.read(answer)


def quote(word: str) -> str:
    """Return a word as a shell reads it.

    :raises ValueError: it has a character that no shell can pass on.
    """
    if "\0" in word:
        raise ValueError("a command line cannot hold the character NUL")
    return shlex.quote(word)


def path(folder: str, *below: str) -> str:
    """Return a path as a shell reads it; ``~/`` at its beginning is the user's home there.

    :param folder: an absolute path, or one that begins with ``~/``.
    :param below: names below it.
    """
    whole = "/".join((folder.rstrip("/") or "", *below))
    return f'"$HOME"{quote(whole[1:])}' if whole[:2] in ("~", "~/") else quote(whole)


def heredoc(text: str, target: str) -> str:
    """Return a line of a shell, and what follows it, that writes a text into a file.

    :param text: its lines; the last one ends with a newline.
    :param target: the file, as a shell reads it.
    """
    # No line begins like the end: it would be taken for it, or lose a byte (in dash, before one not ASCII).
    lines = "".join(f"|{line}\n" for line in text.removesuffix("\n").split("\n"))
    return f"sed 's/^.//' > {target} <<'END'\n{lines}END"


def script(*lines: str | Sequence[str]) -> str:
    """Return lines as one script."""
    return "\n".join(line if isinstance(line, str) else "\n".join(line) for line in lines)


def later(command: Command[None], seconds: float) -> Command[None]:
    """Return the command that has the host run another one after a while, whatever becomes of us.

    :param seconds: the while.
    """
    delayed = quote(f"sleep {seconds:.0f}\n{command.script}")
    line = f"nohup setsid sh -c {delayed} </dev/null >/dev/null 2>&1 &"
    return Command(line, lambda answer: None, command.timeout)

"""Starts what people start in a terminal, and looks at what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from dev.jobmon_sandbox import wait_until

PROJECT = Path(__file__).resolve().parents[1]


def processes_that_hold(*texts: str) -> list[int]:
    """Return the processes whose command line and environment hold all of the texts."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                content = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if all(text.encode() in content for text in texts):
                found.append(int(entry.name))
    return found


class Foreground:
    """A module of ``dev`` that runs as from a terminal.

    :param temporary: the folder for its temporary files.
    """

    def __init__(self, process: subprocess.Popen[bytes], temporary: Path, output: Path) -> None:
        self.process = process
        self.temporary = temporary
        self._output = output

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self._output.read_text()

    def wait_for(self, condition: Callable[[], object], timeout: float, what: str) -> None:
        """Wait until a condition holds, for as long as the process runs; see ``wait_until``."""
        wait_until(lambda: condition() or self.process.poll() is not None, timeout, what)
        assert condition(), self.output

    def wait_for_output(self, text: str, timeout: float) -> None:
        self.wait_for(lambda: text in self.output, timeout, repr(text))

    def end(self, number: signal.Signals) -> int:
        """Send a signal, and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(120)

    def assert_that_nothing_is_left(self) -> None:
        assert processes_that_hold(str(self.temporary)) == []
        assert list(self.temporary.iterdir()) == []


def _as_in_a_terminal() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):  # ignored, if the tests run in the background
        signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def started(output: Path, module: str, *arguments: str, **environment: str) -> Iterator[Foreground]:
    """Start a module of ``dev`` in the foreground.

    :param output: file for what it writes.
    :param environment: added to the environment.
    """
    temporary = Path(tempfile.mkdtemp(prefix="t-"))  # pytest's are too long for the names of sockets
    env = {**os.environ, **environment, "TMPDIR": str(temporary)}
    command = [sys.executable, "-m", module, *arguments]
    try:
        with (
            output.open("wb") as file,
            subprocess.Popen(
                command, cwd=PROJECT, env=env, stdout=file, stderr=file, preexec_fn=_as_in_a_terminal
            ) as process,
        ):
            try:
                yield Foreground(process, temporary, output)
            finally:
                process.kill()
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

"""Starts processes that cannot outlive this one, however it ends.

Each runs under a small launcher (this module, run as a script). Linux only: see `_launch`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

BUSY = 3
"""How many times as long as on a quiet machine a thing may take on a busy one."""

GRACE = 3.0  # seconds that a process has to end by itself when it is stopped


class Child:
    """A process that ends, with everything it has started, when it is stopped or when this process ends.

    :param command: program and arguments.
    :param env: its environment.
    :param cwd: the folder it runs in.
    :param log: file that its output is appended to. Default: it writes where this process does.
    :raises OSError: it does not start; the message holds the end of its log.
    """

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path | None = None
    ) -> None:
        self.log = log
        with log.open("a") if log else os.fdopen(os.dup(1), "w") as output:
            self._launcher = subprocess.Popen(
                [sys.executable, str(Path(__file__).resolve()), str(output.fileno()), *command],
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output if log else None,
                pass_fds=[output.fileno()],
                text=True,
                start_new_session=True,
            )
        assert self._launcher.stdout is not None
        first = self._launcher.stdout.readline()
        if not first:
            raise OSError(f"{command[0]} does not start:\n{self.tail()}")
        self.pid = int(first)
        """Id of the process itself, not of its launcher."""

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._launcher.poll() is None

    @property
    def exit_code(self) -> int | None:
        """The process's exit code; None while it runs."""
        return self._launcher.poll()

    def tail(self, lines: int = 25) -> str:
        """Return the last lines of its log; "" if it has none."""
        if self.log is None:
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        """Send a signal to the process. When it ends, everything it has started is killed.

        SIGKILL waits for that; SIGSTOP leaves what it has started running.
        """
        os.kill(self.pid, signal_number)
        if signal_number == signal.SIGKILL:
            self.wait()

    def wait(self, timeout: float = GRACE + 10) -> int:
        """Wait until it has ended and return its exit code.

        :raises subprocess.TimeoutExpired: it has not.
        """
        return self._launcher.wait(timeout)

    def hang_up(self) -> None:
        """Tell it to end, by the same end-of-file that the death of this process would give it."""
        for pipe in (self._launcher.stdin, self._launcher.stdout):
            assert pipe is not None
            pipe.close()

    def stop(self) -> None:
        """End it, and wait until it and all it has started are gone."""
        self.hang_up()
        self.wait()


def free_ports(count: int) -> list[int]:
    """Return loopback ports that no process listens on just now.

    They are below those that the system hands out by itself: one of these might be another process's by the
    time that ours binds it.
    """
    chosen: list[int] = []
    while len(chosen) < count:
        port = random.SystemRandom().randrange(10_000, _first_port_of_the_system())
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in chosen:
                chosen.append(port)
    return chosen


def _first_port_of_the_system() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        return 32_768


# The launcher's side


def _launch(output: int, command: list[str]) -> int:
    """Run a command; end it at end-of-file on stdin, and kill all that it leaves behind.

    Its output goes to a file descriptor.

    What is launched starts processes in sessions of their own, so killing a process group is not enough: the
    launcher is a "subreaper", that is, orphans among its descendants become its children, and it kills until
    it has none.
    """
    set_child_subreaper = 36
    if ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0):
        raise OSError("this system has no subreaper")
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output)
    print(child.pid, flush=True)

    def end() -> None:
        sys.stdin.read()
        for number in (signal.SIGCONT, signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, number)
            if number == signal.SIGTERM:
                time.sleep(GRACE)

    threading.Thread(target=end, daemon=True).start()
    pid, status = os.wait()
    while pid != child.pid:  # an orphan that ended by itself
        pid, status = os.wait()
    with contextlib.suppress(ChildProcessError):
        while True:
            for pid in _children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.02)
    return abs(os.waitstatus_to_exitcode(status))


def _children() -> list[int]:
    lists = Path("/proc/self/task").glob("*/children")
    return [int(pid) for each in lists for pid in each.read_text().split()]


if __name__ == "__main__":
    os._exit(_launch(int(sys.argv[1]), sys.argv[2:]))

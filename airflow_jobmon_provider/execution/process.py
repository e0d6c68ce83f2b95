"""Runs ``executor.py`` in the Python that has Jobmon's client, as a child of an Airflow worker.

The executor lives in a session of its own and writes into a file without a name, so that it survives the
worker's death once it has taken the run: the next try of the task goes on watching it. Before that, it ends
with the worker, by a socket that the worker holds open: the next try starts another executor then. By the
same socket it says when it takes the run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from airflow_jobmon_provider.client.conversations import Log
from airflow_jobmon_provider.client.exceptions import ConfigError
from airflow_jobmon_provider.client.redaction import Secrets
from airflow_jobmon_provider.execution.executor import TAKEN
from airflow_jobmon_provider.execution.output_file import OutputFile
from airflow_jobmon_provider.execution.said import Said
from airflow_jobmon_provider.execution.watching import ExecutorEnded

EXECUTOR = Path(__file__).with_name("executor.py")

_LOOK_INTERVAL = 0.2  # seconds

_GRACE = 10.0  # seconds that the executor has to stop its distributor


class Execution:
    """An executor at work on a run, see :class:`~airflow_jobmon_provider.execution.watching.Executor`.

    :param command: how to start it; :func:`executor_command` says.
    :param environment: see :func:`executor_environment`.
    :param log: gets each line that it writes, as it comes, at the line's own level; see
        :mod:`airflow_jobmon_provider.execution.levels`.
    :param secrets: what must not be shown of these lines: the connection's.
    :raises ConfigError: it cannot be started.
    """

    def __init__(
        self, command: list[str], environment: Mapping[str, str], log: Log, secrets: Secrets
    ) -> None:
        self._output = OutputFile()
        self._said = Said(log, secrets)
        self._stopping = threading.RLock()  # Airflow may want it stopped while the task does it already
        self._ended: int | None = None
        self._taken = False
        self._lifeline, executors_end = socket.socketpair()
        self._lifeline.setblocking(False)
        try:
            self._process = subprocess.Popen(  # noqa: S603  # a list, never a shell; what it starts is configured
                [*command, "--lifeline", str(executors_end.fileno())],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=self._output.fileno(),
                stderr=subprocess.STDOUT,
                pass_fds=[executors_end.fileno()],
                start_new_session=True,
            )
        except OSError as error:
            self._lifeline.close()
            raise ConfigError(f"{command[0]} cannot be started: {error.strerror}") from None
        finally:
            executors_end.close()

    is_queued = False  # it began at once

    @property
    def exit_code(self) -> int | None:
        """Its exit code, see ``executor.Exit``; negative: the signal that killed it; None: it is at work."""
        if self._ended is None:
            try:
                # Only looked at: as long as the process is not reaped, no other can get its id, and so the id
                # of its process group.
                seen = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:  # something else in this process has reaped it
                self._ended = self._process.poll()
            else:
                if seen is not None:
                    self._ended = seen.si_status if seen.si_code == os.CLD_EXITED else -seen.si_status
        return self._ended

    @property
    def has_taken(self) -> bool:
        """Whether it has asked the server for the run: one that is past LINKING may be its own."""
        if not self._taken and self._lifeline.fileno() >= 0:
            with contextlib.suppress(OSError):  # BlockingIOError: it has said nothing
                self._taken = self._lifeline.recv(1) == TAKEN
        return self._taken

    @property
    def problem(self) -> str | None:
        """What kept it from executing the run to its end, in one line; None: nothing, or it is at work."""
        return self._said.problem(self.exit_code)

    def wait(self, seconds: float) -> None:
        """Pass on what it writes for so many seconds.

        :raises ExecutorEnded: it has ended.
        """
        deadline = time.monotonic() + seconds
        while True:
            ended = self.exit_code is not None
            self._pass_on(deadline, last=ended)
            if ended:
                raise ExecutorEnded
            rest = deadline - time.monotonic()
            if rest <= 0:
                return
            time.sleep(min(rest, _LOOK_INTERVAL))

    def stop(self, patience: float = 0.0) -> None:
        """End it and everything it has started. A second call does nothing.

        :param patience: seconds that it has to end by itself before it is told to.
        """
        with self._stopping:
            if self._process.returncode is None:
                self._stop(patience)
            self.let_go()

    def _stop(self, patience: float) -> None:
        try:
            self.wait(patience)
            os.kill(self._process.pid, signal.SIGTERM)  # Popen's own way might reap it
            self.wait(_GRACE)
        except ExecutorEnded:
            pass
        # What it has started goes with it: a distributor would go on starting tasks for nobody. The group is
        # killed before the executor is reaped, while its id cannot be another's.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with contextlib.suppress(ExecutorEnded):
                self.wait(_GRACE)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE)

    def let_go(self) -> None:
        """Close what connects it to this process. One that has taken its run goes on."""
        if self._lifeline.fileno() >= 0:
            _ = self.has_taken  # it may be asked for later
            self._lifeline.close()
            self._output.close()

    def _pass_on(self, deadline: float, *, last: bool) -> None:
        """Log what has been written until now, or as much of it as there is time for.

        :param deadline: when to stop; what is left is for the next time.
        :param last: nothing more will be written: all of it, whatever the time.
        """
        if self._output.is_closed:
            return
        size = self._output.size()
        while self._output.read_up_to < size:
            self._said.take(self._output.read())
            if self._output.is_closed or (not last and time.monotonic() >= deadline):
                return
        self._said.take(b"", last=last)


def executor_command(python: str, workflow_id: int, workflow_run_id: int, cluster_name: str) -> list[str]:
    """Return the command that executes a run: no secret in it, and no shell that reads it."""
    options = {"workflow-id": workflow_id, "workflow-run-id": workflow_run_id, "cluster-name": cluster_name}
    return [python, str(EXECUTOR), *(f"--{name}={value}" for name, value in options.items())]

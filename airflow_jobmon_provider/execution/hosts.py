"""Hosts that run commands, as a worker uses them: this machine, and one that is reached over SSH."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from pathlib import Path
from typing import Any, Protocol, TypeVar

from airflow_jobmon_provider.execution.command import MOST_OUTPUT, SHELL, Command, HostNotReached
from airflow_jobmon_provider.execution.environment import inherited_environment

T = TypeVar("T")


class Host(Protocol):
    """Runs commands, each with no more than its time."""

    name: str
    """What users call it."""

    def run(self, command: Command[T]) -> T:
        """Run a command, and return what its answer means.

        :raises HostNotReached: there was no answer, or it says "not now".
        :raises HostRefused: the answer says no.
        """

    def close(self) -> None:
        """Close what is open to it. It may be used again."""


class ThisHost:
    """The machine of this process."""

    name = "this machine"

    def run(self, command: Command[T]) -> T:
        """Run a command in a shell that sees nothing of Airflow's."""
        try:
            done = subprocess.run(
                ["sh", "-s"],  # noqa: S607  # the user's own
                input=command.data,
                capture_output=True,
                timeout=command.timeout,
                env=inherited_environment(os.environ),
                check=False,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise HostNotReached(f"no answer within {command.timeout:g} s") from None
        except OSError as error:
            raise HostNotReached(f"no shell can be started: {error.strerror}") from None
        return command.understand(done.returncode, done.stdout, done.stderr)

    def close(self) -> None:
        """Do nothing: there is no connection."""


def this_machine() -> str:
    """Return what tells this machine, since it was started, from any other."""
    return f"{os.uname().nodename} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"


class SshHost:
    """A host that is reached as an Airflow connection of type SSH says; one SSH connection is kept.

    :param ssh_conn_id: id of that connection.
    """

    def __init__(self, ssh_conn_id: str) -> None:
        self.name = ssh_conn_id
        self._ssh_conn_id = ssh_conn_id
        self._client: Any = None

    def run(self, command: Command[T]) -> T:
        """Run a command there; a connection that has been lost is made again, once."""
        kept = self._client is not None
        try:
            return self._run(command)
        except HostNotReached:
            if not kept or self._is_alive():
                raise
        return self._run(command)

    def close(self) -> None:
        """Close the connection."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):
                client.close()

    def _is_alive(self) -> bool:
        return self._client is not None

    def _run(self, command: Command[T]) -> T:
        try:
            if self._client is None:
                self._client = self._connect()
            code, output, errors = self._exchange(command)
        except ImportError:
            raise
        except Exception as error:  # of paramiko, of the system, of Airflow's connections
            self.close()
            raise HostNotReached(_line(error)) from None
        return command.understand(code, output, errors)

    def _connect(self) -> Any:
        from airflow.providers.ssh.hooks.ssh import SSHHook

        # It would try again by itself, and sleep meanwhile: whoever calls this knows better how long.
        hook = SSHHook(ssh_conn_id=self._ssh_conn_id)
        hook.conn_retry_attempts = 1
        return hook.get_conn()

    def _exchange(self, command: Command[Any]) -> tuple[int, bytes, bytes]:
        stdin, stdout, stderr = self._client.exec_command(SHELL, timeout=command.timeout)
        channel = stdout.channel
        with contextlib.closing(channel):
            # Meanwhile its output is read: a shell that cannot write would not read on.
            sender = threading.Thread(target=_send, args=(stdin, command.data), daemon=True)
            sender.start()
            output, errors = stdout.read(MOST_OUTPUT), stderr.read(MOST_OUTPUT)
            if not channel.status_event.wait(command.timeout) or channel.exit_status < 0:
                raise EOFError("the SSH connection was closed amid a command")
            return channel.exit_status, output, errors


def _send(stdin: Any, data: bytes) -> None:
    with contextlib.suppress(OSError):  # it has ended before it has read all
        stdin.write(data)
        stdin.flush()
        stdin.channel.shutdown_write()


def _line(error: BaseException) -> str:
    """Return an error of a library as one line."""
    return (" ".join(str(error).split()) or type(error).__name__)[:500]

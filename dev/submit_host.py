"""A cluster's submit host on this machine: an SSH server on loopback, whose sessions know a Jobmon.

The server is asyncssh's, which comes with Airflow's SSH provider, so that nothing has to be installed. As
with sshd, a session is a real shell with real processes. ``python -m dev.submit_host PORT FOLDER`` serves in
the foreground.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import asyncssh

from dev.jobmon_sandbox import wait_until
from dev.launcher import Child, free_ports

PROJECT = Path(__file__).resolve().parents[1]

Server = Callable[[int, Path, Mapping[str, str]], Sequence[str]]
"""Takes a port, the folder with the keys (``host``, ``user.pub``) and the settings for sessions."""


def asyncssh_server(port: int, folder: Path, settings: Mapping[str, str]) -> Sequence[str]:
    """Return the command that starts this module's server. Its sessions inherit its own environment."""
    return [sys.executable, "-m", "dev.submit_host", str(port), str(folder)]


class SubmitHost:
    """An SSH server that lets in the users of its key; a context manager.

    Everything that was started over there ends with it.

    :param environment: as :meth:`JobmonSandbox.environment` returns it; a session has its settings of Jobmon
        and Slurm. Its home is a folder of this host's: nothing is written into the user's own.
    :param server: how to start the server. Default: asyncssh's.
    """

    def __init__(self, environment: Mapping[str, str], *, server: Server = asyncssh_server) -> None:
        self.connection: dict[str, object] = {}
        """The definition of an Airflow connection to it, while it runs."""
        kept = ("JOBMON__", "SLURM_")
        self._settings = {name: environment[name] for name in environment if name.startswith(kept)}
        self._server = server
        self._folder = Path()
        self._port = 0
        self._child: Child | None = None

    def __enter__(self) -> SubmitHost:
        self._folder = Path(tempfile.mkdtemp(prefix="submit-host-"))
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            self._child.stop()
            self._child = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def kill(self) -> None:
        """Kill the server and all its sessions, as a crash would."""
        assert self._child is not None
        self._child.kill()

    def restart(self) -> None:
        """Start a killed server again, where it was, and wait until it listens."""
        port = self._port
        settings = {**self._settings, "HOME": str(self._folder / "home")}
        child = self._child = Child(
            self._server(port, self._folder, settings),
            env={"PATH": os.environ.get("PATH", os.defpath), **settings},
            cwd=PROJECT,
            log=self._folder / "log",
        )

        def listening() -> bool:
            assert child.alive, child.tail()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            return False

        wait_until(listening, 20, "the SSH server to listen")

    def _start(self) -> None:
        for name in ("host", "user"):
            key = asyncssh.generate_private_key("ssh-ed25519")
            (self._folder / name).touch(mode=0o600)
            key.write_private_key(self._folder / name)
            key.write_public_key(self._folder / f"{name}.pub")
        (self._folder / "home").mkdir()
        (self._port,) = free_ports(1)
        self.restart()
        self.connection = self._connection()

    def _connection(self) -> dict[str, object]:
        host_key = " ".join((self._folder / "host.pub").read_text().split()[:2])
        return {
            "conn_type": "ssh",
            "host": "127.0.0.1",
            "port": self._port,
            "login": getpass.getuser(),
            "extra": {
                "key_file": str(self._folder / "user"),
                "host_key": host_key,
                "no_host_key_check": False,
            },
        }


# The server's side


async def run(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Run a session's command in a shell, and tell the client its output and exit code."""
    shell = await asyncio.create_subprocess_exec(
        *("/bin/bash", "-c", process.command or "exit"),
        cwd=Path.home(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    await process.redirect(stdin=shell.stdin, stdout=shell.stdout, stderr=shell.stderr, send_eof=False)
    await process.stdout.drain()
    await process.stderr.drain()
    process.exit(await shell.wait())
    await process.wait_closed()  # else what asyncssh waits for is thrown away, with a warning for each


async def serve(port: int, folder: Path) -> None:
    """Serve until the process ends."""
    server = await asyncssh.create_server(
        asyncssh.SSHServer,
        "127.0.0.1",
        port,
        server_host_keys=[folder / "host"],
        authorized_client_keys=str(folder / "user.pub"),
        process_factory=run,
        encoding=None,
        allow_pty=False,
    )
    await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2])))

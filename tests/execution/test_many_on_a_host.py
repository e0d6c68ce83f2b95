"""1,000 deferred runs on one submit host: few SSH connections, looks that serve all, and each line once.

The triggers, the SSH server and its sessions are real. The jobs are what a launcher leaves behind, files and
a handle, but all of one process that sleeps: 1,000 executors would be too much for two cores. Jobmon's server
is the benchmark's stub: a real one would take longer for their first heartbeats than a test may.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import os
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from airflow_jobmon_provider.execution.async_hosts import SESSIONS
from airflow_jobmon_provider.execution.deferred import kept
from airflow_jobmon_provider.execution.job import Job
from airflow_jobmon_provider.execution.placement import Placement
from airflow_jobmon_provider.triggers.jobmon import WorkflowRunHeartbeatTrigger
from benchmarks.stub import running
from dev import submit_host
from dev.jobmon_sandbox import wait_until

RUNS = 1000
MOST_COMMANDS = 300  # a few for each look, however long a busy machine takes; one for each run would be 1,000

pytestmark = pytest.mark.timeout(300)


class Host:
    """A submit host in this event loop, which counts."""

    def __init__(self) -> None:
        self.connections = self.handshakes = self.most_handshakes = 0
        self.commands = self.at_work = self.most_at_work = 0

    @contextlib.asynccontextmanager
    async def serving(self, folder: Path) -> AsyncIterator[dict[str, Any]]:
        """Serve; what comes defines a connection to it."""
        host_key, user_key = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
        user_key.write_private_key(folder / "user")
        user_key.write_public_key(folder / "user.pub")
        server = await asyncssh.create_server(
            lambda: Greeter(self),
            "127.0.0.1",
            0,
            server_host_keys=[host_key],
            authorized_client_keys=str(folder / "user.pub"),
            process_factory=self.run,
            encoding=None,
        )
        extra = {
            "key_file": str(folder / "user"),
            "host_key": " ".join(host_key.export_public_key().decode().split()[:2]),
            "no_host_key_check": False,
        }
        async with server:
            where = {"host": "127.0.0.1", "port": server.get_port(), "login": getpass.getuser()}
            yield {"conn_type": "ssh", **where, "extra": extra}
            await until(lambda: self.at_work == 0, "the last shells to end")

    async def run(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        self.commands += 1
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            await submit_host.run(process)
        finally:
            self.at_work -= 1


class Greeter(asyncssh.SSHServer):
    """Sees who connects."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self.host.connections += 1
        self.host.handshakes += 1
        self.host.most_handshakes = max(self.host.most_handshakes, self.host.handshakes)

    def auth_completed(self) -> None:
        self.host.handshakes -= 1


class TaskLog:
    """The log of a deferred task."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, level: int, line: str, /, *args: object) -> None:
        self.lines.append(line % args)

    @property
    def written(self) -> list[str]:
        """What the executor has written."""
        return [line for line in self.lines if line.startswith("line ")]


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[list[Job]]:
    process = subprocess.Popen(["/bin/sleep", "600"])
    began = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    made = [
        Job(str(tmp_path / f"runs/{run}"), f"{process.pid} {began} {boot} {os.uname().nodename}")
        for run in range(RUNS)
    ]
    for job in made:
        Path(job.folder).mkdir(parents=True)
    yield made
    process.kill()
    process.wait()


def write(jobs: list[Job], line: str) -> None:
    for job in jobs:
        with Path(job.folder, "output").open("a") as output:
            output.write(f"{line}\n")


def trigger_of(number: int, job: Job, log: TaskLog) -> WorkflowRunHeartbeatTrigger:
    executor = kept(Placement("cluster", "submit_host"), job)
    yesterday = time.time() - 86_400
    trigger = WorkflowRunHeartbeatTrigger(number, workflow_id=number, executor=executor, created_at=yesterday)
    vars(trigger)["logger"] = lambda: log
    return trigger


async def until(condition: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(wait_until, condition, 40, what)


def logged(jobs: list[Job]) -> list[int]:
    """Return how many bytes of each are known to be in its task's log, on the host."""
    files = [Path(job.folder, "logged") for job in jobs]
    return [int(file.read_text().split()[-1]) if file.exists() else 0 for file in files]


async def test_a_thousand_runs_share_a_connection_and_each_look(
    tmp_path: Path, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host()
    logs = [TaskLog() for _ in jobs]
    some, whole = jobs[::10], ["line 1", "line 2"]
    async with host.serving(tmp_path) as connection:
        with running() as server:
            jobmon = {"conn_type": "jobmon", "host": server.url, "extra": {"route_prefix": "/api/v3"}}
            monkeypatch.setenv("AIRFLOW_CONN_JOBMON_DEFAULT", json.dumps(jobmon))
            monkeypatch.setenv("AIRFLOW_CONN_SUBMIT_HOST", json.dumps(connection))
            write(jobs, "line 1")
            triggers = [trigger_of(*each) for each in zip(range(1, RUNS + 1), jobs, logs, strict=True)]
            following = [asyncio.ensure_future(anext(trigger.run())) for trigger in triggers]
            await until(lambda: all(log.written for log in logs), "the first line of each run")
            write(some, "line 2")
            await until(lambda: all(log.written == whole for log in logs[::10]), "the second lines")
            kept_of_each = [14 if job in some else 7 for job in jobs]
            await until(lambda: logged(jobs) == kept_of_each, "that to be kept")
            assert not any(each.done() for each in following)
            for each in following:
                each.cancel()
            await asyncio.gather(*following, return_exceptions=True)
    assert [log.written for log in logs] == [whole if job in some else ["line 1"] for job in jobs]
    assert not [line for log in logs for line in log.lines if "does not answer" in line]
    assert 1 <= host.connections <= 4
    assert host.most_handshakes == 1  # sshd's MaxStartups is ten
    assert host.most_at_work <= SESSIONS
    assert 4 <= host.commands <= MOST_COMMANDS

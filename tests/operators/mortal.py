"""A worker's process that executes one try of a task until it is deferred, and is killed at one of its steps.

A step is a moment of an exchange with another process: a request to Jobmon, a message to Airflow, the SSH
connection, a command for the host. Between two of them nothing happens that could be noticed, so a
process that is killed at each of them is killed everywhere. It is killed by SIGKILL, a real process each
time: no handler, no ``finally`` and no other thread of it has a last word.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import re
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import requests
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_jobmon_provider.execution import hosts
from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator
from tests.airflow_task import Tries, execute

# One process that has imported all this, of which each worker is a copy: a start takes milliseconds.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([__name__])

DEFERRED = "deferred"
"""The last step: what Airflow is to store is lost with the process."""


@dataclass(frozen=True)
class Life:
    """One try of a task on a worker.

    :param options: the operator's.
    :param folder: where it leaves what a retry gets from Airflow, its steps, and what it has written.
    :param dies_at: the step; one that does not come about is the last one. None: it is not killed.
    """

    options: dict[str, Any]
    folder: Path
    dies_at: str | None = None

    def run(self) -> int:
        """Live it, and return the exit code."""
        self.folder.mkdir(parents=True)
        process = _FORKS.Process(target=_live, args=(self, dict(os.environ)))
        process.start()
        process.join(120)
        if process.exitcode is None:
            process.kill()
            process.join()
        assert process.exitcode is not None
        return process.exitcode

    @property
    def steps(self) -> list[str]:
        """The steps that it took, as far as it came."""
        return (self.folder / "steps").read_text().splitlines()

    @property
    def said(self) -> str:
        """What it has written."""
        return (self.folder / "said").read_text(errors="replace")

    def tries(self) -> Tries:
        """Return the task's tries, of which it was the first."""
        tries = FiledTries(self.folder / "kept")
        tries.number = 1
        return tries


class FiledTries(Tries):
    """Keeps in a file what Airflow keeps in its database."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        if file.exists():
            self.kept = json.loads(file.read_text())

    def set(self, key: str, value: Any) -> None:
        super().set(key, value)
        new = self.file.with_name("new")
        new.write_text(json.dumps(self.kept))
        new.replace(self.file)


class Steps:
    """Writes down each step of this process, and kills it at one."""

    def __init__(self, file: Path, dies_at: str | None) -> None:
        self._file = file.open("a", buffering=1)
        self._dies_at = dies_at
        self._seen: Counter[str] = Counter()
        self._turn = threading.Lock()
        self._commands = 0

    def take(self, moment: str, what: str) -> None:
        with self._turn:
            name = f"{moment} {what}".strip()
            self._seen[name] += 1
            step = name if self._seen[name] == 1 else f"{name} ({self._seen[name]})"
            self._file.write(f"{step}\n")
            if step == self._dies_at or (self._dies_at is not None and step == DEFERRED):
                os.kill(os.getpid(), signal.SIGKILL)

    def around(self, act: Any, name: Callable[..., str]) -> Any:
        """Return a function that takes a step before and after another one."""

        @functools.wraps(act)
        def acting(*args: Any, **kwargs: Any) -> Any:
            what = name(*args, **kwargs)
            self.take("before", what)
            result = act(*args, **kwargs)
            self.take("after", what)
            return result

        return acting

    def command(self, *_: object, **__: object) -> str:
        self._commands += 1
        return f"command {self._commands}"

    def sent(self) -> None:
        """Take the step when a host has a command whole, and is about to execute it."""
        self.take("amid", f"command {self._commands}")

    def patch(self, tries: Tries) -> None:
        """Have the steps of this process counted. Nothing is undone: it is about to end."""
        send = requests.Session.send
        requests.Session.send = self.around(  # type: ignore[method-assign]
            send, lambda session, request, **_: f"{request.method} {_route(request.url)}"
        )
        tries.set = self.around(tries.set, lambda *_: "Airflow's memory")  # type: ignore[method-assign]
        ssh: Any = hosts.SshHost
        ssh._connect = self.around(ssh._connect, lambda *_: "SSH")
        ssh._exchange = self.around(ssh._exchange, self.command)
        to_channel = hosts._send

        def send_to_channel(stdin: Any, data: bytes) -> None:
            to_channel(stdin, data)
            self.sent()

        hosts._send = send_to_channel
        fake: Any = SimpleNamespace(TimeoutExpired=subprocess.TimeoutExpired)
        fake.run = self.around(self._run_here, self.command)
        vars(hosts)["subprocess"] = fake

    def _run_here(self, command: list[str], *, input: bytes, timeout: float, env: Any, **_: Any) -> Any:
        """Take the place of ``subprocess.run``."""
        pipe = subprocess.PIPE
        shell = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, env=env, start_new_session=True
        )
        assert shell.stdin is not None
        shell.stdin.write(input)
        shell.stdin.close()
        shell.stdin = None
        self.sent()
        output, errors = shell.communicate(timeout=timeout)
        return subprocess.CompletedProcess(command, shell.returncode, output, errors)


def _route(url: str) -> str:
    """Return the path of an address, the same for each workflow and run."""
    return re.sub(r"/\d+", "/N", urlsplit(url).path)


def _live(life: Life, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    said = os.open(life.folder / "said", os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1)
    os.dup2(said, 2)
    steps = Steps(life.folder / "steps", life.dies_at)
    tries = FiledTries(life.folder / "kept")
    context = tries.next()
    ti = context["ti"]
    ti.xcom_push = steps.around(ti.xcom_push, lambda key, value: f"XCom {key}")
    steps.patch(tries)
    try:
        execute(CreateWorkflowRunOperator(task_id="run", **life.options), context)
    except TaskDeferred:
        steps.take(DEFERRED, "")

"""Runs ``executor.py`` in the Python that has Jobmon's client, as a child of an Airflow worker.

The executor lives in a session of its own and writes into a file without a name, so that it survives the
worker's death once it has taken the run: the next try of the task goes on watching it. Before that, it ends
with the worker, by a socket that the worker holds open: the next try starts another executor then. By the
same socket it says when it takes the run.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import logging
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from airflow_jobmon_provider.client.conversations import Log
from airflow_jobmon_provider.client.exceptions import ConfigError
from airflow_jobmon_provider.client.heartbeat import Heartbeat
from airflow_jobmon_provider.client.settings import Settings
from airflow_jobmon_provider.executor import TAKEN, Exit

EXECUTOR = Path(__file__).with_name("executor.py")

_LOOK_INTERVAL = 0.2  # seconds
_GRACE = 10.0  # seconds that the executor has to stop its distributor
LONGEST_LINE = 4000
KEEP = "JOBMON_EXECUTOR_KEEP"
"""Names of variables, with commas between them, that executors get although they look like secrets."""

# What belongs to Airflow's own process: its settings, and its Python's modules, which are not Jobmon's.
_AIRFLOWS = r"_*AIRFLOW.*|PYTHONHOME|PYTHONPATH|VIRTUAL_ENV|__PYVENV_LAUNCHER__"
_CLOUDS = r"(AWS|AZURE|GOOGLE|GCP|GCLOUD|CLOUDSDK|VAULT)_.*"
_JOBMON_SERVERS = r"JOBMON__(DB|SESSION|OIDC)__.*"
_SECRETS = (
    r".*(PASSWORD|PASSWD|PASSPHRASE|SECRET|CREDENTIAL).*"
    r"|.*TOKENS?(_.*)?|(.*_)?(API|ACCESS|PRIVATE|FERNET)?KEYS?(_.*)?|.*_(PWD|PASS|DSN)"
)
_NOT_INHERITED = re.compile(f"{_AIRFLOWS}|{_CLOUDS}|{_JOBMON_SERVERS}|{_SECRETS}", re.IGNORECASE)
_HAS_SECRET = re.compile(
    r"[a-z][a-z0-9+.-]*://[^/?#\s:@]*:\S+@"  # scheme://user:password@host
    r"|https?://[^/?#\s@]+@"  # https://token@host
    r"|(^|[;&?\s])(password|passwd|pwd)=\S",  # Driver=…;UID=…;PWD=…
    re.IGNORECASE,
)
_PROXIES = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "ALL_PROXY", "NO_PROXY"})


class ExecutorEnded(Exception):
    """The executor's process has ended; raised by :meth:`Execution.wait`."""


def find_python(configured: str | None) -> str:
    """Return the Python that has Jobmon's client.

    :param configured: its path, or a name to be found on PATH. None: the interpreter of the ``jobmon``
        command on PATH, else this process's own if it has the client.
    :raises ConfigError: there is none.
    """
    if configured:
        found = shutil.which(os.path.expanduser(configured))
        if found is None:
            raise ConfigError(f"jobmon_python: {configured!r} is no executable file on this worker")
        return found
    command = shutil.which("jobmon")
    if command is not None and (python := _interpreter(Path(command))):
        return python
    with contextlib.suppress(ImportError):
        if importlib.util.find_spec("jobmon.client") is not None:
            return sys.executable
    raise ConfigError(
        "no Jobmon client on this worker: no command 'jobmon' on PATH, and this Python has none either. Give"
        " jobmon_python, the path of the Python that has it, to the operator or in the connection's extra"
    )


def _interpreter(command: Path) -> str | None:
    """Return the Python of a command that pip or uv has installed: it is in the same folder."""
    for name in ("python", "python3"):
        python = command.resolve().with_name(name)
        if os.access(python, os.X_OK):
            return str(python)
    return None


def inherited_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what an executor, and through it every task, may see of the worker's environment.

    Left out are Airflow's own variables, those of cloud providers, Vault and Jobmon's server, and what looks
    like a secret: by its name, or as an address with a password in it. Proxies stay, with their passwords:
    without them nothing is reached. So does what ``JOBMON_EXECUTOR_KEEP`` names.

    :param environment: the worker's.
    """
    kept = {name.strip() for name in environment.get(KEEP, "").split(",")}

    def is_seen(name: str, value: str) -> bool:
        if name in kept or name.upper() in _PROXIES or name.startswith("BASH_FUNC_"):  # a module system's
            return True
        return not _NOT_INHERITED.fullmatch(name) and not _HAS_SECRET.search(value)

    return {name: value for name, value in environment.items() if is_seen(name, value)}


def executor_environment(settings: Settings, heartbeat: Heartbeat) -> dict[str, str]:
    """Return the environment in which Jobmon's client uses the server that a connection names.

    :param settings: the connection's. Credentials travel in the server's address, which is all that Jobmon's
        client takes.
    :param heartbeat: the run's. Jobmon's client takes an interval of whole seconds.
    :raises ConfigError: Jobmon's client cannot reach the server in the way the connection wants.
    """
    url = urlsplit(settings.service_url)
    environment = inherited_environment(os.environ)
    credentials = _credentials(settings.headers)
    environment |= {
        "JOBMON__HTTP__SERVICE_URL": f"{url.scheme}://{credentials}{url.netloc}",
        "JOBMON__HTTP__ROUTE_PREFIX": url.path,
        "JOBMON__HEARTBEAT__WORKFLOW_RUN_INTERVAL": str(math.ceil(heartbeat.interval)),
        "JOBMON__HEARTBEAT__REPORT_BY_BUFFER": f"{heartbeat.buffer:g}",
    }
    if settings.verify is False and url.scheme == "https":
        raise ConfigError(
            "Jobmon's own client, which executes the run, always checks TLS certificates: give the"
            " connection's verify the path of a CA bundle instead of false"
        )
    if settings.client_cert:
        raise ConfigError("Jobmon's own client, which executes the run, cannot send a client certificate")
    if isinstance(settings.verify, str):
        environment |= {"REQUESTS_CA_BUNDLE": settings.verify, "SSL_CERT_FILE": settings.verify}
    return environment


def _credentials(headers: Mapping[str, str]) -> str:
    """Return login and password as they stand before the host in an address."""
    scheme, _, value = headers.get("Authorization", "").partition(" ")
    others = sorted(name for name in headers if name != "Authorization" or scheme != "Basic")
    if others:
        raise ConfigError(
            f"Jobmon's own client, which executes the run, cannot send the connection's {', '.join(others)}:"
            " it takes no token and no headers, only login and password. Use such a connection for this task,"
            " or execute the run elsewhere, without cluster_name"
        )
    if not value:
        return ""
    login, _, password = base64.b64decode(value).decode().partition(":")
    return f"{quote(login, safe='')}:{quote(password, safe='')}@"


class Execution:
    """An executor at work on a run.

    :param command: how to start it; :func:`executor_command` says.
    :param environment: see :func:`executor_environment`.
    :param log: gets each line that it writes, as it comes.
    :raises ConfigError: it cannot be started.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str], log: Log) -> None:
        self._log = log
        self._secrets = _secrets(environment)
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as this object
        self._read_up_to = 0
        self._unfinished = b""
        self._last_line = ""
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
                stdout=self._output,
                stderr=subprocess.STDOUT,
                pass_fds=[executors_end.fileno()],
                start_new_session=True,
            )
        except OSError as error:
            self._lifeline.close()
            raise ConfigError(f"{command[0]} cannot be started: {error.strerror}") from None
        finally:
            executors_end.close()

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
        """What kept it from executing the run to its end, as a sentence; None: nothing, or it is at work."""
        if self.exit_code in (None, Exit.DONE, Exit.NOT_DONE):
            return None
        return f"Its executor ended with {self.exit_code}: {self._last_line}"

    def wait(self, seconds: float) -> None:
        """Pass on what it writes for so many seconds.

        :raises ExecutorEnded: it has ended.
        """
        deadline = time.monotonic() + seconds
        while True:
            ended = self.exit_code is not None
            self._pass_on(last=ended)
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

    def _pass_on(self, *, last: bool) -> None:
        while not self._output.closed and (
            written := os.pread(self._output.fileno(), 65536, self._read_up_to)
        ):
            self._read_up_to += len(written)  # before the logging, which a signal handler may interrupt
            *lines, self._unfinished = (self._unfinished + written).split(b"\n")
            for line in lines:
                self._show(line)
            if len(self._unfinished) > LONGEST_LINE:
                self._show(self._unfinished)
                self._unfinished = b""
        if last and self._unfinished:
            self._show(self._unfinished)
            self._unfinished = b""

    def _show(self, line: bytes) -> None:
        text = fit_to_show(line, self._secrets)
        if text:
            self._last_line = text.removeprefix("executor: ")
            self._log.log(logging.INFO, "%s", text)


def fit_to_show(line: bytes, secrets: Iterable[str]) -> str:
    """Return a line of output as text of bounded length, without control characters and secrets."""
    text = line.decode(errors="replace")
    for secret in secrets:  # before it is cut, which may be in the middle of one
        text = text.replace(secret, "***")
    text = text[:LONGEST_LINE].rstrip()
    return "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def executor_command(python: str, workflow_id: int, workflow_run_id: int, cluster_name: str) -> list[str]:
    """Return the command that executes a run: no secret in it, and no shell that reads it."""
    options = {"workflow-id": workflow_id, "workflow-run-id": workflow_run_id, "cluster-name": cluster_name}
    return [python, str(EXECUTOR), *(f"--{name}={value}" for name, value in options.items())]


def _secrets(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the password of the server's address as it may turn up in output."""
    url = urlsplit(environment.get("JOBMON__HTTP__SERVICE_URL", ""))
    return tuple({url.password, unquote(url.password)}) if url.password else ()

"""Where and how a run is executed: what a user has asked for, as plain values that hold after a deferral."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from airflow_jobmon_provider.client.exceptions import ConfigError
from airflow_jobmon_provider.execution.environment import find_python, jobmon_settings
from airflow_jobmon_provider.execution.following import Follower
from airflow_jobmon_provider.execution.job import REMOTE_DIR, JobSpec
from airflow_jobmon_provider.execution.launchers import Launcher, find_launcher
from airflow_jobmon_provider.execution.said import Said

if TYPE_CHECKING:
    from airflow_jobmon_provider.client.conversations import Log
    from airflow_jobmon_provider.client.heartbeat import Heartbeat
    from airflow_jobmon_provider.client.redaction import Secrets
    from airflow_jobmon_provider.client.settings import Settings


@dataclass(frozen=True)
class Placement:
    """Where and how a run is executed.

    :param cluster_name: the cluster on which its tasks run, by Jobmon's name.
    :param ssh_conn_id: the submit host; None: this machine.
    :param launcher_name: one of ``launchers.LAUNCHERS``.
    :param options: the scheduler's, as words of its command line.
    :param setup_commands: lines of bash before the executor.
    :param python: the Python with Jobmon's client there; None: the host looks.
    :param remote_dir: a folder of the user's there.
    :param handoff_timeout: seconds that the executor has to take the run, from when it has begun.
    :param queue_timeout: seconds of the run's life for which it may wait to begin; None: for ever.
    """

    cluster_name: str
    ssh_conn_id: str | None = None
    launcher_name: str = "process"
    options: tuple[str, ...] = ()
    setup_commands: tuple[str, ...] = ()
    python: str | None = None
    remote_dir: str = REMOTE_DIR
    handoff_timeout: float = 3600.0
    queue_timeout: float | None = None

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> Placement:
        """Return a placement as it was kept; what a newer version has kept besides is left out."""
        names = {field.name for field in fields(cls)}
        known = {name: value for name, value in kept.items() if name in names}
        for name, value in known.items():
            known[name] = tuple(value) if isinstance(value, list) else value
        return cls(**known)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @property
    def is_job(self) -> bool:
        """Whether it may be anything but a child of the process that starts it."""
        return self.ssh_conn_id is not None or self.launcher_name != "process" or bool(self.setup_commands)

    @property
    def launcher(self) -> Launcher:
        """What starts the executor."""
        return find_launcher(self.launcher_name)

    def job(
        self, settings: Settings, heartbeat: Heartbeat, server: str, workflow_id: int, workflow_run_id: int
    ) -> JobSpec:
        """Return the job that executes a run.

        :param settings: the connection's.
        :param heartbeat: the run's.
        :param server: address by which the run's server is known.
        :raises ConfigError: Jobmon's client is not here, or cannot reach the server as the connection wants.
        """
        here = self.ssh_conn_id is None
        variables, credentials = jobmon_settings(settings, heartbeat, here=here)
        return JobSpec(
            server,
            workflow_id,
            workflow_run_id,
            self.cluster_name,
            self.python,
            self.setup_commands,
            variables,
            credentials,
            self.remote_dir,
        )

    def follower(self, host: str, log: Log, secrets: Secrets) -> Follower:
        """Return what learns how the job stands.

        :param host: what users call its host.
        :param log: the task's; gets the executor's output.
        :param secrets: what must not be shown of that: the connection's.
        """
        return Follower(
            host,
            log,
            Said(log, secrets),
            time.monotonic,
            handoff_timeout=self.handoff_timeout,
            queue_timeout=self.queue_timeout,
        )

    def checked(self) -> Placement:
        """Return it with the Python that is found, where it is this worker's.

        :raises ConfigError: what is needed is not on this worker.
        """
        if self.ssh_conn_id is not None:
            try:
                import airflow.providers.ssh.hooks.ssh  # noqa: F401
            except ImportError as error:
                raise ConfigError(
                    "ssh_conn_id needs Airflow's SSH provider: pip install 'airflow-provider-jobmon[ssh]'"
                    f" ({error})"
                ) from None
            return self
        if self.setup_commands or self.launcher_name != "process":  # another node, or what brings a Python
            return self
        return replace(self, python=find_python(self.python))


def setup_lines(given: Sequence[str] | None) -> list[str]:
    """Return setup commands as lines of a shell.

    :param given: as a user gives them; None: there are none.
    :raises ValueError: they are no list of texts.
    """
    if isinstance(given, str) or not all(isinstance(line, str) for line in given or ()):
        raise ValueError(f"setup_commands must be a list of lines for a shell, not {given!r}")
    if any("\0" in line for line in given or ()):
        raise ValueError("setup_commands must not hold the character NUL")
    return list(given or ())


def checked_folder(given: str | None) -> str:
    """Return a folder on a host.

    :param given: as a user gives it; None: the default.
    :raises ValueError: it is no absolute path, nor one below the home.
    """
    folder = REMOTE_DIR if given is None else given
    if not re.match(r"~/.|/.", folder) or any(not c.isprintable() for c in folder):
        raise ValueError(f"remote_dir must be an absolute path, or begin with '~/', not {folder!r}")
    return folder

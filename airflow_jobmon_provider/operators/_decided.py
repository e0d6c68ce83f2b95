"""What operators decide before they defer, and what holds after it: plain values (docs/rules.md, rule 9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

from airflow_jobmon_provider.client.conversations import KILL_PATIENCE
from airflow_jobmon_provider.task.limits import remaining

if TYPE_CHECKING:
    from datetime import timedelta

    from airflow_jobmon_provider.execution.launchers import Options
    from airflow_jobmon_provider.triggers.events import RunEvent


class Wanted(Protocol):
    """The parameters of ``CreateWorkflowRunOperator``, which describes them."""

    jobmon_conn_id: str
    cluster_name: str | None
    jobmon_python: str | None
    ssh_conn_id: str | None
    launcher: str
    launcher_options: Options | None
    setup_commands: Sequence[str] | None
    remote_dir: str | None
    queue_timeout: float | None
    deferrable: bool
    wait_for_completion: bool
    keep_alive: str
    create_timeout: float
    handoff_timeout: float
    startup_timeout: float
    poll_interval: float
    cancel_on_kill: bool
    resume_on_retry: bool
    execution_timeout: timedelta | None

    @property
    def log(self) -> Any:
        """The task's log."""


@dataclass(frozen=True)
class Resume:
    """What was decided before anything was sent, and holds after a deferral (docs/rules.md, rule 9).

    :param deadline: seconds since the epoch when ``resume_timeout`` is over.
    :param execution_deadline: the same for ``execution_timeout``; None: there is none.
    """

    workflow_id: int
    jobmon_conn_id: str
    server: str | None
    reset_if_running: bool
    increase_resources: bool
    if_done: str
    resume_timeout: float
    deadline: float
    execution_deadline: float | None

    @property
    def first_deadline(self) -> float:
        """When the first of both time-outs is over."""
        return (
            self.deadline if self.execution_deadline is None else min(self.deadline, self.execution_deadline)
        )

    @property
    def kill_patience(self) -> float:
        """Seconds for which a forced clean-up waits for tasks that were just told to kill themselves."""
        return min(KILL_PATIENCE, remaining(self.first_deadline) / 2)

    @property
    def is_over(self) -> bool:
        """Whether it is ``execution_timeout`` that is over, if one of them is."""
        return self.execution_deadline is not None and self.execution_deadline <= self.deadline


@dataclass(frozen=True)
class OwnRun:
    """The run that a task looks after, with what holds for it from its creation on (docs/rules.md, rule 9).

    :param workflow_run_id: the run.
    :param workflow_id: its workflow; None: not known, after a deferral that an older version made.
    :param jobmon_conn_id: id of the connection to its server.
    :param server: that server's address; None: not known.
    :param cancel_on_kill: see the operator.
    :param created_at: seconds since the epoch.
    :param deadline: when the task's time is over, in seconds since the epoch; None: never.
    """

    workflow_run_id: int
    workflow_id: int | None
    jobmon_conn_id: str
    server: str | None
    cancel_on_kill: bool
    created_at: float = 0.0
    deadline: float | None = None

    @classmethod
    def after_deferral(cls, event: RunEvent, kept: Mapping[str, Any]) -> OwnRun:
        """Return the run with which a task comes back.

        :param event: the trigger's. Its word comes first.
        :param kept: what was known before the deferral; what a newer version has kept besides is left out.
        """
        known = dict(kept)
        for key in ("workflow_run_id", "workflow_id", "server"):
            said = getattr(event, key)
            known[key] = kept.get(key) if said is None else said
        names = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in known.items() if name in names})

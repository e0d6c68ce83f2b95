"""What the server replies, as typed data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from airflow_jobmon_provider.client.lifecycle import RunStatus


@dataclass(frozen=True, slots=True)
class Resumability:
    """Reply of ``is_resumable``.

    :param resumable: no run of the workflow is alive. True also for a workflow that is DONE.
    :param pending_kill_self: task instances that were told to kill themselves and have not answered; None:
        this server does not count them (3.4.8), and cannot force their clean-up either.
    """

    resumable: bool
    pending_kill_self: int | None


@dataclass(frozen=True, slots=True)
class CreatedRun:
    """Reply of ``POST /workflow_run``: a new run, LINKING, of the client that asked for it."""

    workflow_run_id: int
    status: RunStatus


@dataclass(frozen=True, slots=True)
class LostRun:
    """A run whose heartbeat date has passed, from ``lost_workflow_run``."""

    workflow_run_id: int
    workflow_id: int


@dataclass(frozen=True, slots=True)
class WorkflowDetails:
    """Reply of ``workflow_details_viz``.

    :param status: code of the workflow's status; compare it with ``WorkflowStatus``.
    :param name: the workflow's name.
    :param run_user: who made the run that the workflow has now, or had last; None: the server does not say
        (3.4.8), or its reply does not tell.
    :param modern: the reply itself shows that the server is not too old for this provider. False: it does not
        show that; see :func:`~airflow_jobmon_provider.client.compatibility.check_server_version`.
    :param status_since: when it got that status, in the server's words: it stays the same as long as no run
        of the workflow begins or ends.
    """

    status: str
    name: str
    run_user: str | None = None
    modern: bool = field(default=False, compare=False)
    status_since: str | None = None


@dataclass(frozen=True, slots=True)
class FoundWorkflow:
    """A row of ``workflow_overview_viz``.

    :param workflow_id: the workflow.
    :param args: the start of its arguments, as one line.
    :param status: label of its status.
    """

    workflow_id: int
    args: str
    status: str

    def __str__(self) -> str:
        """As shown to users: ``12 (args '2026', DONE)``."""
        return f"{self.workflow_id} (args {self.args!r}, {self.status})"


@dataclass(frozen=True, slots=True)
class TaskCounts:
    """Reply of ``workflow_status_viz``: how many tasks of a workflow are where, in Jobmon's words.

    :param total: all of them.
    :param pending: not handed to the cluster yet; also those that failed and will be tried again.
    :param scheduled: handed to the cluster.
    :param running: being executed.
    :param done: succeeded.
    :param fatal: failed for good.
    """

    total: int
    pending: int
    scheduled: int
    running: int
    done: int
    fatal: int

    def __str__(self) -> str:
        """How far the workflow is, as shown to users.

        Such as ``412/1000 done, 30 running, 5 scheduled, 551 pending, 2 failed``.
        """
        return (
            f"{self.done}/{self.total} done, {self.running} running, {self.scheduled} scheduled,"
            f" {self.pending} pending, {self.fatal} failed"
        )

    def as_dict(self) -> dict[str, int]:
        """Return the counts as plain data, for XCom."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class FailedTask:
    """A task that failed for good, from ``workflow_tasks``.

    :param task_id: its id.
    :param name: its name, as one short line.
    """

    task_id: int
    name: str

"""What a try of a task remembers for the next one, and what the next one does with it.

A run is stopped only if there is evidence that a user has cleared this very task instance. A clear of any
other task of the DAG run is not evidence.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from airflow_jobmon_provider.client.lifecycle import RunStatus, WorkflowStatus
from airflow_jobmon_provider.client.settings import same_server
from airflow_jobmon_provider.client.validation import positive_id

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_jobmon_provider.client.conversations import Log

_KEY = "jobmon_workflow_run"


@dataclass(frozen=True)
class EarlierRun:
    """The run of an earlier try.

    :param workflow_run_id: the run.
    :param created_at: seconds since the epoch.
    :param max_tries: how many tries Airflow granted the task instance by then; None: not remembered.
    :param clear_number: how often tasks of the DAG run, any of them, had been cleared by then; None: not
        remembered.
    :param cleared: the try was ended by a user who cleared the task.
    """

    workflow_run_id: int
    created_at: float
    max_tries: int | None
    clear_number: int | None
    cleared: bool


class RunMemory:
    """Remembers across the tries of a task which run it created, where Airflow has a place for that (3.3).

    :param context: the running task's.
    :param workflow_id: the workflow of the runs. A run of another one is not this try's.
    :param server: address of the server on which the ids live. A run on another one is not this try's.
    :param log: learns of such runs.
    :param asked: what the workflow is called, if its id was not given: see ``task.workflow.as_kept``.
    """

    def __init__(
        self,
        context: Context,
        workflow_id: int,
        server: str,
        log: Log,
        asked: Mapping[str, Any] | None = None,
    ) -> None:
        self.workflow_id = workflow_id
        self._asked = asked
        self.server = server
        self._log = log
        self._store: Any = context.get("task_state_store")
        ti = context["ti"]
        self._max_tries = _number(getattr(ti, "max_tries", None))
        self._clear_number = _number(getattr(context.get("dag_run"), "clear_number", None))
        self.is_retry = (_number(getattr(ti, "try_number", None)) or 1) > 1
        self._kept: dict[str, Any] | None = None

    @property
    def is_kept(self) -> bool:
        """Whether Airflow keeps anything from one try to the next."""
        return self._store is not None

    def recall(self) -> EarlierRun | None:
        """Return the run of an earlier try for the same workflow on the same server."""
        kept = self._store.get(_KEY) if self._store is not None else None
        if not isinstance(kept, dict):
            return None
        try:
            run = positive_id("workflow_run_id", kept.get("workflow_run_id"))
            workflow_id = positive_id("workflow_id", kept.get("workflow_id"))
        except ValueError:
            return None
        server = kept.get("server", self.server)  # an older version did not remember it
        if not same_server(str(server), self.server):
            self._log.log(
                logging.WARNING,
                "an earlier try created workflow run %s on the server %s; the connection names %s now, so"
                " that run is left alone, and a new one is created there",
                run,
                server,
                self.server,
            )
            return None
        if workflow_id != self.workflow_id:
            self._log.log(
                logging.WARNING,
                "an earlier try created workflow run %s of workflow %s; this try is for workflow %s, so that"
                " run is left alone",
                run,
                workflow_id,
                self.workflow_id,
            )
            return None
        created_at = kept.get("created_at")
        return EarlierRun(
            run,
            created_at if isinstance(created_at, (int, float)) else time.time(),
            _number(kept.get("max_tries")),
            _number(kept.get("clear_number")),
            kept.get("cleared") is True,
        )

    def remember(self, workflow_run_id: int, created_at: float) -> None:
        """Keep the run for the next try.

        :param created_at: seconds since the epoch.
        """
        self._kept = {
            "workflow_id": self.workflow_id,
            "workflow_run_id": workflow_run_id,
            "server": self.server,
            "asked": self._asked,
            "created_at": created_at,
            "max_tries": self._max_tries,
            "clear_number": self._clear_number,
        }
        if self._store is not None:
            self._store.set(_KEY, self._kept)

    def remember_clear(self) -> bool:
        """Keep for the next try that a user has cleared the task while this one ran.

        Airflow 3.3 gives a task instance that is cleared another id, under which its next try runs, and
        refuses this: then :meth:`was_cleared_since` has to do with what it sees.
        """
        if self._store is not None and self._kept is not None:
            self._store.set(_KEY, {**self._kept, "cleared": True})
        return True

    def was_cleared_since(self, earlier: EarlierRun, status: RunStatus) -> bool:
        """Whether a user has cleared this task instance since that try, as far as there is evidence.

        A clear grants a task instance that is not running more tries. One that is running is restarted
        without more tries, at first: then ``on_kill`` has told the run to stop, or nobody has. So a run that
        was stopped, in a DAG run in which something was cleared, is taken for one that a clear has stopped;
        no run that is at work can be harmed by that.

        :param status: what the run is now.
        """
        if earlier.cleared:
            return True
        if earlier.max_tries is not None and (self._max_tries or 0) > earlier.max_tries:
            return True
        stopped = status in (RunStatus.COLD_RESUME, RunStatus.TERMINATED)
        return (
            stopped and earlier.clear_number is not None and (self._clear_number or 0) > earlier.clear_number
        )


def remembered_workflow(context: Context, server: str, asked: Mapping[str, Any]) -> int | None:
    """Return the workflow for which an earlier try has created a run, if it was asked for by the same words.

    Another one may be called so by now, and that run must not be left alone because of it.

    :param context: the running task's.
    :param server: address of the server on which the workflow lives.
    :param asked: what it is called, see ``task.workflow.as_kept``.
    :returns: its id; None: nothing is remembered.
    """
    store: Any = context.get("task_state_store")
    kept = store.get(_KEY) if store is not None else None
    if not isinstance(kept, dict) or kept.get("asked") != asked:
        return None
    try:
        workflow_id = positive_id("workflow_id", kept.get("workflow_id"))
    except ValueError:
        return None
    return workflow_id if same_server(str(kept.get("server")), server) else None


class Step(Enum):
    """What a try does about the run of an earlier one."""

    GO_ON = "go on with it"
    STOP = "stop it, resume the workflow, and create another"
    RESUME = "resume the workflow, and create another"
    CREATE = "create another"
    FAIL = "report how it ended"


def next_step(status: RunStatus, *, cleared: bool, cancel_on_kill: bool, resume_on_retry: bool) -> Step:
    """Return what a try does about the run of an earlier one.

    :param status: what the run is now.
    :param cleared: a user has cleared the task, so it is to be done again.
    :param cancel_on_kill: a clear also stops a run that an executor has.
    :param resume_on_retry: a retry resumes the workflow if the run ended badly.
    """
    if cleared:
        if status is RunStatus.DONE:
            return Step.CREATE  # the server decides whether there is anything left to do
        if status.is_terminal:
            return Step.RESUME
        return Step.STOP if cancel_on_kill or status is RunStatus.LINKING else Step.GO_ON
    if status is RunStatus.DONE or not status.is_terminal:
        return Step.GO_ON
    if status is RunStatus.ABORTED:
        return Step.CREATE  # no executor ever had it, so there is nothing to resume
    return Step.RESUME if resume_on_retry else Step.FAIL


class Preparation(Enum):
    """What a retry does before it creates a run, where Airflow remembers no run of an earlier try."""

    NOTHING = "nothing: the workflow's tasks are ready"
    WARN = "warn that failed tasks are not reset"
    RESUME = "resume the workflow, once no run of it is alive"


def preparation(status: str | None, *, resume_on_retry: bool) -> Preparation:
    """Return what a retry does before it creates a run, where Airflow remembers no run of an earlier try.

    :param status: what the workflow is now; None: the server does not tell.
    :param resume_on_retry: a retry resumes the workflow if its last run ended badly.
    """
    if status == WorkflowStatus.DONE:
        return Preparation.NOTHING  # nor is there anything left to run
    if not resume_on_retry:
        return Preparation.WARN
    # A run that is LINKING has its tasks ready, and is waited for when the next one is created.
    if status is None or status == WorkflowStatus.REGISTERING:
        return Preparation.NOTHING
    return Preparation.RESUME


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None

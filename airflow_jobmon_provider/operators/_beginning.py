"""How a try comes by its run: that of an earlier try, or a new one."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import AirflowException

from airflow_jobmon_provider.client.conversations import (
    Retries,
    ask_until,
    check_server_version,
    create_run,
    in_time,
    make_ready,
    stop_run,
)
from airflow_jobmon_provider.client.exceptions import (
    JobmonError,
    WorkflowBusy,
    WorkflowNotResumable,
    WorkflowRunNotFound,
)
from airflow_jobmon_provider.client.lifecycle import RunStatus, WorkflowStatus
from airflow_jobmon_provider.client.protocol import routes
from airflow_jobmon_provider.client.user import current_user
from airflow_jobmon_provider.operators._decided import OwnRun, Wanted
from airflow_jobmon_provider.operators._retry import Preparation, Step, next_step, preparation
from airflow_jobmon_provider.task.limits import execution_deadline

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_jobmon_provider.client.protocol import WorkflowDetails
    from airflow_jobmon_provider.hooks.jobmon import JobmonHook
    from airflow_jobmon_provider.operators._attempt import Attempt
    from airflow_jobmon_provider.operators._retry import EarlierRun, RunMemory
    from airflow_jobmon_provider.operators._watcher import Starter


class Beginning:
    """Finds or creates the run of a try within ``create_timeout``, which begins now.

    :param wanted: the operator's parameters.
    :param attempt: the try.
    :param hook: the connection.
    :param memory: what earlier tries have left.
    :param starter: starts our own executors; None: the run is executed elsewhere.
    """

    def __init__(
        self,
        wanted: Wanted,
        attempt: Attempt,
        hook: JobmonHook,
        memory: RunMemory,
        starter: Starter | None = None,
    ) -> None:
        self._starter = starter
        self._wanted = wanted
        self._attempt = attempt
        self._hook = hook
        self._memory = memory
        self._workflow_id = memory.workflow_id
        self._log = wanted.log
        self._end = time.monotonic() + wanted.create_timeout

    def find_or_create(self, context: Context, good_for: float) -> tuple[OwnRun, RunStatus] | None:
        """Return the run that an earlier try created, or a new one, and its status.

        The run of an earlier try may have ended, well or badly. None: the workflow is DONE, so there is
        nothing to create a run for.

        :param context: the running task's.
        :param good_for: seconds for which a new run's heartbeat holds.
        :raises AirflowException: there is no run to go on with, and none may or could be created.
        """
        found = self._go_on_with_an_earlier_one()
        if found is not None:
            run, created_at, status = found
        else:
            created = self._create(good_for)
            if created is None:
                return None
            run, created_at, status = created, time.time(), RunStatus.LINKING
        deadline = execution_deadline(context, self._wanted.execution_timeout)
        return self._own_run(run, created_at, deadline), status

    def _left(self) -> float:
        """Return the seconds that are left of ``create_timeout``."""
        return max(self._end - time.monotonic(), 0.0)

    def _own_run(self, run: int, created_at: float, deadline: float | None = None) -> OwnRun:
        return OwnRun(
            run,
            self._workflow_id,
            self._wanted.jobmon_conn_id,
            self._memory.server,
            self._wanted.cancel_on_kill,
            created_at,
            deadline,
        )

    def _create(self, good_for: float) -> int | None:
        """Create a run and return its id; None: the workflow is DONE."""
        # Asked first: each run that the server refuses stays among the workflow's runs.
        if self._is_done():
            return None
        creating = create_run(
            self._workflow_id,
            user=current_user(),
            good_for=good_for,
            timeout=self._left(),
            perhaps_lost=self._memory.is_retry,  # by a try that died before its run was known
            clock=time.monotonic,
        )
        try:
            run = self._attempt.converse(self._hook, creating).workflow_run_id
        except WorkflowBusy:
            raise
        except WorkflowNotResumable:
            if self._has_become_done():
                return None
            raise
        self._log.info("created workflow run %d of workflow %d", run, self._workflow_id)
        return run

    def _has_become_done(self) -> bool:
        """Whether the run that was in the way has made the workflow DONE; False if that cannot be told."""
        try:
            details = self._look_at_the_workflow()
        except JobmonError:
            return False
        return details is not None and details.status == WorkflowStatus.DONE

    def _is_done(self) -> bool:
        """Whether the workflow is DONE, on a server that is not too old for this provider."""
        details = self._look_at_the_workflow()
        timeout = self._left()
        checking = check_server_version(details, Retries(timeout, math.inf), time.monotonic)
        self._attempt.converse(self._hook, in_time(checking, timeout, time.monotonic))
        return details is not None and details.status == WorkflowStatus.DONE

    def _go_on_with_an_earlier_one(self) -> tuple[int, float, RunStatus] | None:
        """Return the run to go on with, when it was created, and its status; None: create a new one.

        What else is to be done before a new one is created has been done by then.

        :raises AirflowException: what was to be done has failed.
        """
        earlier = self._memory.recall()
        if earlier is None:
            if self._memory.is_retry and not self._memory.is_kept:
                self._prepare_without_memory()
            return None
        status = self._look_at(earlier)
        if status is None:
            return None
        step = next_step(
            status,
            cleared=self._memory.was_cleared_since(earlier, status),
            cancel_on_kill=self._wanted.cancel_on_kill,
            resume_on_retry=self._wanted.resume_on_retry,
        )
        if step in (Step.GO_ON, Step.FAIL):
            return earlier.workflow_run_id, earlier.created_at, status
        self._act_on(step, earlier.workflow_run_id)
        return None

    # --- Where Airflow tells which run an earlier try created -----------------------------------------------

    def _look_at(self, earlier: EarlierRun) -> RunStatus | None:
        """Return what the run of an earlier try is now; None: the server does not know it."""
        run = earlier.workflow_run_id
        self._attempt.push("workflow_run_id", run)  # should this try come to nothing
        self._attempt.earlier = self._own_run(run, earlier.created_at)
        self._hook.check_server(self._memory.server)  # an earlier try has reached it: no name is misspelt
        looking = ask_until(routes.peek_status(run), self._left(), time.monotonic)
        try:
            status = self._attempt.converse(self._hook, looking)
        except WorkflowRunNotFound:
            return None
        self._log.info("an earlier try created workflow run %d; it is %s: %s", run, status, status.meaning)
        return status

    def _act_on(self, step: Step, run: int) -> None:
        """Do about the run of an earlier try what comes before another one can be created.

        :param step: what is to be done.
        :raises AirflowException: the run does not end.
        """
        if step is Step.STOP:
            self._stop_cleared(run)
            self._make_ready(patience=self._left())
        elif step is Step.RESUME:
            # Our run has ended: if one is alive now, it is not ours to wait for.
            self._make_ready(patience=0.0)

    def _stop_cleared(self, run: int) -> None:
        """Stop the run of an earlier try, which the user has cleared, and wait for its end.

        :raises AirflowException: it has not ended in time; until then, an executor is at work on its tasks.
        """
        self._log.info("this task was cleared: stopping workflow run %d", run)
        stopping = stop_run(run, self._workflow_id, timeout=self._left(), clock=time.monotonic)
        status = self._attempt.converse(self._hook, stopping)
        if status is None or not status.is_terminal:
            raise AirflowException(
                f"workflow run {run} was told to stop, as the task was cleared, and is still"
                f" {status or 'out of reach'} after {self._wanted.create_timeout:g} s (create_timeout). Its"
                f" tasks are not reset under its executor: wait for its end, or end it, and clear this task"
                f" again"
            )
        if self._starter is not None:
            self._starter.end(self._own_run(run, 0.0))

    # --- Where it does not (before 3.3) ---------------------------------------------------------------------

    def _prepare_without_memory(self) -> None:
        """Do what a retry can where Airflow does not tell which run an earlier try created (before 3.3)."""
        details = self._look_at_the_workflow()
        status = details.status if details is not None else None
        self._prepare(preparation(status, resume_on_retry=self._wanted.resume_on_retry))

    def _look_at_the_workflow(self) -> WorkflowDetails | None:
        looking = ask_until(routes.workflow_details(self._workflow_id), self._left(), time.monotonic)
        return self._attempt.converse(self._hook, looking)

    def _prepare(self, what: Preparation) -> None:
        """Do what comes before another run can be created."""
        if what is Preparation.WARN:
            self._log.warning(
                "This Airflow does not remember the run of an earlier try (3.3 and later do): another one is"
                " created if none is alive, and failed tasks are not reset; resume_on_retry=True does that"
            )
        elif what is Preparation.RESUME:
            self._log.info("workflow %d is made ready for another run, once none is alive", self._workflow_id)
            self._make_ready(patience=self._left())

    def _make_ready(self, *, patience: float) -> None:
        """Have the workflow's tasks reset, which its next run then executes.

        :param patience: seconds to wait for the end of a run that is alive.
        """
        ready = make_ready(self._workflow_id, patience=patience, timeout=self._left(), clock=time.monotonic)
        self._attempt.converse(self._hook, ready)
        self._log.info("workflow %d is ready for its next run", self._workflow_id)

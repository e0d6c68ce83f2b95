"""How a task ends: what it tells of its run before it succeeds or fails, and whether a retry can help."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, AirflowSkipException

from airflow_jobmon_provider.client.conversations import (
    advice_on_end,
    count_tasks,
    ended,
    explain_failure,
    reason_of,
)
from airflow_jobmon_provider.client.lifecycle import RunStatus, read_status
from airflow_jobmon_provider.execution.executor import Exit

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_jobmon_provider.client.protocol import TaskCounts
    from airflow_jobmon_provider.hooks.jobmon import JobmonHook
    from airflow_jobmon_provider.operators._attempt import Attempt
    from airflow_jobmon_provider.operators._decided import OwnRun
    from airflow_jobmon_provider.triggers.events import RunEvent

_RETRY_IS_USELESS = (Exit.USAGE, Exit.NO_CLUSTER)


def end_if_done(workflow_id: int, if_done: str, log: Any) -> None:
    """Skip or fail the task of a workflow that is DONE, or return where it may pass.

    :param if_done: see the operators.
    :raises AirflowSkipException: ``if_done="skip"``.
    :raises AirflowFailException: ``if_done="fail"``; a retry would find the same.
    """
    message = f"workflow {workflow_id} is DONE: there is nothing left to run"
    log.info(message)  # Airflow shows a skip's reason only in the line's details
    if if_done == "skip":
        raise AirflowSkipException(message)
    if if_done == "fail":
        raise AirflowFailException(message)


class Ending:
    """Ends a task whose run has ended, or is not watched any longer (docs/rules.md, rule 10).

    :param context: the running task's.
    :param attempt: the try.
    :param own: the run.
    :param hook: the connection to its server.
    :param resume_on_retry: a retry would resume the workflow, so it can help where a run has ended badly.
    :param log: the task's.
    """

    def __init__(
        self,
        context: Context,
        attempt: Attempt,
        own: OwnRun,
        hook: JobmonHook,
        *,
        resume_on_retry: bool,
        log: Any,
    ) -> None:
        self._ti: Any = context["ti"]
        self._attempt = attempt
        self._own = own
        self._hook = hook
        self._resume_on_retry = resume_on_retry
        self._log = log

    def finish(self, event: RunEvent) -> int:
        """Push what is known of the run's end, and return its id or raise the reason.

        :param event: how the watch of the run ended.
        :raises AirflowFailException: the run ended badly, and no retry would change that.
        :raises AirflowException: it ended badly, or is not watched any longer; a retry may help.
        """
        attempt, own = self._attempt, self._own
        attempt.settled = attempt.settled or event.has_ended
        self._ti.xcom_push(key="status", value=event.workflow_run_status)
        if not event.has_ended:
            attempt.leave(own, self._hook, timed_out=event.status == "timeout")
            raise AirflowException(event.message)
        if event.status != "success":
            raise self._failure(event)
        self._log.info(event.message)
        if own.workflow_id is not None:
            counts, _ = attempt.tell(own, self._hook, count_tasks(own.workflow_id))
            self._push_counts(counts)
        return own.workflow_run_id

    def _failure(self, event: RunEvent) -> AirflowException:
        """Return why the task fails, with what the server tells of the tasks that failed."""
        workflow_id = self._own.workflow_id
        if event.workflow_run_status == RunStatus.ABORTED:  # the tasks had no part in it: create another run
            useless = event.exit_code in _RETRY_IS_USELESS
            return (AirflowFailException if useless else AirflowException)(event.message)
        kind = AirflowException if self._resume_on_retry else AirflowFailException
        if workflow_id is None or event.workflow_run_status is None:
            return kind(event.message)
        status = read_status(event.workflow_run_status)
        explanation, problem = self._attempt.tell(self._own, self._hook, explain_failure(workflow_id))
        counts = explanation.counts if explanation is not None else None
        self._push_counts(counts)
        why = f"Why it failed could not be asked: {problem}" if explanation is None else explanation.text
        advice = f"{advice_on_end(workflow_id, counts)}{self._how()}"
        head = self._head(event.message, status, counts)
        return kind("\n".join(line for line in (head, why, advice) if line))

    def _head(self, message: str, status: RunStatus, counts: TaskCounts | None) -> str:
        """Return how the run ended in one line, with the reason that the counts give."""
        run = self._own.workflow_run_id
        known = f"workflow run {run} of workflow {self._own.workflow_id} ended {status}"
        return message.replace(ended(run, status).message, f"{known}: {reason_of(status, counts)}")

    def _how(self) -> str:
        if self._resume_on_retry:
            return ". A retry of this task does so (resume_on_retry)"
        return " (ResumeWorkflowOperator, or resume_on_retry=True to let a retry of this task do so)"

    def _push_counts(self, counts: TaskCounts | None) -> None:
        if counts is not None:
            self._log.info("workflow %s: %s", self._own.workflow_id, counts)
            self._ti.xcom_push(key="task_counts", value=counts.as_dict())

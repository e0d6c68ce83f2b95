"""What ``ResumeWorkflowOperator`` does on a worker."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.providers.common.compat.sdk import AirflowTaskTimeout

from airflow_jobmon_provider.client import protocol
from airflow_jobmon_provider.client.conversations import (
    Retries,
    ask_again,
    begin_resume,
    check_at_rest,
    in_time,
    reset_tasks,
    wait_until_resumable,
)
from airflow_jobmon_provider.client.exceptions import InvalidRequest, JobmonError
from airflow_jobmon_provider.client.lifecycle import WorkflowStatus
from airflow_jobmon_provider.client.protocol import routes
from airflow_jobmon_provider.operators._ending import end_if_done
from airflow_jobmon_provider.operators._raised import RaisedMemory
from airflow_jobmon_provider.task.errors import execution_limit
from airflow_jobmon_provider.task.limits import remaining

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_jobmon_provider.client.conversations import Begun, Conversation
    from airflow_jobmon_provider.client.protocol import Call, WorkflowDetails
    from airflow_jobmon_provider.hooks.jobmon import JobmonHook
    from airflow_jobmon_provider.operators._decided import Resume

T = TypeVar("T")

_LAST_INSTANT = 0.001  # seconds; 0 would mean "check once", for as long as that takes


class ResumeWork:
    """What ``ResumeWorkflowOperator`` does on a worker, each request within the user's limits."""

    def __init__(self, decided: Resume, hook: JobmonHook, log: Any) -> None:
        self.decided = decided
        self._hook = hook
        self._log = log

    def begin(self, reset_running_jobs: bool, force_cleanup: bool, increase_resources: bool | None) -> Begun:
        """Find out all that would keep the workflow from being resumed, and only then tell its run to stop.

        :param increase_resources: see the operator. What it comes to on this server is ``decided`` then.
        :returns: what was found.
        :raises AirflowSkipException: the workflow is DONE and ``if_done="skip"``.
        """
        decided = self.decided
        beginning = begin_resume(
            decided.workflow_id,
            reset_running_jobs=reset_running_jobs,
            force_cleanup=force_cleanup,
            increase_resources=increase_resources,
            server=self._hook.server.settings.service_url,
            retries=self._retries(),
            clock=time.monotonic,
        )
        begun = self._converse(beginning, remaining(decided.deadline) if decided.resume_timeout else None)
        self.decided = replace(decided, increase_resources=begun.increase_resources)
        return begun

    def wait(self, force_cleanup: bool, signal: Call[None] | None) -> WorkflowDetails | None:
        """Wait here until the workflow is at rest; return what the server says of it then.

        :param signal: sent again to a run that may have missed it.
        """
        waiting = wait_until_resumable(
            self.decided.workflow_id,
            timeout=max(remaining(self.decided.first_deadline), _LAST_INSTANT)
            if self.decided.resume_timeout
            else 0,
            force_cleanup=force_cleanup,
            clock=time.monotonic,
            at_rest=True,
            signal=signal,
            kill_patience=self.decided.kill_patience,
        )
        return self._converse(waiting, None)

    def finish(self, context: Context, details: WorkflowDetails | None = None) -> int:
        """Raise resources if asked for, reset the tasks, and return the workflow's id.

        :param details: what the server has just said of the workflow, which is at rest; None: look anew.
        :raises AirflowSkipException: the workflow is DONE and ``if_done="skip"``.
        """
        decided = self.decided
        if details is None:
            checking = check_at_rest(decided.workflow_id, self._retries(), time.monotonic)
            details = self._converse(checking, decided.resume_timeout or None)
        # The run that was told to stop may have finished the workflow instead. A workflow that is DONE
        # reports resumable, but refuses a new run (docs/protocol.md, "Resuming").
        if details is not None and details.status == WorkflowStatus.DONE:
            end_if_done(decided.workflow_id, decided.if_done, self._log)
            return decided.workflow_id
        resetting = reset_tasks(
            decided.workflow_id, decided.reset_if_running, self._retries(), time.monotonic
        )
        if decided.increase_resources:
            memory = RaisedMemory(context, decided, self._hook.server.settings.service_url, details)
            with memory.or_no_retry():
                self._raise_resources(memory)
                self._converse(resetting, None)
            memory.forget()
        else:
            self._converse(resetting, None)
        self._log.info("workflow %d is ready for its next run", decided.workflow_id)
        return decided.workflow_id

    def _raise_resources(self, memory: RaisedMemory) -> None:
        # As late as can be: it sees every task that has failed. Until the reset, a second call would raise
        # the same ones once more.
        if memory.knows():
            self._log.warning(
                "an earlier try has raised the resources of the failed tasks; they are not raised again"
            )
            return
        memory.remember()
        call = routes.increase_resources(self.decided.workflow_id)
        try:
            raised = self._converse(ask_again(call, self._retries(), time.monotonic), None)
        except JobmonError as error:
            if isinstance(error, InvalidRequest) or protocol.was_not_processed(error):
                memory.forget()
            raise
        self._log.info(
            "workflow %d: the resources of %d task(s) that failed for lack of them were raised",
            self.decided.workflow_id,
            raised,
        )

    def _retries(self) -> Retries:
        """Return for how long to try again: as the connection says, and within the user's limits."""
        settings = self._hook.server.settings
        limits = [settings.retries_timeout, self.decided.resume_timeout]
        if self.decided.execution_deadline is not None:
            limits.append(remaining(self.decided.execution_deadline))
        return Retries(min(limits), settings.retries_attempts)

    def _converse(self, conversation: Conversation[T], timeout: float | None) -> T:
        """Carry a conversation to its end, each request within ``execution_timeout`` and a limit of its own.

        :param timeout: seconds; None: the requests have the transport's time-outs.
        """
        end = self.decided.execution_deadline
        if end is not None:
            left = remaining(end)
            if left == 0:
                raise AirflowTaskTimeout(
                    f"execution_timeout is over before workflow {self.decided.workflow_id} was ready"
                )
            timeout = left if timeout is None else min(timeout, left)
        if timeout is not None:
            conversation = in_time(conversation, timeout, time.monotonic)
        with execution_limit(end):
            return self._hook.converse(conversation, log=self._log)

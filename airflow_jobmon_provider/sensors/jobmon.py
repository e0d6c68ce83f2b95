"""Sensors that wait until a workflow is resumable, or until a workflow run has ended."""

from __future__ import annotations

import abc
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowSensorTimeout,
    BaseSensorOperator,
    conf,
)

from airflow_jobmon_provider.client.decisions import KeepAlive
from airflow_jobmon_provider.client.exceptions import ResumeTimeout, ServerFailure, ServerUnreachable
from airflow_jobmon_provider.client.validation import one_of, positive_id, seconds
from airflow_jobmon_provider.common import (
    DEFAULT_POLL_INTERVAL,
    airflow_errors,
    check_heartbeat,
    check_literal_id,
    heartbeat_of,
)
from airflow_jobmon_provider.hooks.jobmon import JobmonHook

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_jobmon_provider.client.statuses import RunStatus


class _JobmonSensor(BaseSensorOperator):
    """What both sensors do alike: outlive an outage, and end as the trigger's event says."""

    def __init__(self, *, jobmon_conn_id: str, deferrable: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.jobmon_conn_id = jobmon_conn_id
        self.deferrable = deferrable

    def poke(self, context: Context) -> bool:
        """Look once. A server that does not answer now is asked again at the next poke."""
        with airflow_errors():
            try:
                return self._look(JobmonHook(self.jobmon_conn_id))
            except (ServerFailure, ServerUnreachable) as error:
                self.log.warning("Jobmon does not answer, trying on: %s", error)
                return False

    @abc.abstractmethod
    def _look(self, hook: JobmonHook) -> bool:
        """Return whether the wait is over."""

    def execute_complete(self, context: Context, event: dict[str, Any]) -> None:
        """Succeed or fail as the trigger's event says.

        :param event: see the triggers in :mod:`airflow_jobmon_provider.triggers.jobmon`.
        """
        if event["status"] == "timeout":
            raise AirflowSensorTimeout(event["message"])
        if event["status"] != "success":
            raise AirflowException(event["message"])
        self.log.info(event["message"])


class WorkflowResumableSensor(_JobmonSensor):
    """Wait until a workflow is resumable, that is until none of its runs is alive. It signals nothing.

    A workflow that is DONE counts as resumable, as it does for Jobmon.

    :param workflow_id: the workflow. Templated.
    :param jobmon_conn_id: id of the Jobmon connection. Default ``jobmon_default``. Templated.
    :param force_cleanup: clean task instances in KILL_SELF up instead of waiting for their workers. Needs
        Jobmon 3.7. Default False.
    :param deferrable: wait in the triggerer instead of poking from workers. Default: ``[operators]
        default_deferrable``.
    :raises AirflowSensorTimeout: not resumable within ``timeout``.
    """

    template_fields: Sequence[str] = ("workflow_id", "jobmon_conn_id")
    ui_color = "#d6e8f5"

    def __init__(
        self,
        *,
        workflow_id: int | str,
        jobmon_conn_id: str = JobmonHook.default_conn_name,
        force_cleanup: bool = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(jobmon_conn_id=jobmon_conn_id, deferrable=deferrable, **kwargs)
        check_literal_id("workflow_id", workflow_id)
        self.workflow_id = workflow_id
        self.force_cleanup = force_cleanup

    def execute(self, context: Context) -> Any:
        """Wait; the first look is on the worker, so that nothing is deferred that is over already."""
        workflow_id = positive_id("workflow_id", self.workflow_id)
        if not self.deferrable:
            return super().execute(context)
        if not self.poke(context):
            from airflow_jobmon_provider.triggers.jobmon import WorkflowResumableTrigger

            self.defer(
                trigger=WorkflowResumableTrigger(
                    workflow_id=workflow_id,
                    jobmon_conn_id=self.jobmon_conn_id,
                    force_cleanup=self.force_cleanup,
                    deadline=time.time() + self.timeout,
                ),
                method_name="execute_complete",
            )
        return None

    def _look(self, hook: JobmonHook) -> bool:
        try:
            hook.get_workflow_run_factory(self.workflow_id).wait_for_workflow_resume(0, self.force_cleanup)
        except ResumeTimeout:
            self.log.info("Workflow %s is not resumable yet", self.workflow_id)
            return False
        self.log.info("Workflow %s is resumable", self.workflow_id)
        return True


class WorkflowRunSensor(_JobmonSensor):
    """Wait until a workflow run has ended DONE; fail if it ends otherwise.

    :param workflow_run_id: the run. Templated.
    :param jobmon_conn_id: id of the Jobmon connection. Default ``jobmon_default``. Templated.
    :param keep_alive: ``never`` (default): only watch. ``until_bound``: keep the run's heartbeat good until
        an executor has it. ``until_done``: to its end, for executors that do not beat themselves; hides a
        dead one from Jobmon's reaper.
    :param workflow_run_heartbeat_interval: seconds between heartbeats, if any. Default: the connection's,
        else Jobmon's setting, 30.
    :param heartbeat_report_by_buffer: a heartbeat is good for the interval times this. Default: the
        connection's, else Jobmon's setting, 3.1.
    :param poll_interval: longest pause in seconds between the triggerer's looks. Default 60.
    :param deferrable: wait in the triggerer instead of poking from workers. Default: ``[operators]
        default_deferrable``.
    :raises AirflowSensorTimeout: the run has not ended within ``timeout``.
    :raises AirflowException: the run ended otherwise than DONE.
    """

    template_fields: Sequence[str] = ("workflow_run_id", "jobmon_conn_id")
    ui_color = "#d6e8f5"

    def __init__(
        self,
        *,
        workflow_run_id: int | str,
        jobmon_conn_id: str = JobmonHook.default_conn_name,
        keep_alive: str = KeepAlive.NEVER.value,
        workflow_run_heartbeat_interval: float | None = None,
        heartbeat_report_by_buffer: float | None = None,
        poll_interval: float = DEFAULT_POLL_INTERVAL,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(jobmon_conn_id=jobmon_conn_id, deferrable=deferrable, **kwargs)
        check_literal_id("workflow_run_id", workflow_run_id)
        check_heartbeat(workflow_run_heartbeat_interval, heartbeat_report_by_buffer)
        self.workflow_run_id = workflow_run_id
        self.keep_alive = one_of("keep_alive", keep_alive, tuple(k.value for k in KeepAlive))
        self.workflow_run_heartbeat_interval = workflow_run_heartbeat_interval
        self.heartbeat_report_by_buffer = heartbeat_report_by_buffer
        self.poll_interval = seconds("poll_interval", poll_interval, above=0)
        self._last_status: RunStatus | None = None

    def execute(self, context: Context) -> Any:
        """Wait; the first look is on the worker, so that nothing is deferred that is over already."""
        workflow_run_id = positive_id("workflow_run_id", self.workflow_run_id)
        if not self.deferrable:
            return super().execute(context)
        if not self.poke(context):
            from airflow_jobmon_provider.triggers.jobmon import WorkflowRunHeartbeatTrigger

            self.defer(
                trigger=WorkflowRunHeartbeatTrigger(
                    workflow_run_id=workflow_run_id,
                    jobmon_conn_id=self.jobmon_conn_id,
                    workflow_run_heartbeat_interval=self.workflow_run_heartbeat_interval,
                    heartbeat_report_by_buffer=self.heartbeat_report_by_buffer,
                    keep_alive=self.keep_alive,
                    poll_interval=self.poll_interval,
                    deadline=time.time() + self.timeout,
                ),
                method_name="execute_complete",
            )
        return None

    def _look(self, hook: JobmonHook) -> bool:
        from airflow_jobmon_provider.client.conversations import RunOutcome, ended, look_at_run

        workflow_run_id = positive_id("workflow_run_id", self.workflow_run_id)
        interval, buffer = heartbeat_of(
            hook.server.settings, self.workflow_run_heartbeat_interval, self.heartbeat_report_by_buffer
        )
        keep_alive = KeepAlive(self.keep_alive)
        if (
            keep_alive is not KeepAlive.NEVER
            and not self.deferrable
            and self.poke_interval >= interval * buffer
        ):
            raise ValueError(
                f"poke_interval must be shorter than a heartbeat is good for ({interval * buffer:g} s), not"
                f" {self.poke_interval:g}: the run would be lost between two pokes"
            )
        look = look_at_run(
            workflow_run_id,
            keep_alive=keep_alive,
            heartbeat_interval=interval,
            report_by_buffer=buffer,
            last=self._last_status,
        )
        status = self._last_status = hook.converse(look, log=self.log)
        if not status.is_terminal:
            self.log.info("Workflow run %d is %s: %s", workflow_run_id, status, status.meaning)
            return False
        end = ended(workflow_run_id, status)
        if end.outcome is not RunOutcome.DONE:
            raise AirflowException(end.message)
        self.log.info(end.message)
        return True

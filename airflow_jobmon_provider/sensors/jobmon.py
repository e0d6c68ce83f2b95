"""Sensors that wait until a workflow is resumable, or until a workflow run has ended."""

from __future__ import annotations

import abc
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowNotFoundException,
    AirflowSensorTimeout,
    AirflowTaskTimeout,
    BaseSensorOperator,
    conf,
)

from airflow_jobmon_provider.client.exceptions import ResumeTimeout, ServerFailure, ServerUnreachable
from airflow_jobmon_provider.client.heartbeat import KeepAlive, check_heartbeat, heartbeat_of
from airflow_jobmon_provider.client.validation import one_of, positive_id, seconds
from airflow_jobmon_provider.hooks.jobmon import JobmonHook
from airflow_jobmon_provider.task.errors import airflow_errors
from airflow_jobmon_provider.task.limits import DEFAULT_POLL_INTERVAL, execution_deadline, remaining
from airflow_jobmon_provider.task.templates import RenderedBeforeDeferral, check_literal_id

if TYPE_CHECKING:
    from datetime import datetime

    from airflow.providers.common.compat.sdk import Context
    from airflow.triggers.base import BaseTrigger

    from airflow_jobmon_provider.client.conversations import Conversation
    from airflow_jobmon_provider.client.lifecycle import RunStatus

__all__ = ["WorkflowResumableSensor", "WorkflowRunSensor"]

T = TypeVar("T")

_JUST_AFTER = 0.01  # seconds: Airflow's base class takes a time-out for over once more than that has passed


class _JobmonSensor(RenderedBeforeDeferral, BaseSensorOperator):
    """What both sensors do alike: outlive an outage, keep to their limits, end as the trigger's event says.

    Airflow looks at ``timeout`` only after a poke and before a pause of ``poke_interval``. Here the last poke
    is at the time-out, and no request of a poke outlasts it by more than a second.
    """

    def __init__(self, *, jobmon_conn_id: str, deferrable: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.jobmon_conn_id = jobmon_conn_id
        self.deferrable = deferrable
        self._poke_until: float | None = None
        self._limit = "timeout"  # which the trigger's deadline was
        self._hook: JobmonHook | None = None  # of the first poke: the connection is read once

    def execute(self, context: Context) -> Any:
        """Wait; the first look is on the worker, so that don't defer a run that has already ended."""
        self._check_ids()
        timed_out = time.time() + self.timeout - self._waited(context)
        if not self.deferrable:
            self._poke_until = timed_out
            return super().execute(context)
        execution_end = execution_deadline(context, self.execution_timeout)
        first = timed_out if execution_end is None else min(timed_out, execution_end)
        self._poke_until = first
        hook = JobmonHook(self.jobmon_conn_id)
        if not self._poke(hook):
            limit = "timeout" if first == timed_out else "execution_timeout"
            trigger = self._trigger(hook, first)
            self.defer(trigger=trigger, method_name="come_back", kwargs={"limit": limit})
        return None

    def _waited(self, context: Context) -> float:
        """Return for how many seconds earlier pokes have waited, in mode ``reschedule``."""
        if self.deferrable or not self.reschedule:
            return 0.0
        ti: Any = context["ti"]
        # Airflow 2.11 sets a rescheduled task's start date to that of its first poke.
        ask = getattr(ti, "get_first_reschedule_date", None)
        first: datetime | None = getattr(ti, "start_date", None) if ask is None else ask(context)
        waited = 0.0 if first is None else time.time() - first.timestamp()
        return max(waited, 0.0)

    def _get_next_poke_interval(self, started_at: Any, run_duration: Any, poke_count: int) -> float:
        interval: float = super()._get_next_poke_interval(started_at, run_duration, poke_count)
        left: float = max(self.timeout - run_duration(), 0.0)
        return min(interval, left + _JUST_AFTER)

    def poke(self, context: Context) -> bool:
        """Look once. A server that does not answer now is asked again at the next poke."""
        first = self._hook is None and self._waited(context) < self.poke_interval / 2
        hook = self._hook or JobmonHook(self.jobmon_conn_id)
        try:
            _ = hook.server
        except AirflowNotFoundException as error:
            if first:
                raise
            # It was there at the first poke: Airflow 3 says so, too, when its API or secrets backend fails.
            self.log.warning(
                "Connection %s cannot be read now; will keep trying: %s", self.jobmon_conn_id, error
            )
            return False
        self._hook = hook
        return self._poke(hook)

    def _poke(self, hook: JobmonHook) -> bool:
        with airflow_errors():
            try:
                return self._look(hook)
            except (ServerFailure, ServerUnreachable) as error:
                self.log.warning("Jobmon is not answering; will keep trying: %s", error)
                return False

    def _converse(self, hook: JobmonHook, conversation: Conversation[T]) -> T:
        """Carry a conversation to its end, each request within the sensor's time-out."""
        from airflow_jobmon_provider.client.conversations import in_time

        if self._poke_until is not None:
            conversation = in_time(conversation, remaining(self._poke_until), time.monotonic)
        return hook.converse(conversation, log=self.log)

    @abc.abstractmethod
    def _check_ids(self) -> None:
        """Check the ids that a template may have rendered.

        :raises ValueError: one is no positive integer.
        """

    @abc.abstractmethod
    def _look(self, hook: JobmonHook) -> bool:
        """Return whether the wait is over."""

    @abc.abstractmethod
    def _trigger(self, hook: JobmonHook, deadline: float) -> BaseTrigger:
        """Return the trigger that goes on waiting.

        :param hook: that of the first look.
        :param deadline: seconds since the epoch.
        """

    def come_back(
        self, context: Context, event: dict[str, Any] | None = None, limit: str = "timeout"
    ) -> None:
        """Go on after a deferral, as :meth:`execute_complete` says.

        :param limit: which of the task's limits the trigger's deadline was.
        """
        self._limit = limit
        self.execute_complete(context, event)

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> None:
        """Succeed or fail as the trigger's event says.

        :param event: see the triggers in :mod:`airflow_jobmon_provider.triggers.jobmon`.
        """
        from airflow_jobmon_provider.triggers.events import Event

        seen = Event.read(event)
        if seen.status == "timeout":
            if self._limit == "execution_timeout":
                raise AirflowTaskTimeout(f"execution_timeout is over: {seen.message}")
            raise AirflowSensorTimeout(seen.message)
        if seen.status != "success":
            raise AirflowException(seen.message)
        self.log.info(seen.message)


class WorkflowResumableSensor(_JobmonSensor):
    """Wait until a workflow is resumable, that is until none of its runs is alive. It signals nothing.

    A run that an executor has taken and not begun (INSTANTIATED, LAUNCHED) is alive, which Jobmon itself
    overlooks.

    A workflow that is DONE counts as resumable, as it does for Jobmon.

    :param workflow_id: the workflow. Templated.
    :param jobmon_conn_id: id of the Jobmon connection. Default ``jobmon_default``. Templated.
    :param force_cleanup: clean task instances in KILL_SELF up instead of waiting for their workers. Needs
        Jobmon 3.7. Default False.
    :param deferrable: wait in the triggerer instead of poking from workers. Default: ``[operators]
        default_deferrable``.
    :raises AirflowSensorTimeout: not resumable within ``timeout``.
    :raises AirflowTaskTimeout: not within ``execution_timeout``, which holds while deferred, too.
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

    def _check_ids(self) -> None:
        positive_id("workflow_id", self.workflow_id)

    def _trigger(self, hook: JobmonHook, deadline: float) -> BaseTrigger:
        from airflow_jobmon_provider.triggers.jobmon import WorkflowResumableTrigger

        return WorkflowResumableTrigger(
            workflow_id=positive_id("workflow_id", self.workflow_id),
            jobmon_conn_id=self.jobmon_conn_id,
            force_cleanup=self.force_cleanup,
            deadline=deadline,
            server=hook.server.settings.service_url,
        )

    def _look(self, hook: JobmonHook) -> bool:
        from airflow_jobmon_provider.client.conversations import wait_until_resumable

        looking = wait_until_resumable(
            positive_id("workflow_id", self.workflow_id),
            timeout=0,
            force_cleanup=self.force_cleanup,
            clock=time.monotonic,
            at_rest=True,
        )
        try:
            self._converse(hook, looking)
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
    :raises AirflowTaskTimeout: not within ``execution_timeout``, which holds while deferred, too.
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

    def _check_ids(self) -> None:
        positive_id("workflow_run_id", self.workflow_run_id)

    def _trigger(self, hook: JobmonHook, deadline: float) -> BaseTrigger:
        from airflow_jobmon_provider.triggers.jobmon import WorkflowRunHeartbeatTrigger

        return WorkflowRunHeartbeatTrigger(
            workflow_run_id=positive_id("workflow_run_id", self.workflow_run_id),
            jobmon_conn_id=self.jobmon_conn_id,
            workflow_run_heartbeat_interval=self.workflow_run_heartbeat_interval,
            heartbeat_report_by_buffer=self.heartbeat_report_by_buffer,
            keep_alive=self.keep_alive,
            poll_interval=self.poll_interval,
            deadline=deadline,
            server=hook.server.settings.service_url,
        )

    def _look(self, hook: JobmonHook) -> bool:
        from airflow_jobmon_provider.client.conversations import RunOutcome, ended, look_at_run

        workflow_run_id = positive_id("workflow_run_id", self.workflow_run_id)
        heartbeat = heartbeat_of(
            hook.server.settings.heartbeat,
            self.workflow_run_heartbeat_interval,
            self.heartbeat_report_by_buffer,
        )
        keep_alive = KeepAlive(self.keep_alive)
        if (
            keep_alive is not KeepAlive.NEVER
            and not self.deferrable
            and self.poke_interval >= heartbeat.good_for
        ):
            raise ValueError(
                f"poke_interval must be shorter than a heartbeat is good for ({heartbeat.good_for:g} s), not"
                f" {self.poke_interval:g}: the run would be lost between two pokes"
            )
        look = look_at_run(
            workflow_run_id,
            keep_alive=keep_alive,
            heartbeat=heartbeat,
            last=self._last_status,
        )
        status = self._last_status = self._converse(hook, look)
        if not status.is_terminal:
            self.log.info("Workflow run %d is %s: %s", workflow_run_id, status, status.meaning)
            return False
        end = ended(workflow_run_id, status)
        if end.outcome is not RunOutcome.DONE:
            raise AirflowException(end.message)
        self.log.info(end.message)
        return True

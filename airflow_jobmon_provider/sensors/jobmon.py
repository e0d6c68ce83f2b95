"""Sensors that wait until a workflow is resumable, or until a workflow run has ended.

Airflow's flags mean the same in every mode, and for what is seen at the first look or later:

==================================  ===============  =============  ==============  =======================
what comes of the wait              no flag          ``soft_fail``  ``never_fail``  ``silent_fail``
==================================  ===============  =============  ==============  =======================
the run has ended, and not DONE     fails for good   skipped        skipped         fails for good
``timeout`` is over                 fails for good   skipped        skipped         fails for good
``execution_timeout`` is over       fails            skipped        skipped         fails
Jobmon does not answer (outage)     waits on         waits on       waits on        waits on
an error (below)                    fails            fails          skipped         logs it, and waits on
no readable event of the triggerer  fails            fails          fails           fails
a bad argument                      fails            fails          fails           fails
==================================  ===============  =============  ==============  =======================

* "Fails for good" is without a retry, which could not end otherwise. After "fails", Airflow's ``retries``
  follow.
* An error: no such workflow or run, a refused login, a connection that is not found or malformed, a
  certificate that is not trusted, a reply that is not Jobmon's. It says nothing of what is waited for, so
  ``soft_fail`` skips nothing because of it. Where the first look finds no such workflow, more than one, or
  a server that cannot do what is asked for, the task fails without a retry.
* ``execution_timeout`` is Airflow's: in mode ``reschedule`` it holds for each poke alone. On Airflow 2 a
  deferred task fails at it whatever the flags, as Airflow ends the task before the sensor hears of it.
* ``timeout``, ``poke_interval`` and ``max_wait`` take seconds or a ``timedelta``.
* Deferred, the triggerer looks often at first and then more rarely. ``poke_interval``, where it is given, is
  the longest pause between its looks; with ``exponential_backoff`` that is ``max_wait``. ``mode`` is for
  pokes alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException, conf

from airflow_jobmon_provider.client.exceptions import ResumeTimeout
from airflow_jobmon_provider.client.heartbeat import Heartbeat, KeepAlive, checked_interval, heartbeat_of
from airflow_jobmon_provider.client.lifecycle import Owner
from airflow_jobmon_provider.client.validation import one_of, positive_id, seconds
from airflow_jobmon_provider.hooks.jobmon import JobmonHook
from airflow_jobmon_provider.sensors._base import JobmonSensor
from airflow_jobmon_provider.task.limits import DEFAULT_POLL_INTERVAL
from airflow_jobmon_provider.task.templates import check_literal_id
from airflow_jobmon_provider.task.workflow import WORKFLOW_FIELDS, OfOneWorkflow, find_asked

if TYPE_CHECKING:
    from airflow.triggers.base import BaseTrigger

    from airflow_jobmon_provider.client.lifecycle import RunStatus

__all__ = ["WorkflowResumableSensor", "WorkflowRunSensor"]

_POKES_IN_A_WINDOW = 3  # so that a run that is kept alive outlives two pokes that fail


class WorkflowResumableSensor(OfOneWorkflow, JobmonSensor):
    """Wait until a workflow is resumable, that is until none of its runs is alive. It signals nothing.

    A run that an executor has taken and not begun (INSTANTIATED, LAUNCHED) is alive, which Jobmon itself
    overlooks.

    A workflow that is DONE counts as resumable, as it does for Jobmon.

    :param workflow_id: the workflow. Templated.
    :param workflow_name, tool_name, workflow_args, workflow_attributes: which workflow, where its id is not
        known: by its name, by the name of its tool, by its arguments, by some of its attributes (a dict).
        Exactly one workflow must have all that is given, and must have had a run. Templated.
    :param jobmon_conn_id: id of the Jobmon connection. Default ``jobmon_default``. Templated.
    :param force_cleanup: clean task instances in KILL_SELF up instead of waiting for their workers. Needs
        Jobmon 3.7. Default False.
    :param deferrable: wait in the triggerer instead of poking from workers. Default: ``[operators]
        default_deferrable``.
    :param kwargs: those of Airflow's sensors; see the top of this module.
    :raises AirflowSensorTimeout: not resumable within ``timeout``.
    :raises AirflowTaskTimeout: not within ``execution_timeout``, which holds while deferred, too.
    """

    template_fields: Sequence[str] = (*WORKFLOW_FIELDS, "jobmon_conn_id")
    ui_color = "#d6e8f5"

    def __init__(
        self,
        *,
        jobmon_conn_id: str = JobmonHook.default_conn_name,
        force_cleanup: bool = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(jobmon_conn_id=jobmon_conn_id, deferrable=deferrable, **kwargs)
        self.force_cleanup = force_cleanup
        self._found: int | None = None  # the workflow, once it is known

    def _check_ids(self) -> None:
        asked = self._asked_workflow()
        self._found = asked if isinstance(asked, int) else None

    def _knows_whom_to_watch(self) -> bool:
        return self._found is not None

    def _trigger(self, **terms: Any) -> BaseTrigger:
        return self._remade(
            {
                "workflow_id": self._found,
                "force_cleanup": self.force_cleanup,
                "poll_interval": self._longest_look_pause(),
                **terms,
            }
        )

    def _remade(self, arguments: dict[str, Any]) -> BaseTrigger:
        from airflow_jobmon_provider.triggers.jobmon import WorkflowResumableTrigger

        return WorkflowResumableTrigger(**arguments)

    def _look(self, hook: JobmonHook) -> bool:
        from airflow_jobmon_provider.client.conversations import wait_until_resumable

        if self._found is None:
            asked = self._asked_workflow()
            self._found = find_asked(asked, lambda finding: self._converse(hook, finding), 0, self.log)
        workflow_id = self._found
        looking = wait_until_resumable(
            workflow_id,
            timeout=0,
            force_cleanup=self.force_cleanup,
            clock=time.monotonic,
            at_rest=True,
        )
        try:
            self._converse(hook, looking)
        except ResumeTimeout:
            return self._not_yet(f"workflow {workflow_id} is not resumable yet")
        self.log.info("workflow %d is resumable", workflow_id)
        return True


class WorkflowRunSensor(JobmonSensor):
    """Wait until a workflow run has ended DONE; fail without a retry if it ends otherwise.

    :param workflow_run_id: the run. Templated.
    :param jobmon_conn_id: id of the Jobmon connection. Default ``jobmon_default``. Templated.
    :param keep_alive: ``never`` (default): only watch. ``until_bound``: keep the run's heartbeat good until
        an executor has it. ``until_done``: to its end, for executors that do not beat themselves; hides a
        dead one from Jobmon's reaper. Each poke is a heartbeat then, so no pause between two pokes is longer
        than a third of what one is good for (31 s by default), whatever ``poke_interval``,
        ``exponential_backoff`` and ``max_wait`` say. In mode ``reschedule`` Airflow's scheduler and the queue
        of workers make each pause longer, and on a busy Airflow the run may be lost: better defer.
    :param workflow_run_heartbeat_interval: seconds or ``timedelta`` between heartbeats, if any. Default: the
        connection's, else Jobmon's setting, 30; while deferred, four times that for a run that has been
        LINKING for ten minutes.
    :param heartbeat_report_by_buffer: a heartbeat is good for the interval times this. Default: the
        connection's, else Jobmon's setting, 3.1.
    :param poll_interval: longest pause, in seconds or as a ``timedelta``, between the triggerer's looks at a
        run for which it sends no heartbeats. Default: ``poke_interval``, if that is given, else 60.
    :param deferrable: wait in the triggerer instead of poking from workers. Default: ``[operators]
        default_deferrable``.
    :param kwargs: those of Airflow's sensors; see the top of this module.
    :raises AirflowSensorTimeout: the run has not ended within ``timeout``.
    :raises AirflowTaskTimeout: not within ``execution_timeout``, which holds while deferred, too.
    :raises AirflowFailException: the run ended otherwise than DONE.
    :raises ValueError: pokes are to keep the run alive, and ``poke_interval`` is given and as long as a
        heartbeat is good for.
    """

    template_fields: Sequence[str] = ("workflow_run_id", "jobmon_conn_id")
    ui_color = "#d6e8f5"

    def __init__(
        self,
        *,
        workflow_run_id: int | str,
        jobmon_conn_id: str = JobmonHook.default_conn_name,
        keep_alive: str = KeepAlive.NEVER.value,
        workflow_run_heartbeat_interval: float | timedelta | None = None,
        heartbeat_report_by_buffer: float | None = None,
        poll_interval: float | timedelta | None = None,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(jobmon_conn_id=jobmon_conn_id, deferrable=deferrable, **kwargs)
        check_literal_id("workflow_run_id", workflow_run_id)
        self.workflow_run_id = workflow_run_id
        self.keep_alive = one_of("keep_alive", keep_alive, tuple(k.value for k in KeepAlive))
        interval = checked_interval(workflow_run_heartbeat_interval, heartbeat_report_by_buffer)
        self.workflow_run_heartbeat_interval = interval
        self.heartbeat_report_by_buffer = heartbeat_report_by_buffer
        if poll_interval is None:
            poll_interval = self._longest_look_pause() or DEFAULT_POLL_INTERVAL
        self.poll_interval = seconds("poll_interval", poll_interval, above=0)
        self._last_status: RunStatus | None = None
        if interval is not None and heartbeat_report_by_buffer is not None:
            self._check_pokes(Heartbeat(interval, heartbeat_report_by_buffer))

    def _check_ids(self) -> None:
        positive_id("workflow_run_id", self.workflow_run_id)

    def _check_before_first_poke(self, hook: JobmonHook) -> None:
        self._check_pokes(self._heartbeat(hook))

    def _check_pokes(self, heartbeat: Heartbeat) -> None:
        beats = self.keep_alive != KeepAlive.NEVER and not self.deferrable
        if beats and self._has_poke_interval and self.poke_interval >= heartbeat.good_for:
            raise ValueError(
                f"poke_interval must be shorter than a heartbeat is good for ({heartbeat.good_for:g} s), not"
                f" {self.poke_interval:g}: the run would be lost between two pokes"
            )

    def _heartbeat(self, hook: JobmonHook | None) -> Heartbeat:
        default = Heartbeat() if hook is None else hook.server.settings.heartbeat
        return heartbeat_of(default, self.workflow_run_heartbeat_interval, self.heartbeat_report_by_buffer)

    def _longest_pause(self) -> float:
        keep_alive, status = KeepAlive(self.keep_alive), self._last_status
        taken = status is not None and status.stage.owner is Owner.EXECUTOR
        if keep_alive is KeepAlive.NEVER or (keep_alive is KeepAlive.UNTIL_BOUND and taken):
            return super()._longest_pause()
        return self._heartbeat(self._hook).good_for / _POKES_IN_A_WINDOW

    def _trigger(self, **terms: Any) -> BaseTrigger:
        return self._remade(
            {
                "workflow_run_id": positive_id("workflow_run_id", self.workflow_run_id),
                "workflow_run_heartbeat_interval": self.workflow_run_heartbeat_interval,
                "heartbeat_report_by_buffer": self.heartbeat_report_by_buffer,
                "keep_alive": self.keep_alive,
                "poll_interval": self.poll_interval,
                **terms,
            }
        )

    def _remade(self, arguments: dict[str, Any]) -> BaseTrigger:
        from airflow_jobmon_provider.triggers.jobmon import WorkflowRunHeartbeatTrigger

        return WorkflowRunHeartbeatTrigger(**arguments)

    def _look(self, hook: JobmonHook) -> bool:
        from airflow_jobmon_provider.client.conversations import RunOutcome, ended, look_at_run

        workflow_run_id = positive_id("workflow_run_id", self.workflow_run_id)
        look = look_at_run(
            workflow_run_id,
            keep_alive=KeepAlive(self.keep_alive),
            heartbeat=self._heartbeat(hook),
            last=self._last_status,
        )
        status = self._last_status = self._converse(hook, look)
        if not status.is_terminal:
            return self._not_yet(f"workflow run {workflow_run_id} is {status}: {status.meaning}")
        end = ended(workflow_run_id, status)
        if end.outcome is not RunOutcome.DONE:
            raise AirflowFailException(end.message)
        self.log.info(end.message)
        return True

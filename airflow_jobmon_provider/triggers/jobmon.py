"""Triggers that wait for Jobmon in the triggerer's event loop, without a worker slot.

Each outlives a server that fails or is not reached, fires one event at the end, and never dies by an
exception (design rule 3). An event is a small dict: ``status`` (``success``, ``failed``, ``timeout`` or
``error``), the ids, and ``message``, one line for the user.
"""

from __future__ import annotations

import abc
import asyncio
import random
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_jobmon_provider.client import decisions
from airflow_jobmon_provider.client.decisions import KeepAlive
from airflow_jobmon_provider.client.exceptions import JobmonError, ResumeTimeout
from airflow_jobmon_provider.client.validation import one_of, positive_id, seconds
from airflow_jobmon_provider.common import (
    DEFAULT_POLL_INTERVAL,
    ON_KILL_TIMEOUT,
    check_heartbeat,
    heartbeat_of,
)
from airflow_jobmon_provider.hooks.jobmon import JobmonHook

if TYPE_CHECKING:
    from airflow_jobmon_provider.client.async_requester import AsyncRequester
    from airflow_jobmon_provider.client.conversations import RunEnd

# RunOutcome → status of the event
_EVENT_STATUS = {"done": "success", "failed": "failed", "handoff_timeout": "timeout", "timeout": "timeout"}

_NO_DEADLINE = 10 * 365 * 86400.0
_CONNECTION_TRIES = 30  # about four minutes


class _JobmonTrigger(BaseTrigger):
    """Gets a transport from the connection, waits, and fires exactly one event."""

    def __init__(self, jobmon_conn_id: str) -> None:
        super().__init__()
        self.jobmon_conn_id = jobmon_conn_id

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield one event."""
        from airflow_jobmon_provider.client.text import excerpt

        try:
            requester = await self._connect()
            async with requester:
                event = await self._wait(requester)
        except (JobmonError, AirflowNotFoundException, ValueError) as error:
            event = self._event("error", str(error))
        except Exception as error:  # whatever it is, the task must learn of it (rule 3)
            self.log.exception("Trigger failed unexpectedly")
            event = self._event("error", f"unexpected {type(error).__name__}: {excerpt(error)}")
        yield TriggerEvent(event)

    @abc.abstractmethod
    async def _wait(self, requester: AsyncRequester) -> dict[str, Any]:
        """Wait, and return the event."""

    @abc.abstractmethod
    def _event(self, status: str, message: str) -> dict[str, Any]:
        """Return the event for an end without a result."""

    async def _connect(self) -> AsyncRequester:
        """Read the connection, also while Airflow's own API is restarting."""
        from airflow_jobmon_provider.client.text import excerpt

        hook = JobmonHook(self.jobmon_conn_id)
        failures = 0
        while True:
            try:
                return await hook.get_async_conn()
            except (JobmonError, AirflowNotFoundException, ValueError):
                raise
            except Exception as error:
                failures += 1
                if failures == _CONNECTION_TRIES:
                    raise
                self.log.warning("Connection %s cannot be read: %s", self.jobmon_conn_id, excerpt(error))
                await asyncio.sleep(decisions.outage_pause(failures, None, 10, random.uniform))


class WorkflowResumableTrigger(_JobmonTrigger):
    """Fires when a workflow is resumable, or its deadline is over.

    The event: ``{"status": "success" | "timeout" | "error", "workflow_id": int, "message": str}``.

    :param workflow_id: the workflow.
    :param jobmon_conn_id: id of the connection.
    :param force_cleanup: clean KILL_SELF task instances up instead of waiting for them. Default False.
    :param deadline: seconds since the epoch, so that it survives a triggerer's failover. Default: none.
    :raises ValueError: the id is no positive integer, or the deadline no number.
    """

    def __init__(
        self,
        workflow_id: int,
        jobmon_conn_id: str = JobmonHook.default_conn_name,
        force_cleanup: bool = False,
        deadline: float | None = None,
    ) -> None:
        super().__init__(jobmon_conn_id)
        self.workflow_id = positive_id("workflow_id", workflow_id)
        self.force_cleanup = force_cleanup
        self.deadline = None if deadline is None else seconds("deadline", deadline)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return class path and arguments: plain values, no secrets."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "workflow_id": self.workflow_id,
                "jobmon_conn_id": self.jobmon_conn_id,
                "force_cleanup": self.force_cleanup,
                "deadline": self.deadline,
            },
        )

    async def _wait(self, requester: AsyncRequester) -> dict[str, Any]:
        from airflow_jobmon_provider.client.conversations import wait_until_resumable

        waiting = wait_until_resumable(
            self.workflow_id,
            timeout=_NO_DEADLINE if self.deadline is None else _remaining(self.deadline),
            force_cleanup=self.force_cleanup,
            clock=time.monotonic,
        )
        try:
            await requester.converse(waiting, log=self.logger())
        except ResumeTimeout as error:
            return self._event("timeout", str(error))
        return self._event("success", f"workflow {self.workflow_id} is resumable")

    def _event(self, status: str, message: str) -> dict[str, Any]:
        return {"status": status, "workflow_id": self.workflow_id, "message": message}


class WorkflowRunHeartbeatTrigger(_JobmonTrigger):
    """Keeps a workflow run alive as long as that is Airflow's business, and fires when the run has ended.

    While the run is LINKING it beats, and each beat is also the look at the status. From BOUND on it only
    looks, with a request that changes nothing: a dead executor must be seen by Jobmon's reaper (design rule
    1; ``keep_alive="until_done"`` opts out of that for executors that do not beat themselves).

    The event: ``{"status": "success" | "failed" | "timeout" | "error", "workflow_run_id": int,
    "workflow_run_status": code or None, "message": str}``. ``success`` is DONE, ``failed`` any other end.

    :param workflow_run_id: the run.
    :param jobmon_conn_id: id of the connection.
    :param workflow_run_heartbeat_interval: seconds between heartbeats. Default: the connection's, else
        Jobmon's setting, 30.
    :param heartbeat_report_by_buffer: a heartbeat is good for the interval times this. Default: the
        connection's, else Jobmon's setting, 3.1.
    :param keep_alive: ``until_bound`` (default), ``until_done``, or ``never``: only watch.
    :param poll_interval: longest pause in seconds between looks at a run that an executor has. Default 60.
    :param handoff_deadline: seconds since the epoch; a run still LINKING then is aborted. Default: none.
    :param deadline: seconds since the epoch after which the watch ends. Default: none.
    :param owned: the run is the task's own: abort it if the task gives up, at the deadline or because a user
        marks or clears it, while it is LINKING. Default False.
    :param workflow_id: the run's workflow, for ``cancel_on_kill``. Default: not known.
    :param cancel_on_kill: also stop an owned run that an executor has, by a cold resume signal to its
        workflow, when a user marks or clears the task. Default False.
    :param created_at: seconds since the epoch when the run was made. Default: now. Looks are frequent while a
        run is young.
    :raises ValueError: an argument is out of range.
    """

    def __init__(
        self,
        workflow_run_id: int,
        jobmon_conn_id: str = JobmonHook.default_conn_name,
        workflow_run_heartbeat_interval: float | None = None,
        heartbeat_report_by_buffer: float | None = None,
        keep_alive: str = KeepAlive.UNTIL_BOUND.value,
        poll_interval: float = DEFAULT_POLL_INTERVAL,
        handoff_deadline: float | None = None,
        deadline: float | None = None,
        owned: bool = False,
        created_at: float | None = None,
        workflow_id: int | None = None,
        cancel_on_kill: bool = False,
        startup_timeout: float | None = None,
        server: str | None = None,
    ) -> None:
        super().__init__(jobmon_conn_id)
        check_heartbeat(workflow_run_heartbeat_interval, heartbeat_report_by_buffer)
        self.workflow_run_id = positive_id("workflow_run_id", workflow_run_id)
        self.workflow_run_heartbeat_interval = workflow_run_heartbeat_interval
        self.heartbeat_report_by_buffer = heartbeat_report_by_buffer
        self.keep_alive = one_of("keep_alive", keep_alive, tuple(k.value for k in KeepAlive))
        self.poll_interval = seconds("poll_interval", poll_interval, above=0)
        self.handoff_deadline = (
            None if handoff_deadline is None else seconds("handoff_deadline", handoff_deadline)
        )
        self.deadline = None if deadline is None else seconds("deadline", deadline)
        self.owned = owned
        self.workflow_id = None if workflow_id is None else positive_id("workflow_id", workflow_id)
        self.cancel_on_kill = cancel_on_kill
        self.startup_timeout = (
            None if startup_timeout is None else seconds("startup_timeout", startup_timeout)
        )
        self.server = server
        self.created_at = time.time() if created_at is None else seconds("created_at", created_at)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return class path and arguments: plain values, no secrets."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "workflow_run_id": self.workflow_run_id,
                "jobmon_conn_id": self.jobmon_conn_id,
                "workflow_run_heartbeat_interval": self.workflow_run_heartbeat_interval,
                "heartbeat_report_by_buffer": self.heartbeat_report_by_buffer,
                "keep_alive": self.keep_alive,
                "poll_interval": self.poll_interval,
                "handoff_deadline": self.handoff_deadline,
                "deadline": self.deadline,
                "owned": self.owned,
                "created_at": self.created_at,
                "workflow_id": self.workflow_id,
                "cancel_on_kill": self.cancel_on_kill,
                "startup_timeout": self.startup_timeout,
                "server": self.server,
            },
        )

    async def _wait(self, requester: AsyncRequester) -> dict[str, Any]:
        from airflow_jobmon_provider.client.conversations import watch_run
        from airflow_jobmon_provider.client.follow import ProgressWatch

        interval, buffer = heartbeat_of(
            requester.settings, self.workflow_run_heartbeat_interval, self.heartbeat_report_by_buffer
        )
        age = max(time.time() - self.created_at, 0.0)
        progress = self.workflow_id and ProgressWatch(self.workflow_id, time.monotonic, age=age)
        watch = watch_run(
            self.workflow_run_id,
            keep_alive=KeepAlive(self.keep_alive),
            heartbeat_interval=interval,
            report_by_buffer=buffer,
            poll_interval=self.poll_interval,
            clock=time.monotonic,
            handoff_timeout=None if self.handoff_deadline is None else _remaining(self.handoff_deadline),
            timeout=None if self.deadline is None else _remaining(self.deadline),
            owned=self.owned,
            age=age,
            progress=progress or None,
            startup_timeout=self.startup_timeout,
        )
        return run_event(self.workflow_run_id, await requester.converse(watch, log=self.logger()))

    async def on_kill(self) -> None:
        """Abort the run if it is ours and nobody has taken it; stop it as ``cancel_on_kill`` says.

        Airflow (3.3 and later) calls this when a user ends the task; not at a triggerer's restart or
        failover, where the run goes on.
        """
        if not self.owned:
            return
        from airflow_jobmon_provider.client.ownership import give_up_run

        giving_up = give_up_run(
            self.workflow_run_id,
            stop_workflow=self.workflow_id if self.cancel_on_kill else None,
            timeout=ON_KILL_TIMEOUT,
            clock=time.monotonic,
        )
        try:
            async with await JobmonHook(self.jobmon_conn_id).get_async_conn() as requester:
                status = await requester.converse(giving_up, log=self.log)
        except (JobmonError, AirflowNotFoundException, ValueError) as error:
            self.log.warning("Workflow run %d could not be stopped: %s", self.workflow_run_id, error)
        else:
            self.log.info("Workflow run %d is now %s", self.workflow_run_id, status or "out of reach")

    def _event(self, status: str, message: str) -> dict[str, Any]:
        return {
            "status": status,
            "workflow_run_id": self.workflow_run_id,
            "workflow_run_status": None,
            "message": message,
        }


def run_event(workflow_run_id: int, end: RunEnd) -> dict[str, Any]:
    """Return the event that says how the watch of a run ended."""
    return {
        "status": _EVENT_STATUS[end.outcome.value],
        "workflow_run_id": workflow_run_id,
        "workflow_run_status": end.status.value if end.status else None,
        "message": end.message,
    }


def _remaining(deadline: float) -> float:
    """Seconds until a deadline; from here on a monotonic clock counts them, which nobody sets back."""
    return max(deadline - time.time(), 0.0)

"""Triggers that wait for Jobmon in the triggerer's event loop, without a worker slot.

Each outlives a server that fails or is not reached, fires one event at the end, and never dies by an
exception (docs/rules.md, rule 3). What an event says is in :mod:`airflow_jobmon_provider.triggers.events`.
"""

from __future__ import annotations

import abc
import asyncio
import functools
import random
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_jobmon_provider.client.cancellation import wait_for
from airflow_jobmon_provider.client.exceptions import (
    JobmonError,
    ResumeTimeout,
    ServerFailure,
    ServerUnreachable,
)
from airflow_jobmon_provider.client.heartbeat import KeepAlive, check_heartbeat, heartbeat_of
from airflow_jobmon_provider.client.validation import one_of, positive_id, seconds
from airflow_jobmon_provider.hooks.jobmon import JobmonHook
from airflow_jobmon_provider.task.limits import DEFAULT_POLL_INTERVAL, ON_KILL_TIMEOUT, remaining
from airflow_jobmon_provider.task.state import SUCCESS, is_ended_while_deferred, state_while_deferred

if TYPE_CHECKING:
    from airflow_jobmon_provider.client.async_requester import AsyncRequester
    from airflow_jobmon_provider.client.conversations import Conversation, Queue, RunEnd
    from airflow_jobmon_provider.client.heartbeat import Heartbeat
    from airflow_jobmon_provider.client.lifecycle import RunStatus
    from airflow_jobmon_provider.execution.deferred import DeferredExecutor
    from airflow_jobmon_provider.triggers.events import Event, ResumableEvent, RunEvent

__all__ = ["WorkflowResumableTrigger", "WorkflowRunHeartbeatTrigger"]

# On Airflow 2, a task that comes back after its execution_timeout ends before any code of ours runs.
_NOTHING_COMES_AFTER = airflow_version.startswith("2.")

_NO_DEADLINE = 10 * 365 * 86400.0
_CONNECTION_TRIES = 100  # about a quarter of an hour
_FIRST_READING = 5.0  # seconds for it, also where a deadline is over already

# Seconds for `on_kill`, which has 30 ([triggerer] on_kill_timeout), and for the parts of it. A triggerer's
# first request to Airflow's API builds its routes, which takes many seconds on a slow machine (3.3.2).
_KILL_TIME = 28.0
_KILL_ASKING = 15.0
_KILL_READING = 5.0

_END_PATIENCE = 5.0  # seconds for the host of an executor whose task's time is over


class _ConnectionUnread(Exception):
    """The connection could not be read.

    :param status: status of the event that follows.
    """

    def __init__(self, message: str, status: str = "error") -> None:
        super().__init__(message)
        self.status = status


class _JobmonTrigger(BaseTrigger):
    """Gets a transport from the connection, waits, and fires exactly one event."""

    def __init__(self, jobmon_conn_id: str, server: str | None) -> None:
        super().__init__()
        self.jobmon_conn_id = jobmon_conn_id
        self.server = server

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield one event."""
        from airflow_jobmon_provider.client.redaction import excerpt

        server = self.server
        try:
            requester = await self._connect_in_time()
            server = server or requester.url
            async with requester:
                event = await self._wait(requester)
        except _ConnectionUnread as error:
            event = self._event(error.status, str(error))
        except (ImportError, SyntaxError) as error:  # asking again would not help
            event = self._event(
                "error",
                f"the triggerer cannot import what this trigger needs: {excerpt(error)}. Compare the packages"
                " installed there with what airflow-provider-jobmon requires",
            )
        except (JobmonError, AirflowNotFoundException, ValueError) as error:
            event = self._event("error", str(error))
        except Exception as error:  # whatever it is, the task must learn of it (docs/rules.md, rule 3)
            self.log.exception("Trigger failed unexpectedly")
            event = self._event("error", f"unexpected {type(error).__name__}: {excerpt(error)}")
        yield TriggerEvent(replace(event, server=server).payload())

    @abc.abstractmethod
    async def _wait(self, requester: AsyncRequester) -> Event:
        """Wait, and return the event."""

    @abc.abstractmethod
    def _event(self, status: str, message: str) -> Event:
        """Return an event with every id that is known, for an end without a result."""

    @abc.abstractmethod
    def _limits(self) -> list[tuple[float, str]]:
        """Return the deadlines that hold while the connection cannot be read.

        :returns: for each its seconds since the epoch and the status of the event that it brings.
        """

    async def _connect_in_time(self) -> AsyncRequester:
        """Connect before the first of the trigger's deadlines."""
        rest, status = min(
            ((remaining(when) or _FIRST_READING, status) for when, status in self._limits()),
            default=(_NO_DEADLINE, "error"),
        )
        return await self._connect(rest, status)

    async def _connect(self, timeout: float, status: str = "error") -> AsyncRequester:
        """Return a transport to the server on which the trigger's ids live.

        Where the connection cannot be read, it is asked for again: Airflow's API, database or secrets backend
        may be restarting, and Airflow 3 then says that no such connection is defined.

        :param timeout: seconds after which to give up.
        :param status: status of the event that this brings.
        :raises _ConnectionUnread: not read in time, or not at one of ``_CONNECTION_TRIES`` tries.
        :raises ConfigError: the connection is malformed, or names another server.
        :raises ImportError, SyntaxError: something that is needed cannot be imported.
        """
        from airflow_jobmon_provider.client.conversations import pacing
        from airflow_jobmon_provider.client.redaction import excerpt

        started = time.monotonic()
        failures = 0
        while True:
            rest = timeout - (time.monotonic() - started)
            try:
                return await wait_for(self._open(), max(rest, 0.001))
            except (JobmonError, ImportError, SyntaxError):
                raise
            except Exception as error:
                failures += 1
                reason = excerpt(error) or "Airflow gives no answer"
            waited = time.monotonic() - started
            what = f"connection {self.jobmon_conn_id!r} could not be read within {waited:.0f} s: {reason}"
            if waited >= timeout:
                raise _ConnectionUnread(f"the time is over, and {what}", status)
            if failures == _CONNECTION_TRIES:
                raise _ConnectionUnread(f"{what}. The triggerer must find it, too, not only the workers")
            self.log.warning("Connection %s cannot be read: %s", self.jobmon_conn_id, reason)
            pause = pacing.outage_pause(failures, None, 10, random.uniform)
            await asyncio.sleep(min(pause, timeout - waited))

    async def _open(self) -> AsyncRequester:
        hook = JobmonHook(self.jobmon_conn_id)
        requester = await hook.get_async_conn()
        if self.server is not None:
            hook.check_server(self.server)
        return requester


class WorkflowResumableTrigger(_JobmonTrigger):
    """Fires when a workflow is resumable, or its deadline is over.

    The event: :class:`~airflow_jobmon_provider.triggers.events.ResumableEvent`, as a dict.

    :param workflow_id: the workflow.
    :param jobmon_conn_id: id of the connection.
    :param force_cleanup: clean KILL_SELF task instances up instead of waiting for them. Default False.
    :param deadline: seconds since the epoch, so that it survives a triggerer's failover. Default: none.
    :param reset_running_jobs: the run that is waited for may have missed the signal to stop, as it was not
        BOUND or RUNNING: send it again, cold (True) or hot (False), until it is. Default None: no signal.
    :param server: address of the server on which the workflow lives (``Settings.service_url``). Where the
        connection names another, the trigger ends with an error. Default: not known, whatever it names is
        taken for it.
    :param kill_patience: seconds for which ``force_cleanup`` waits for KILL_SELF task instances as long as
        none of them ends. Default 0.
    :param poll_interval: longest pause in seconds between two looks. Default: 10, which it reaches after five
        minutes.
    :raises ValueError: the id is no positive integer, or a time no number.
    """

    def __init__(
        self,
        workflow_id: int,
        jobmon_conn_id: str = JobmonHook.default_conn_name,
        force_cleanup: bool = False,
        deadline: float | None = None,
        reset_running_jobs: bool | None = None,
        kill_patience: float = 0.0,
        poll_interval: float | None = None,
        server: str | None = None,
    ) -> None:
        super().__init__(jobmon_conn_id, server)
        self.reset_running_jobs = reset_running_jobs
        self.kill_patience = seconds("kill_patience", kill_patience)
        self.workflow_id = positive_id("workflow_id", workflow_id)
        self.force_cleanup = force_cleanup
        self.deadline = None if deadline is None else seconds("deadline", deadline)
        self.poll_interval = (
            None if poll_interval is None else seconds("poll_interval", poll_interval, above=0)
        )

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return class path and arguments: plain values, no secrets."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "workflow_id": self.workflow_id,
                "jobmon_conn_id": self.jobmon_conn_id,
                "force_cleanup": self.force_cleanup,
                "deadline": self.deadline,
                "reset_running_jobs": self.reset_running_jobs,
                "kill_patience": self.kill_patience,
                "poll_interval": self.poll_interval,
                "server": self.server,
            },
        )

    async def _wait(self, requester: AsyncRequester) -> Event:
        from airflow_jobmon_provider.client.conversations import wait_until_resumable
        from airflow_jobmon_provider.client.protocol import routes

        signal = self.reset_running_jobs
        waiting = wait_until_resumable(
            self.workflow_id,
            # A deadline that is over is still one look, and no long one.
            timeout=_NO_DEADLINE if self.deadline is None else max(remaining(self.deadline), 0.001),
            force_cleanup=self.force_cleanup,
            clock=time.monotonic,
            at_rest=True,
            kill_patience=self.kill_patience,
            signal=None if signal is None else routes.set_resume(self.workflow_id, signal),
            longest=self.poll_interval,
        )
        try:
            await requester.converse(waiting, log=self.logger())
        except (ResumeTimeout, ServerFailure, ServerUnreachable) as error:  # the time is over
            return self._event("timeout", str(error))
        return self._event("success", f"workflow {self.workflow_id} is resumable")

    def _event(self, status: str, message: str) -> ResumableEvent:
        from airflow_jobmon_provider.triggers.events import ResumableEvent

        return ResumableEvent(status, message, self.workflow_id)

    def _limits(self) -> list[tuple[float, str]]:
        return [] if self.deadline is None else [(self.deadline, "timeout")]


class WorkflowRunHeartbeatTrigger(_JobmonTrigger):
    """Keeps a workflow run alive as long as that is Airflow's business, and fires when the run has ended.

    While the run is LINKING it beats, and each beat is also the look at the status. From BOUND on it only
    looks, with a request that changes nothing: Jobmon's reaper must see a dead executor (docs/rules.md,
    rule 1; ``keep_alive="until_done"`` opts out of that for executors that do not beat themselves).

    The event: :class:`~airflow_jobmon_provider.triggers.events.RunEvent`, as a dict.

    :param workflow_run_id: the run.
    :param jobmon_conn_id: id of the connection.
    :param workflow_run_heartbeat_interval: seconds between heartbeats. Default: the connection's, else
        Jobmon's setting, 30; four times that for a run that has been LINKING for ten minutes.
    :param heartbeat_report_by_buffer: a heartbeat is good for the interval times this. Default: the
        connection's, else Jobmon's setting, 3.1.
    :param keep_alive: ``until_bound`` (default), ``until_done``, or ``never``: only watch.
    :param poll_interval: longest pause in seconds between looks at a run that an executor has. Default 60.
    :param handoff_deadline: seconds since the epoch; a run still LINKING then is aborted. Default: none.
    :param deadline: seconds since the epoch after which the watch ends. Default: none.
    :param owned: the run is the task's own: abort it if the task gives up, at the deadline or because a user
        marks or clears it, while it is LINKING. Default False.
    :param workflow_id: the run's workflow, for ``cancel_on_kill`` and the event. Default: not known.
    :param cancel_on_kill: also stop an owned run that an executor has, by a cold resume signal to its
        workflow, when a user marks or clears the task, or the deadline is over. Default False.
    :param created_at: seconds since the epoch when the run was made. Default: now. Looks are frequent while a
        run is young.
    :param startup_timeout: seconds that an owned run may stay in BOUND, INSTANTIATED or LAUNCHED; then it is
        moved to ERROR, as nothing else ends a run whose executor died there. Default: for ever.
    :param server: address of the server on which the run lives (``Settings.service_url``). Where the
        connection names another, the trigger ends with an error. Default: not known, whatever it names is
        taken for it.
    :param executor: what is known of the task's own executor, see
        :mod:`airflow_jobmon_provider.execution.deferred`; its output goes to the trigger's log. Default: it
        has none.
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
        executor: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(jobmon_conn_id, server)
        self.executor = executor
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
            None if startup_timeout is None else seconds("startup_timeout", startup_timeout, above=0)
        )
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
                "executor": self.executor,
            },
        )

    async def _wait(self, requester: AsyncRequester) -> Event:
        from airflow_jobmon_provider.client.conversations import RunOutcome, give_up_overdue_run
        from airflow_jobmon_provider.triggers.events import RunEvent

        keep_alive = KeepAlive(self.keep_alive)
        executor = self._own_executor()
        if executor is None:
            watch = self._watch(requester, keep_alive)
            end = await requester.converse(watch, log=self.logger())
        else:
            assert self.workflow_id is not None
            end = await executor.watch(
                requester,
                functools.partial(self._watch, requester),
                heartbeat=self._heartbeat(requester),
                server=self.server or requester.url,
                workflow_id=self.workflow_id,
                workflow_run_id=self.workflow_run_id,
                keep_alive=keep_alive,
            )
        stopping = give_up_overdue_run(
            end,
            self.workflow_run_id,
            stop_workflow=self._workflow_to_stop(),
            last_chance=_NOTHING_COMES_AFTER,
            clock=time.monotonic,
        )
        end = await requester.converse(stopping, log=self.logger())
        if end.outcome is RunOutcome.TIMEOUT:
            await self._end_executor(requester, end.status, _END_PATIENCE)
        return RunEvent.of(end, self.workflow_run_id, self.workflow_id)

    def _heartbeat(self, requester: AsyncRequester) -> Heartbeat:
        interval, buffer = self.workflow_run_heartbeat_interval, self.heartbeat_report_by_buffer
        return heartbeat_of(requester.settings.heartbeat, interval, buffer)

    def _watch(
        self,
        requester: AsyncRequester,
        keep_alive: KeepAlive,
        status: RunStatus | None = None,
        queue: Queue | None = None,
    ) -> Conversation[RunEnd]:
        from airflow_jobmon_provider.client.conversations import ProgressWatch, watch_run

        age = max(time.time() - self.created_at, 0.0)
        progress = self.workflow_id and ProgressWatch(self.workflow_id, time.monotonic, age=age)
        return watch_run(
            self.workflow_run_id,
            keep_alive=keep_alive,
            heartbeat=self._heartbeat(requester),
            poll_interval=self.poll_interval,
            clock=time.monotonic,
            handoff_timeout=None if self.handoff_deadline is None else remaining(self.handoff_deadline),
            timeout=None if self.deadline is None else remaining(self.deadline),
            startup_timeout=self.startup_timeout,
            owned=self.owned,
            age=age,
            status=status,
            progress=progress or None,
            queue=queue,
        )

    def _own_executor(self) -> DeferredExecutor | None:
        """Return the task's own executor, if it can be seen from here."""
        if self.executor is None:
            return None
        from airflow_jobmon_provider.execution.deferred import DeferredExecutor

        executor = DeferredExecutor(self.executor, self.logger())
        if executor.is_seen:
            return executor
        self.log.info(
            "The executor of workflow run %d is on another machine, with its output: %s. The run is watched",
            self.workflow_run_id,
            self.executor["machine"],
        )
        return None

    def _workflow_to_stop(self) -> int | None:
        return self.workflow_id if self.owned and self.cancel_on_kill else None

    async def on_kill(self) -> None:
        """Abort the run if it is ours and nobody has taken it; stop it as ``cancel_on_kill`` says.

        Airflow (3.3 and later) calls this when a user ends the task, and also in a triggerer that had stalled
        while another took its triggers over. There the run goes on, so Airflow is asked for the task's state
        first.
        """
        if not self.owned:
            return
        from airflow_jobmon_provider.client.redaction import excerpt

        end = time.monotonic() + _KILL_TIME
        state = await state_while_deferred(self.task_instance, _KILL_ASKING)
        if not is_ended_while_deferred(state):
            whose = (
                "alone" if state == SUCCESS else "to the triggerer, or the next try, that has the task now"
            )
            self.log.warning(
                "Airflow ends this trigger, and the task's state is: %s. Workflow run %d is left %s",
                state,
                self.workflow_run_id,
                whose,
            )
            return

        left = min(end - time.monotonic(), ON_KILL_TIMEOUT)
        try:
            # A little longer than what is inside, which ends by itself and says more.
            await wait_for(self._give_up(left), left + 1)
        except Exception as error:  # whatever it is, the user's act must not fail because of it
            ours = isinstance(error, (JobmonError, AirflowNotFoundException, ValueError))
            why = str(error) if ours else excerpt(error) or f"no answer within {left:g} s"
            self.log.warning("workflow run %d could not be stopped: %s", self.workflow_run_id, why)

    async def _give_up(self, timeout: float) -> None:
        from airflow_jobmon_provider.client.conversations import give_up_run

        end = time.monotonic() + timeout
        async with await self._connect(_KILL_READING) as requester:
            giving_up = give_up_run(
                self.workflow_run_id,
                stop_workflow=self._workflow_to_stop(),
                timeout=max(end - time.monotonic(), 0.0),
                clock=time.monotonic,
            )
            status = await requester.converse(giving_up, log=self.log)
            self.log.info("workflow run %d is now %s", self.workflow_run_id, status or "out of reach")
            await self._end_executor(requester, status, max(end - time.monotonic(), 0.0))

    async def _end_executor(
        self, requester: AsyncRequester, status: RunStatus | None, patience: float
    ) -> None:
        """End our own executor, which has no run any more, or give it time to end by itself.

        :param patience: seconds for its host to answer: the task has to learn in time that its time is over.
        """
        executor = self._own_executor()
        if executor is None or self.workflow_id is None or not (self.cancel_on_kill or status == "A"):
            return
        server = self.server or requester.url
        heartbeat = self._heartbeat(requester)
        job = executor.placement.job(
            requester.settings, heartbeat, server, self.workflow_id, self.workflow_run_id
        )
        try:
            await wait_for(executor.end(status, job), patience)
        except Exception as error:  # the run has been given up all the same
            why = str(error) or f"its host did not answer within {patience:.0f} s"
            self.log.warning("the executor could not be ended: %s", why)

    def _event(self, status: str, message: str) -> RunEvent:
        from airflow_jobmon_provider.triggers.events import RunEvent

        return RunEvent(status, message, self.workflow_id, workflow_run_id=self.workflow_run_id)

    def _limits(self) -> list[tuple[float, str]]:
        limits = [] if self.deadline is None else [(self.deadline, "timeout")]
        if self.handoff_deadline is not None and remaining(self.handoff_deadline):
            # An executor may have the run by now, which is no reason to stop it: only the task gives up.
            limits.append((self.handoff_deadline, "error"))
        return limits

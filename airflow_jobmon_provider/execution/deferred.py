"""What a deferred task knows of its executor, and what a triggerer does with it: plain values."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from airflow_jobmon_provider.client.conversations import Conversation, Log, Queue, RunEnd
from airflow_jobmon_provider.client.heartbeat import Heartbeat, KeepAlive
from airflow_jobmon_provider.client.lifecycle import RunStatus
from airflow_jobmon_provider.execution.async_execution import AsyncExecution
from airflow_jobmon_provider.execution.async_hosts import host_of
from airflow_jobmon_provider.execution.command import Command, later
from airflow_jobmon_provider.execution.hosts import this_machine
from airflow_jobmon_provider.execution.job import Job, JobSpec
from airflow_jobmon_provider.execution.placement import Placement
from airflow_jobmon_provider.execution.watching import watch_executor

if TYPE_CHECKING:
    from airflow_jobmon_provider.client.async_requester import AsyncRequester

Watch: TypeAlias = Callable[[KeepAlive, RunStatus | None, Queue | None], Conversation[RunEnd]]

STOP_PATIENCE = 180  # seconds: the executor hears of a signal by its next heartbeat, and its tasks by theirs
KILL_PATIENCE = 60  # seconds that it has then to end by itself


def kept(placement: Placement, job: Job | None) -> dict[str, Any]:
    """Return what is kept of an executor while its task is deferred.

    :param placement: where and how it was started.
    :param job: the job; None: its host could not be reached yet.
    """
    return {
        **placement.as_dict(),
        "job": None if job is None else list(job),
        "machine": this_machine() if placement.ssh_conn_id is None else None,
    }


class DeferredExecutor:
    """An executor whose task is deferred.

    :param values: see :func:`kept`.
    :param log: the trigger's.
    """

    def __init__(self, values: Mapping[str, Any], log: Log) -> None:
        self.placement = Placement.from_dict(values)
        self._job = Job(*values["job"]) if values.get("job") else None
        self._machine: str | None = values.get("machine")
        self._log = log

    @property
    def is_seen(self) -> bool:
        """Whether its host can be reached from here."""
        return self._machine in (None, this_machine())

    async def watch(
        self,
        requester: AsyncRequester,
        watch: Watch,
        *,
        heartbeat: Heartbeat,
        server: str,
        workflow_id: int,
        workflow_run_id: int,
        keep_alive: KeepAlive,
    ) -> RunEnd:
        """Watch its run to the end, with its output in the log, and see to the end if it dies.

        :param requester: to the run's server.
        :param watch: watches the run.
        :param server: address by which that server is known.
        """
        spec = self.placement.job(requester.settings, heartbeat, server, workflow_id, workflow_run_id)
        async with host_of(self.placement.ssh_conn_id) as host:
            follower = self.placement.follower(host.name, self._log, requester.settings.secrets)
            follower.job = self._job
            execution = AsyncExecution(host, self.placement.launcher_name, self._start(spec), follower)
            async with execution.following():
                watching = watch_executor(
                    workflow_run_id,
                    follower,
                    lambda keep_alive, status: watch(keep_alive, status, follower),
                    keep_alive=keep_alive,
                    status=None,
                    clock=time.monotonic,
                )
                end = await requester.converse(watching, log=self._log, sleep=execution.wait)
                if end.status is not None and end.status.is_terminal:
                    await execution.end()
        return end

    def _start(self, spec: JobSpec) -> Command[Job]:
        if self._job is None:
            return self.placement.launcher.start(spec, self.placement.options)
        return spec.attach()  # what starts a job is long, as the executor is part of it

    async def end(self, status: RunStatus | None, spec: JobSpec) -> None:
        """End it, after its run was given up: a user has ended the task, or its time is over.

        :param status: what the run is now. One that was told to stop has time for that; then the job is
            ended, and killed a minute later, whatever becomes of the triggerer.
        :param spec: what was to be started.
        :raises HostNotReached, HostRefused: it could not be ended.
        """
        async with host_of(self.placement.ssh_conn_id) as host:
            job = self._job
            if job is None:
                found: Job = await host.run(spec.attach())
                job = found
            patience = 0 if status is not None and status.is_terminal else STOP_PATIENCE
            end, kill = (self.placement.launcher.end(job, kill=kill) for kill in (False, True))
            await host.run(later(end, patience) if patience else end)
            await host.run(later(kill, patience + KILL_PATIENCE))

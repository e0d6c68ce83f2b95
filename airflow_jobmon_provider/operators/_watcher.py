"""How a worker waits for the end of its task's run, with an executor of its own or without."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airflow_jobmon_provider.client.conversations import (
    ProgressWatch,
    RunOutcome,
    end_without_executor,
    ended,
    watch_run,
)
from airflow_jobmon_provider.client.heartbeat import KeepAlive
from airflow_jobmon_provider.client.lifecycle import RunStatus
from airflow_jobmon_provider.execution.environment import executor_environment, find_python
from airflow_jobmon_provider.execution.executor import Exit
from airflow_jobmon_provider.execution.process import Execution, ExecutorEnded, executor_command
from airflow_jobmon_provider.operators._attempt import EXECUTOR_GRACE

if TYPE_CHECKING:
    from airflow_jobmon_provider.client.conversations import Conversation, RunEnd
    from airflow_jobmon_provider.client.heartbeat import Heartbeat
    from airflow_jobmon_provider.hooks.jobmon import JobmonHook
    from airflow_jobmon_provider.operators._decided import OwnRun, Wanted
    from airflow_jobmon_provider.triggers.jobmon import WorkflowRunHeartbeatTrigger


def executor_starter(
    wanted: Wanted, hook: JobmonHook, heartbeat: Heartbeat
) -> Callable[[int, int], Execution] | None:
    """Return what starts our own executor, given a workflow's id and its run's; None: none is wanted.

    :param wanted: the operator's parameters.
    :param hook: the connection.
    :param heartbeat: the run's.
    :raises ConfigError: Jobmon's client is not there, or cannot reach the server.
    """
    cluster_name = wanted.cluster_name
    if cluster_name is None:
        return None
    python = find_python(wanted.jobmon_python or hook.server.jobmon_python)
    environment = executor_environment(hook.server.settings, heartbeat)

    def start(workflow_id: int, run: int) -> Execution:
        command = executor_command(python, workflow_id, run, cluster_name)
        return Execution(command, environment, wanted.log, hook.server.settings.secrets)

    return start


def command_by_hand(server: str, workflow_id: int, workflow_run_id: int) -> str:
    """Return the command that a user can give on a cluster to execute a run: a line for a shell.

    :param server: its address with the route prefix, without credentials.
    """
    url = urlsplit(server)
    settings = {
        "JOBMON__HTTP__SERVICE_URL": f"{url.scheme}://{url.netloc}",
        "JOBMON__HTTP__ROUTE_PREFIX": url.path,
    }
    command = executor_command("python", workflow_id, workflow_run_id, "CLUSTER")
    return " ".join(
        [*(f"{name}={shlex.quote(value)}" for name, value in settings.items()), shlex.join(command)]
    )


class Watcher:
    """Watches a run in this process, or has a trigger do the same.

    :param wanted: the operator's parameters.
    :param hook: the connection.
    :param own: the run.
    :param heartbeat: what it gets until an executor has it.
    """

    def __init__(self, wanted: Wanted, hook: JobmonHook, own: OwnRun, heartbeat: Heartbeat) -> None:
        self._wanted = wanted
        self._hook = hook
        self._own = own
        self._run = own.workflow_run_id
        self._heartbeat = heartbeat
        self._keep_alive = KeepAlive(wanted.keep_alive)
        self._log = wanted.log

    def tell_how_to_execute(self) -> None:
        """Log the command that executes the run, which waits until a user or another task gives it."""
        wanted, own = self._wanted, self._own
        assert own.workflow_id is not None
        until = "has to be kept alive by another task"
        if wanted.wait_for_completion:
            until = f"is kept alive for up to {wanted.handoff_timeout:g} s (handoff_timeout)"
        self._log.info(
            "workflow run %d waits for an executor, and %s. To execute it, run this where Jobmon's client is,"
            " with its Python and the name of the cluster (elsewhere than here, copy executor.py there first,"
            " which is one file):\n%s",
            self._run,
            until,
            command_by_hand(self._hook.server.settings.service_url, own.workflow_id, self._run),
        )

    def wait(self, status: RunStatus) -> RunEnd:
        """Watch the run to its end, while another executor than ours is at work on it.

        :param status: what the run was when it was last looked at.
        """
        return self._hook.converse(self._watch(self._keep_alive, status), log=self._log)

    def wait_for(self, execution: Execution) -> RunEnd:
        """Watch the run while our own executor is at work on it, and see to its end if that one dies."""
        # It is LINKING, else there would be no executor of ours.
        watch = self._watch(self._keep_alive, RunStatus.LINKING)
        try:
            end = self._hook.converse(watch, log=self._log, sleep=execution.wait)
        except ExecutorEnded:
            execution.stop()  # at once: what it has started must not go on for nobody
            status, keep_alive = self._end_after_executor(execution)
            if status is not None and status.is_terminal:
                end = ended(self._run, status)
            else:
                end = self._hook.converse(self._watch(keep_alive, status), log=self._log)
        execution.stop(EXECUTOR_GRACE)
        others = execution.exit_code == Exit.NOT_TAKEN  # then how our executor ended says nothing of the run
        if end.outcome is not RunOutcome.DONE and not others and execution.problem is not None:
            end = replace(end, message=f"{execution.problem}. {end.message}")
        return end

    def _end_after_executor(self, execution: Execution) -> tuple[RunStatus | None, KeepAlive]:
        """End what our dead executor has left, unless that is another executor's.

        :returns: the run's status, and who is to beat for it from now on; None: it was not asked for.
        """
        run = self._run
        if execution.exit_code == Exit.NOT_TAKEN:
            self._log.warning("workflow run %d is not this task's to execute; will keep watching it", run)
            return None, self._keep_alive
        ending = end_without_executor(run, taken=execution.has_taken, clock=time.monotonic)
        status = self._hook.converse(ending, log=self._log)
        if not status.is_terminal and not execution.has_taken:
            self._log.warning("Our executor has died; another one has workflow run %d: it is %s", run, status)
            return status, self._keep_alive
        if not status.is_terminal:
            self._log.warning(
                "The executor of workflow run %d has died (exit code %s) and left it %s; waiting for"
                " Jobmon's reaper to end it, which takes minutes",
                run,
                execution.exit_code,
                status,
            )
        return status, KeepAlive.NEVER

    def trigger(self) -> WorkflowRunHeartbeatTrigger:
        """Return what watches the run in the triggerer, as :meth:`wait` does here."""
        from airflow_jobmon_provider.triggers.jobmon import WorkflowRunHeartbeatTrigger

        wanted, own = self._wanted, self._own
        return WorkflowRunHeartbeatTrigger(
            workflow_run_id=self._run,
            jobmon_conn_id=own.jobmon_conn_id,
            workflow_run_heartbeat_interval=self._heartbeat.interval,
            heartbeat_report_by_buffer=self._heartbeat.buffer,
            keep_alive=wanted.keep_alive,
            poll_interval=wanted.poll_interval,
            handoff_deadline=own.created_at + wanted.handoff_timeout,
            deadline=own.deadline,  # Airflow's own time does not pass while a task is deferred
            owned=True,
            created_at=own.created_at,
            workflow_id=own.workflow_id,
            cancel_on_kill=own.cancel_on_kill,
            startup_timeout=wanted.startup_timeout,
            server=own.server,
        )

    def _watch(self, keep_alive: KeepAlive, status: RunStatus | None) -> Conversation[RunEnd]:
        wanted, own = self._wanted, self._own
        assert own.workflow_id is not None
        age = max(time.time() - own.created_at, 0.0)
        return watch_run(
            self._run,
            keep_alive=keep_alive,
            heartbeat=self._heartbeat,
            poll_interval=wanted.poll_interval,
            clock=time.monotonic,
            handoff_timeout=max(wanted.handoff_timeout - age, 0.0),
            startup_timeout=wanted.startup_timeout,
            owned=True,
            age=age,
            status=status,
            progress=ProgressWatch(own.workflow_id, time.monotonic, age=age),
        )

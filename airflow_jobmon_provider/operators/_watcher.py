"""How a worker waits for the end of its task's run, with an executor of its own or without."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_jobmon_provider.client.conversations import ProgressWatch, watch_run
from airflow_jobmon_provider.client.heartbeat import KeepAlive
from airflow_jobmon_provider.client.lifecycle import RunStatus
from airflow_jobmon_provider.execution.command import HostNotReached, HostRefused
from airflow_jobmon_provider.execution.environment import executor_environment, jobmon_settings
from airflow_jobmon_provider.execution.files import remove
from airflow_jobmon_provider.execution.hosts import SshHost, ThisHost
from airflow_jobmon_provider.execution.job_execution import JobExecution
from airflow_jobmon_provider.execution.launchers import find_launcher
from airflow_jobmon_provider.execution.placement import Placement, checked_folder, setup_lines
from airflow_jobmon_provider.execution.process import Execution, executor_command
from airflow_jobmon_provider.execution.watching import EXECUTOR_GRACE, ExecutorEnded, watch_executor
from airflow_jobmon_provider.task.templates import InvalidParameter

if TYPE_CHECKING:
    from airflow_jobmon_provider.client.conversations import Conversation, Queue, RunEnd
    from airflow_jobmon_provider.client.heartbeat import Heartbeat
    from airflow_jobmon_provider.execution.hosts import Host
    from airflow_jobmon_provider.execution.job import JobSpec
    from airflow_jobmon_provider.hooks.jobmon import JobmonHook
    from airflow_jobmon_provider.operators._decided import OwnRun, Wanted
    from airflow_jobmon_provider.triggers.jobmon import WorkflowRunHeartbeatTrigger


_START_PATIENCE = 30.0  # seconds until a task is deferred although its executor's host has not answered
_START_PATIENCE_HERE = 90.0  # no triggerer could start it here


def placement_of(wanted: Wanted, hook: JobmonHook) -> Placement | None:
    """Return where and how the run is to be executed; None: elsewhere.

    :param wanted: the operator's parameters, as templates have rendered them.
    :param hook: the connection.
    :raises InvalidParameter: one of them cannot be.
    :raises ConfigError: what is needed is not on this worker.
    """
    if wanted.cluster_name is None:
        return None
    try:
        options = find_launcher(wanted.launcher).check_options(wanted.launcher_options or {})
        setup = setup_lines(wanted.setup_commands)
        folder = checked_folder(wanted.remote_dir)
    except ValueError as error:
        raise InvalidParameter(str(error)) from None
    placement = Placement(
        cluster_name=wanted.cluster_name,
        ssh_conn_id=wanted.ssh_conn_id or None,
        launcher_name=wanted.launcher,
        options=tuple(options),
        setup_commands=tuple(setup),
        python=wanted.jobmon_python or hook.server.jobmon_python,
        remote_dir=folder,
        handoff_timeout=wanted.handoff_timeout,
        queue_timeout=wanted.queue_timeout,
    )
    return placement.checked()


class Starter:
    """Starts our own executor of a run.

    :param placement: where and how.
    :param wanted: the operator's parameters.
    :param hook: the connection.
    :param heartbeat: the run's.
    :raises ConfigError: Jobmon's client cannot reach the server.
    """

    def __init__(self, placement: Placement, wanted: Wanted, hook: JobmonHook, heartbeat: Heartbeat) -> None:
        self.placement = placement
        self.is_job = placement.is_job or wanted.deferrable
        self._log = wanted.log
        self._settings = hook.server.settings
        self._heartbeat = heartbeat
        jobmon_settings(self._settings, heartbeat, here=placement.ssh_conn_id is None)

    def start(self, own: OwnRun, status: RunStatus) -> Execution | JobExecution | None:
        """Start an executor, or find the job that an earlier try has started.

        :param status: the run's. One that is past LINKING has an executor: a job of ours is found, and
            anything else has no need of us.
        """
        assert own.workflow_id is not None
        if self.is_job:
            execution = self._start_job(own, attach=status is not RunStatus.LINKING)
            if status is RunStatus.LINKING:
                return execution
            execution.wait_for_start(_START_PATIENCE)
            if status.is_terminal and execution.follower.job is None:  # its output is not worth a longer wait
                execution.let_go()
                return None
            return None if execution.follower.refused is not None else execution
        if status is not RunStatus.LINKING:
            return None
        assert self.placement.python is not None
        command = executor_command(
            self.placement.python, own.workflow_id, own.workflow_run_id, self.placement.cluster_name
        )
        environment = executor_environment(self._settings, self._heartbeat)
        return Execution(command, environment, self._log, self._settings.secrets)

    def end(self, own: OwnRun) -> None:
        """End the job of a run that has ended, if it has one: it may wait in a queue, or hang.

        :param own: the run.
        """
        if not self.is_job:
            return
        host = self._host()
        try:
            job = host.run(self._job(own).attach())
            host.run(self.placement.launcher.end(job, kill=False))
            host.run(remove(job.folder))
        except HostRefused:
            pass  # there is none
        except HostNotReached as error:
            self._log.warning("%s: the run's job is not ended: %s", host.name, error)
        finally:
            host.close()

    def _host(self) -> Host:
        connection = self.placement.ssh_conn_id
        return ThisHost() if connection is None else SshHost(connection)

    def _job(self, own: OwnRun) -> JobSpec:
        assert own.workflow_id is not None
        server = own.server or self._settings.service_url
        run = own.workflow_run_id
        return self.placement.job(self._settings, self._heartbeat, server, own.workflow_id, run)

    def _start_job(self, own: OwnRun, *, attach: bool) -> JobExecution:
        placement, job = self.placement, self._job(own)
        host = self._host()
        return JobExecution(
            host,
            placement.launcher,
            job.attach() if attach else placement.launcher.start(job, placement.options),
            placement.follower(host.name, self._log, self._settings.secrets),
        )


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

    def wait_for(self, execution: Execution | JobExecution, status: RunStatus) -> RunEnd:
        """Watch the run while our own executor is at work on it, and see to its end if that one dies."""
        queue = execution.follower if isinstance(execution, JobExecution) else None

        def watch(keep_alive: KeepAlive, seen: RunStatus | None) -> Conversation[RunEnd]:
            return self._watch(keep_alive, seen, queue)

        watching = watch_executor(
            self._run, execution, watch, keep_alive=self._keep_alive, status=status, clock=time.monotonic
        )
        end = self._hook.converse(watching, log=self._log, sleep=_PausesWith(execution))
        over = end.status is not None and end.status.is_terminal
        if over or not execution.has_taken:
            execution.stop(0 if over else EXECUTOR_GRACE)
        else:  # it may be at work on the run, of which the server does not tell
            execution.let_go()
        return end

    def defer_execution(
        self, execution: Execution | JobExecution, placement: Placement
    ) -> dict[str, Any] | None:
        """Let an executor of ours go, for a trigger to follow.

        :returns: what the trigger needs to know of it; None: it did not begin, so there is nothing to defer.
        """
        from airflow_jobmon_provider.execution.deferred import kept

        assert isinstance(execution, JobExecution)
        # On another host that does not answer just now, the trigger goes on starting it.
        here = placement.ssh_conn_id is None
        execution.wait_for_start(_START_PATIENCE_HERE if here else _START_PATIENCE)
        job = execution.follower.job
        if execution.problem is not None or (here and job is None):
            return None
        execution.let_go()
        return kept(placement, job)

    def trigger(self, executor: dict[str, Any] | None = None) -> WorkflowRunHeartbeatTrigger:
        """Return what watches the run in the triggerer, as :meth:`wait` does here.

        :param executor: what is known of our own, see ``execution.deferred``. Default: there is none.
        """
        from airflow_jobmon_provider.triggers.jobmon import WorkflowRunHeartbeatTrigger

        wanted, own = self._wanted, self._own
        return WorkflowRunHeartbeatTrigger(
            workflow_run_id=self._run,
            jobmon_conn_id=own.jobmon_conn_id,
            # None: nobody has set it, and the trigger may beat for a run that waits long less often.
            workflow_run_heartbeat_interval=None if self._heartbeat.eases else self._heartbeat.interval,
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
            executor=executor,
        )

    def _watch(
        self, keep_alive: KeepAlive, status: RunStatus | None, queue: Queue | None = None
    ) -> Conversation[RunEnd]:
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
            queue=queue,
        )


class _PausesWith:
    """Waits while an executor is at work, and says once that it has ended."""

    def __init__(self, execution: Execution | JobExecution) -> None:
        self._execution = execution
        self._is_over = False

    def __call__(self, seconds: float) -> None:
        if self._is_over:
            time.sleep(seconds)
            return
        try:
            self._execution.wait(seconds)
        except ExecutorEnded:
            self._is_over = True
            self._execution.stop()  # at once: what it has started must not go on for nobody
            raise

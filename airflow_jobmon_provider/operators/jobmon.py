"""Operators that resume a Jobmon workflow and create its next workflow run.

They hold parameters, and speak with Airflow: templates, XComs, links, deferrals. What they do on a worker is
in modules that only a running task imports:

* ``_resume``: tell the active run to stop, wait, reset the tasks. ``_raised``: raise resources only once.
* ``_attempt``: what a try has come to, and what becomes of its run when the try is broken off.
* ``_beginning``: how a try comes by its run. ``_retry``: what a retry remembers, and what follows from it.
* ``_watcher``: wait here for the run's end. ``_ending``: what a task tells of it, and if a retry can help.
* ``_decided``: what holds after a deferral.

``_executing`` has the parameters by which a task executes a run.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.common.compat.sdk import AirflowException, AirflowTaskTimeout, BaseOperator, conf

from airflow_jobmon_provider.client.heartbeat import KeepAlive, checked_interval, heartbeat_of
from airflow_jobmon_provider.client.lifecycle import RunStatus
from airflow_jobmon_provider.client.validation import one_of, positive_id, seconds
from airflow_jobmon_provider.hooks.jobmon import JobmonHook
from airflow_jobmon_provider.links.jobmon import JobmonWorkflowLink, workflow_url
from airflow_jobmon_provider.operators._executing import ExecutingOperator
from airflow_jobmon_provider.task.errors import airflow_errors
from airflow_jobmon_provider.task.limits import DEFAULT_POLL_INTERVAL, execution_deadline, remaining
from airflow_jobmon_provider.task.templates import RenderedBeforeDeferral
from airflow_jobmon_provider.task.workflow import WORKFLOW_FIELDS, OfOneWorkflow, as_kept, find_asked

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_jobmon_provider.client.conversations import Conversation, RunEnd
    from airflow_jobmon_provider.operators._attempt import Attempt
    from airflow_jobmon_provider.operators._decided import OwnRun, Resume
    from airflow_jobmon_provider.operators._ending import Ending
    from airflow_jobmon_provider.operators._retry import RunMemory
    from airflow_jobmon_provider.operators._watcher import Starter, Watcher
    from airflow_jobmon_provider.triggers.events import ResumableEvent

__all__ = ["CreateWorkflowRunOperator", "ResumeWorkflowOperator"]

_IF_DONE = ("skip", "fail", "pass")
_KEEP_ALIVE = (KeepAlive.UNTIL_BOUND.value, KeepAlive.UNTIL_DONE.value)


def _workflow_of(
    operator: ResumeWorkflowOperator | CreateWorkflowRunOperator,
    context: Context,
    hook: JobmonHook,
    timeout: float,
) -> int:
    """Return the id of a task's workflow, and store its link, whatever comes next (docs/rules.md, rule 10).

    :param timeout: seconds in which a workflow that is named must be found; 0: it is looked for once.
    :raises InvalidParameter: the id is no positive integer, or a name is empty.
    :raises AirflowNotFoundException, ConfigError: the connection is not there, or is malformed.
    :raises JobmonError: no workflow is called so, or more than one is, or the server did not answer.
    """
    from airflow_jobmon_provider.operators._retry import remembered_workflow

    def converse(finding: Conversation[int]) -> int:
        from airflow_jobmon_provider.client.conversations import in_time

        limited = in_time(finding, timeout, time.monotonic) if timeout else finding
        return hook.converse(limited, log=operator.log)

    url = ""
    try:
        asked = operator._asked_workflow()
        kept = as_kept(asked)
        if kept is not None:
            known = remembered_workflow(context, hook.server.settings.service_url, kept)
            asked = asked if known is None else known
        workflow_id = find_asked(asked, converse, timeout, operator.log)
        url = workflow_url(hook.server.gui_url, workflow_id)
        return workflow_id
    finally:
        JobmonWorkflowLink().store(context, url)


class ResumeWorkflowOperator(RenderedBeforeDeferral, OfOneWorkflow, BaseOperator):
    """Make a Jobmon workflow ready to run again: stop its active run, wait, reset its tasks.

    :param workflow_id: the workflow. Templated.
    :param workflow_name, tool_name, workflow_args, workflow_attributes: which workflow, where its id is not
        known: by its name, by the name of its tool, by its arguments, by some of its attributes (a dict).
        Exactly one workflow must have all that is given, and must have had a run. Templated.
    :param jobmon_conn_id: id of the Jobmon connection. Default ``jobmon_default``. Templated.
    :param reset_running_jobs: True: cold resume, running tasks are killed. False: hot resume, they are let
        finish. Default True.
    :param reset_if_running: also reset tasks that count as running. Default: as ``reset_running_jobs``.
    :param resume_timeout: seconds (or a ``timedelta``) until the workflow must be resumable, also where the
        server does not answer; 0: check once. Resetting the tasks comes after it: the server may need minutes
        for a million tasks, and only ``execution_timeout`` bounds it. Default 300.
    :param force_cleanup: clean task instances in KILL_SELF up instead of waiting for their workers, for jobs
        that were ended from outside (scancel, node failure). Those that are in KILL_SELF before the run is
        told to stop are cleaned up at once. Those that come to it by the signal may still be at work: they
        have 95 s (half of what is left of ``resume_timeout``, if that is less) in which none of them ends,
        and what is at work even then overlaps with the next run for some seconds. Needs Jobmon 3.7. Default
        False.
    :param increase_resources: raise the resources of tasks that failed for lack of them, by the tasks' own
        ``resource_scales``, before they are reset; once, also where a retry follows. None: if the server can
        (Jobmon 3.6 and later, whose own command does so by default); the log says if it cannot. True: fail
        if it cannot. False: leave them as they are. Tasks that ask for the same resources share one record,
        which Jobmon raises once for each of them that failed: by a scale of 0.5, 10 becomes 15 where one
        failed, and 35 where three did (Jobmon 3.7). Default None.
    :param if_done: what to do about a workflow that is DONE. ``skip`` (default): skip this task, and with it
        those downstream; for a DAG of one workflow. ``pass``: return the id, change nothing; for mapped
        tasks (``expand``), where Airflow would skip what is downstream of all of them as soon as one is
        skipped. ``CreateWorkflowRunOperator`` then succeeds at once. ``fail``: fail, without a retry.
    :param deferrable: wait in the triggerer instead of on a worker. Default: ``[operators]
        default_deferrable``.
    :returns: the workflow id, as XCom.
    :raises AirflowSkipException: the workflow is DONE and ``if_done="skip"``.
    :raises AirflowTaskTimeout: ``execution_timeout`` is over. It counts from the task's start, also while the
        task is deferred.
    :raises AirflowException: anything else that keeps the workflow from being resumed, in one line.
    """

    template_fields: Sequence[str] = (*WORKFLOW_FIELDS, "jobmon_conn_id")
    ui_color = "#d6e8f5"
    operator_extra_links = (JobmonWorkflowLink(),)

    def __init__(
        self,
        *,
        jobmon_conn_id: str = JobmonHook.default_conn_name,
        reset_running_jobs: bool = True,
        reset_if_running: bool | None = None,
        resume_timeout: float | timedelta = 300,
        force_cleanup: bool = False,
        increase_resources: bool | None = None,
        if_done: str = "skip",
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.jobmon_conn_id = jobmon_conn_id
        self.reset_running_jobs = reset_running_jobs
        self.reset_if_running = reset_running_jobs if reset_if_running is None else reset_if_running
        self.resume_timeout = seconds("resume_timeout", resume_timeout)
        self.force_cleanup = force_cleanup
        self.increase_resources = increase_resources
        self.if_done = one_of("if_done", if_done, _IF_DONE)
        self.deferrable = deferrable
        self._decided: dict[str, Any] | None = None  # kept over a deferral

    def execute(self, context: Context) -> int:
        """Signal the resume, wait for it here or in the triggerer, and reset the tasks."""
        from airflow_jobmon_provider.operators._decided import Resume
        from airflow_jobmon_provider.operators._resume import ResumeWork

        hook = JobmonHook(self.jobmon_conn_id)
        deadline = time.time() + self.resume_timeout
        with airflow_errors():
            workflow_id = _workflow_of(self, context, hook, self.resume_timeout)
            decided = Resume(
                workflow_id=workflow_id,
                jobmon_conn_id=self.jobmon_conn_id,
                server=hook.server.settings.service_url,
                reset_if_running=self.reset_if_running,
                increase_resources=False,  # until the server has told whether it can
                if_done=self.if_done,
                resume_timeout=self.resume_timeout,
                deadline=deadline,
                execution_deadline=execution_deadline(context, self.execution_timeout),
            )
            work = ResumeWork(decided, hook, self.log)
            begun = work.begin(self.reset_running_jobs, self.force_cleanup, self.increase_resources)
            details = begun.details
            if not begun.at_rest:
                if self.deferrable:
                    self._defer(work.decided, self.reset_running_jobs if begun.signal else None)
                details = work.wait(self.force_cleanup, begun.signal)
            return work.finish(context, details)

    def _defer(self, decided: Resume, reset_running_jobs: bool | None) -> NoReturn:
        from airflow_jobmon_provider.triggers.jobmon import WorkflowResumableTrigger

        self.log.info(
            "workflow %d is not resumable yet; waiting in the triggerer for up to %.0f s",
            decided.workflow_id,
            remaining(decided.first_deadline),
        )
        self.defer(
            trigger=WorkflowResumableTrigger(
                workflow_id=decided.workflow_id,
                jobmon_conn_id=decided.jobmon_conn_id,
                force_cleanup=self.force_cleanup,
                deadline=decided.first_deadline,
                reset_running_jobs=reset_running_jobs,
                kill_patience=decided.kill_patience,
                server=decided.server,
            ),
            method_name="come_back",
            kwargs={"decided": asdict(decided)},
        )
        raise AssertionError("defer() does not return")

    def come_back(
        self, context: Context, event: dict[str, Any] | None = None, decided: dict[str, Any] | None = None
    ) -> int:
        """Go on after a deferral, as :meth:`execute_complete` says.

        :param decided: what ``execute`` had decided before the deferral.
        """
        self._decided = decided
        return self.execute_complete(context, event)

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> int:
        """Go on when the trigger has fired, as was decided before the deferral.

        Where a version of this provider deferred the task that did not say what was decided, the operator's
        own arguments are all there is.

        :param event: see :class:`~airflow_jobmon_provider.triggers.jobmon.WorkflowResumableTrigger`.
        """
        from airflow_jobmon_provider.operators._decided import Resume
        from airflow_jobmon_provider.operators._resume import ResumeWork
        from airflow_jobmon_provider.triggers.events import ResumableEvent

        resumable = ResumableEvent.read(event)
        decided = self._decided
        plan = self._decided_by_an_older_version(resumable) if decided is None else Resume(**decided)
        if resumable.status != "success":
            if resumable.status == "timeout" and plan.is_over:
                raise AirflowTaskTimeout(f"execution_timeout is over: {resumable.message}")
            raise AirflowException(resumable.message)
        with airflow_errors():
            hook = JobmonHook(plan.jobmon_conn_id)
            hook.check_server(resumable.server or plan.server)
            return ResumeWork(plan, hook, self.log).finish(context)

    def _decided_by_an_older_version(self, event: ResumableEvent) -> Resume:
        from airflow_jobmon_provider.operators._decided import Resume

        if event.workflow_id is None:
            event.read(None)
        return Resume(
            workflow_id=positive_id("workflow_id", event.workflow_id),
            jobmon_conn_id=self.jobmon_conn_id,
            server=event.server,
            reset_if_running=self.reset_if_running,
            increase_resources=self.increase_resources is True,
            if_done=self.if_done,
            resume_timeout=self.resume_timeout,
            deadline=time.time(),
            execution_deadline=None,
        )


class CreateWorkflowRunOperator(RenderedBeforeDeferral, OfOneWorkflow, ExecutingOperator):
    """Create the next run of a Jobmon workflow, keep it alive until an executor has it, and wait for its end.

    With ``cluster_name``, the worker executes the run itself, with the Jobmon client that is installed there;
    without, an executor elsewhere has to, which finds the run's id in the XCom ``workflow_run_id``.

    The run is LINKING at first. Airflow keeps its heartbeat good until an executor takes it (BOUND), and from
    then on only watches: the executor's own heartbeat has to tell Jobmon whether it lives.

    A retry goes on with the run that an earlier try created, while it lives (Airflow 3.3 and later remember
    it), unless a user has cleared the task. Where the reply to creating one was lost, it waits until that run
    has been reaped. So no retry makes a second run.

    What was decided before a deferral holds after it: ids, connection and limits do not change with the
    templates that Airflow renders anew.

    :param workflow_id: the workflow. Templated.
    :param workflow_name, tool_name, workflow_args, workflow_attributes: which workflow, where its id is not
        known: by its name, by the name of its tool, by its arguments, by some of its attributes (a dict).
        Exactly one workflow must have all that is given, and must have had a run. Templated.
    :param jobmon_conn_id: id of the Jobmon connection. Default ``jobmon_default``. Templated.
    :param cluster_name: execute the run on this cluster, by Jobmon's name for it. Jobmon's distributor and
        swarm run in a process of their own, the executor, and its output goes to the task's log. By default
        it is a child of the worker; with ``deferrable``, ``ssh_conn_id`` or ``launcher="slurm"`` it goes on
        without the worker. A retry goes on with it. Default: an executor elsewhere executes the run.
        Templated.
    :param ssh_conn_id: have the executor started on this submit host: id of an Airflow connection of type
        SSH. Needs the extra ``airflow-provider-jobmon[ssh]``. Default: this worker. Templated.
    :param launcher: ``process`` (default): the executor is a process of that host. ``slurm``: it is a batch
        job, and the host is asked to submit it.
    :param launcher_options: options of ``sbatch`` by their own names, such as ``{"partition": "long", "time":
        "7-0", "mem": "8G", "exclusive": True}``, or as words, ``["--partition=long"]``. Job name and output
        file are the provider's unless given here. Default: none. Templated.
    :param setup_commands: lines of bash that run before the executor, in a login shell, such as ``module load
        anaconda``. The first that fails ends the job. Default: none. Templated.
    :param jobmon_python: the Python that has Jobmon's client, where the executor runs. Default: the
        connection's, else that of the ``jobmon`` command on PATH, else any Python there that has it.
        Templated.
    :param remote_dir: a folder below which each run has one of its own on that host; the node where the job
        runs must see it, too. An absolute path, or one that begins with ``~/``. Default
        ``~/.airflow-jobmon``. Templated.
    :param queue_timeout: seconds (or a ``timedelta``) after the run's creation for which a job may wait in
        the scheduler's queue; then the job is cancelled and the run aborted. Default: for ever.
    :param wait_for_completion: wait for the run's end. False: return its id at once; then another task must
        keep it alive (``WorkflowRunSensor``) or execute it before its heartbeat runs out. Default True.
    :param workflow_run_heartbeat_interval: seconds (or a ``timedelta``) between heartbeats. Default: the
        connection's, else Jobmon's setting, 30; four times that, and with it what a heartbeat promises, for a
        run that has waited for an executor for ten minutes.
    :param heartbeat_report_by_buffer: a heartbeat is good for the interval times this. Default: the
        connection's, else Jobmon's setting, 3.1.
    :param keep_alive: ``until_bound`` (default), or ``until_done`` for executors that do not beat themselves:
        it hides a dead executor from Jobmon's reaper.
    :param create_timeout: seconds (or a ``timedelta``) in which the run must have been created; waiting for a
        lost one, for the end of one that a clear has stopped, and for a server that does not answer included.
        Default 600.
    :param handoff_timeout: seconds (or a ``timedelta``) after its creation in which an executor must take the
        run; else it is aborted and the task fails. It does not pass while a job waits in a queue. Default
        3600.
    :param startup_timeout: seconds (or a ``timedelta``) that an executor which has taken the run may need
        until its tasks run (BOUND, INSTANTIATED, LAUNCHED); nothing else ends a run whose executor dies then,
        so it is ended as ERROR and the task fails. Default 3600.
    :param poll_interval: longest pause in seconds (or a ``timedelta``) between looks at a run that an
        executor has. Default 60.
    :param cancel_on_kill: when a user marks the task failed or clears it, or it times out, also stop a run
        that an executor has, by a cold resume signal. False: leave it running. A run that nobody has taken is
        aborted in any case. While the task is deferred, Airflow tells of a user's act from 3.3 on. Where no
        user has ended the task, such as when a worker is drained, the run goes on in any case, and a retry
        goes on with it. Default True.
    :param resume_on_retry: a retry that finds the earlier try's run ended badly resumes the workflow and
        creates another; where Airflow remembers no run (before 3.3), it does so if the workflow's last run
        ended badly. It never stops a run that is alive. False: a run that has ended badly fails the task
        without a retry, which could only find the same. Default False.
    :param if_done: what to do about a workflow that is DONE, so that no run is left to be created. ``pass``
        (default): succeed at once; there is no run id to return then. ``skip`` the task, or ``fail`` it.
    :param deferrable: wait in the triggerer instead of on a worker. Default: ``[operators]
        default_deferrable``.
    :returns: the workflow run id, as XCom; None: the workflow was DONE already. ``workflow_id`` and
        ``workflow_run_id`` are pushed before the wait, ``status`` (a code) and ``task_counts`` after it.
    :raises AirflowFailException: the run did not end DONE, or what is asked for is impossible, and no retry
        could change that. The first line says why; then come the tasks that failed with the ends of their
        errors, and what to do.
    :raises AirflowException: the run could not be created or executed, or no executor took it; a retry may
        help.
    """

    template_fields: Sequence[str] = (
        *WORKFLOW_FIELDS,
        "jobmon_conn_id",
        *ExecutingOperator.template_fields,
    )
    ui_color = "#d6e8f5"
    operator_extra_links = (JobmonWorkflowLink(),)

    _attempt: Attempt | None = None  # the try that is executed in this process, for on_kill

    def __init__(
        self,
        *,
        jobmon_conn_id: str = JobmonHook.default_conn_name,
        wait_for_completion: bool = True,
        workflow_run_heartbeat_interval: float | timedelta | None = None,
        heartbeat_report_by_buffer: float | None = None,
        keep_alive: str = KeepAlive.UNTIL_BOUND.value,
        create_timeout: float | timedelta = 600,
        startup_timeout: float | timedelta = 3600,
        poll_interval: float | timedelta = DEFAULT_POLL_INTERVAL,
        cancel_on_kill: bool = True,
        resume_on_retry: bool = False,
        if_done: str = "pass",
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        interval = checked_interval(workflow_run_heartbeat_interval, heartbeat_report_by_buffer)
        if self.cluster_name is not None and not wait_for_completion:
            raise ValueError("cluster_name needs wait_for_completion=True: the task executes the run")
        self.jobmon_conn_id = jobmon_conn_id
        self.wait_for_completion = wait_for_completion
        self.workflow_run_heartbeat_interval = interval
        self.heartbeat_report_by_buffer = heartbeat_report_by_buffer
        self.keep_alive = one_of("keep_alive", keep_alive, _KEEP_ALIVE)
        self.create_timeout = seconds("create_timeout", create_timeout)
        self.startup_timeout = seconds("startup_timeout", startup_timeout, above=0)
        self.poll_interval = seconds("poll_interval", poll_interval, above=0)
        self.cancel_on_kill, self.resume_on_retry = cancel_on_kill, resume_on_retry
        self.if_done, self.deferrable = one_of("if_done", if_done, _IF_DONE), deferrable

    def execute(self, context: Context) -> int | None:
        """Create the run, or find that of an earlier try, and wait for its end here or in the triggerer."""
        from airflow_jobmon_provider.operators._attempt import Attempt
        from airflow_jobmon_provider.operators._beginning import Beginning
        from airflow_jobmon_provider.operators._ending import end_if_done
        from airflow_jobmon_provider.operators._watcher import Starter, Watcher, placement_of
        from airflow_jobmon_provider.triggers.events import RunEvent

        hook = JobmonHook(self.jobmon_conn_id)
        attempt = self._attempt = Attempt(context, self.log)
        with airflow_errors(), attempt.heeding_on_kill():
            workflow_id = _workflow_of(self, context, hook, self.create_timeout)
            context["ti"].xcom_push(key="workflow_id", value=workflow_id)
            heartbeat = heartbeat_of(
                hook.server.settings.heartbeat,
                self.workflow_run_heartbeat_interval,
                self.heartbeat_report_by_buffer,
            )
            placement = placement_of(self, hook)  # its errors come before there is a run
            starter = None if placement is None else Starter(placement, self, hook, heartbeat)
            attempt.memory = self._memory(context, workflow_id, hook)
            beginning = Beginning(self, attempt, hook, attempt.memory, starter)
            found = beginning.find_or_create(context, heartbeat.good_for)
            if found is None:
                end_if_done(workflow_id, self.if_done, self.log)
                return None
            own, status = found
            run = own.workflow_run_id
            with attempt.looking_after(own, hook):
                attempt.memory.remember(run, own.created_at)
                context["ti"].xcom_push(key="workflow_run_id", value=run)
                watcher = Watcher(self, hook, own, heartbeat)
                if status is RunStatus.LINKING and starter is None:
                    watcher.tell_how_to_execute()
                if not self.wait_for_completion:
                    with attempt.waiting():
                        return run
                end = self._wait(attempt, watcher, own, status, starter)
                attempt.settled = end.status is not None and end.status.is_terminal
        return self._ending(context, own, hook).finish(RunEvent.of(end, run, workflow_id))

    def _memory(self, context: Context, workflow_id: int, hook: JobmonHook) -> RunMemory:
        from airflow_jobmon_provider.operators._retry import RunMemory

        asked = as_kept(self._asked_workflow())
        return RunMemory(context, workflow_id, hook.server.settings.service_url, self.log, asked)

    def _wait(
        self,
        attempt: Attempt,
        watcher: Watcher,
        own: OwnRun,
        status: RunStatus,
        starter: Starter | None,
    ) -> RunEnd:
        """Wait for the run's end, here or in the triggerer."""
        from airflow_jobmon_provider.client.conversations import ended

        over = status.is_terminal
        if over and (starter is None or not starter.is_job):
            return ended(own.workflow_run_id, status)
        executor = None
        with attempt.waiting():
            if starter is not None:
                attempt.execution = starter.start(own, status)
            if starter is not None and attempt.execution is not None:
                if self.deferrable and not over:
                    executor = watcher.defer_execution(attempt.execution, starter.placement)
                if executor is None:
                    return watcher.wait_for(attempt.execution, status)
            elif over or not self.deferrable:
                return watcher.wait(status)
            trigger = watcher.trigger(executor)
        return self.defer(trigger=trigger, kwargs={"own": asdict(own)}, method_name="come_back")

    def come_back(
        self, context: Context, event: dict[str, Any] | None = None, own: dict[str, Any] | None = None
    ) -> int:
        """Go on after a deferral, as :meth:`execute_complete` says.

        :param own: what was known of the run before the deferral.
        """
        from airflow_jobmon_provider.operators._attempt import Attempt

        self._attempt = Attempt(context, self.log, kept=own or {})
        return self.execute_complete(context, event)

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> int:
        """Succeed or fail as the run has ended.

        :param event: see :class:`~airflow_jobmon_provider.triggers.jobmon.WorkflowRunHeartbeatTrigger`.
        :raises AirflowException: the run did not end DONE, or the watch has ended before the run.
        """
        if not isinstance(event, dict) or event.get("workflow_run_id") is None:
            raise AirflowException(
                "the task came back from its deferral without an event that tells of a workflow run; clear it"
                " to have it look again"
            )
        from airflow_jobmon_provider.operators._attempt import Attempt
        from airflow_jobmon_provider.operators._decided import OwnRun
        from airflow_jobmon_provider.triggers.events import RunEvent

        kept = self._attempt.kept if self._attempt is not None else {}  # as come_back was told
        attempt = self._attempt = Attempt(context, self.log, kept)
        ended = RunEvent.read(event)
        # An older version kept nothing, so the operator's own parameters are all there is.
        known = {"jobmon_conn_id": self.jobmon_conn_id, "cancel_on_kill": self.cancel_on_kill, **kept}
        own = OwnRun.after_deferral(ended, known)
        hook = JobmonHook(own.jobmon_conn_id)
        with attempt.heeding_on_kill(), attempt.looking_after(own, hook):
            return self._ending(context, own, hook).finish(ended)

    def _ending(self, context: Context, own: OwnRun, hook: JobmonHook) -> Ending:
        from airflow_jobmon_provider.operators._ending import Ending

        assert self._attempt is not None
        return Ending(context, self._attempt, own, hook, resume_on_retry=self.resume_on_retry, log=self.log)

    def on_kill(self) -> None:
        """Stop the run if Airflow says that a user has ended the task, or that it is over; else let it go.

        Airflow also calls this when a worker is drained or its heartbeats fail: then a retry goes on with the
        run.

        :raises AirflowException: no user has ended the task; this try of it ends.
        """
        if self._attempt is not None:
            self._attempt.on_kill()

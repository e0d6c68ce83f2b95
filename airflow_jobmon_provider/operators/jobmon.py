"""Operators that resume a Jobmon workflow and create its next workflow run."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    AirflowTaskTimeout,
    BaseOperator,
    TaskDeferred,
    conf,
)

from airflow_jobmon_provider.client.exceptions import (
    InvalidRequest,
    JobmonError,
    WorkflowRunNotFound,
)
from airflow_jobmon_provider.client.heartbeat import Heartbeat, KeepAlive, check_heartbeat, heartbeat_of
from airflow_jobmon_provider.client.lifecycle import RunStatus, WorkflowStatus
from airflow_jobmon_provider.client.validation import one_of, positive_id, seconds
from airflow_jobmon_provider.hooks.jobmon import JobmonHook
from airflow_jobmon_provider.links.jobmon import JobmonWorkflowLink
from airflow_jobmon_provider.task.errors import airflow_errors, execution_limit
from airflow_jobmon_provider.task.limits import (
    DEFAULT_POLL_INTERVAL,
    ON_KILL_TIMEOUT,
    execution_deadline,
    remaining,
)
from airflow_jobmon_provider.task.state import is_ended, state_of, within
from airflow_jobmon_provider.task.templates import RenderedBeforeDeferral, check_literal_id

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_jobmon_provider.client.conversations import Conversation, Retries, RunEnd
    from airflow_jobmon_provider.client.conversations.resume import Begun
    from airflow_jobmon_provider.client.protocol import Call, TaskCounts, WorkflowDetails
    from airflow_jobmon_provider.execution.process import Execution
    from airflow_jobmon_provider.operators._decided import OwnRun, Resume
    from airflow_jobmon_provider.operators._retry import RunMemory
    from airflow_jobmon_provider.triggers.events import ResumableEvent, RunEvent
    from airflow_jobmon_provider.triggers.jobmon import WorkflowRunHeartbeatTrigger

T = TypeVar("T")

_KEEP_ALIVE = (KeepAlive.UNTIL_BOUND.value, KeepAlive.UNTIL_DONE.value)
_LAST_INSTANT = 0.001  # seconds; 0 would mean "check once", for as long as that takes
_EXECUTOR_GRACE = 30.0  # seconds that an executor has to stop its distributor after the run's end
_CANCEL_PATIENCE = 120.0  # seconds; its tasks learn that they are to end by a heartbeat each 90 s, by default
_MEMORY_TIMEOUT = 2.0  # seconds


class ResumeWorkflowOperator(RenderedBeforeDeferral, BaseOperator):
    """Make a Jobmon workflow ready to run again: stop its active run, wait, reset its tasks.

    :param workflow_id: the workflow. Templated.
    :param jobmon_conn_id: id of the Jobmon connection. Default ``jobmon_default``. Templated.
    :param reset_running_jobs: True: cold resume, running tasks are killed. False: hot resume, they are let
        finish. Default True.
    :param reset_if_running: also reset tasks that count as running. Default: as ``reset_running_jobs``.
    :param resume_timeout: seconds (or a ``timedelta``) until the workflow must be resumable, also where the
        server does not answer; 0: check once. Resetting the tasks comes after it: the server may need minutes
        for a million tasks, and only ``execution_timeout`` bounds it. Default 300.
    :param force_cleanup: clean task instances in KILL_SELF up instead of waiting for their workers, for jobs
        that were ended from outside (scancel, node failure). Needs Jobmon 3.7. Default False.
    :param increase_resources: raise the resources of tasks that failed for lack of them, by the tasks' own
        ``resource_scales``, before they are reset; once, also where a retry follows. Needs Jobmon 3.6.
        Default False.
    :param if_done: what to do about a workflow that is DONE: ``skip`` the task (default) or ``fail`` it.
    :param deferrable: wait in the triggerer instead of on a worker. Default: ``[operators]
        default_deferrable``.
    :returns: the workflow id, as XCom.
    :raises AirflowSkipException: the workflow is DONE and ``if_done="skip"``.
    :raises AirflowTaskTimeout: ``execution_timeout`` is over. It counts from the task's start, also while the
        task is deferred.
    :raises AirflowException: anything else that keeps the workflow from being resumed, in one line.
    """

    template_fields: Sequence[str] = ("workflow_id", "jobmon_conn_id")
    ui_color = "#d6e8f5"
    operator_extra_links = (JobmonWorkflowLink(),)

    def __init__(
        self,
        *,
        workflow_id: int | str,
        jobmon_conn_id: str = JobmonHook.default_conn_name,
        reset_running_jobs: bool = True,
        reset_if_running: bool | None = None,
        resume_timeout: float | timedelta = 300,
        force_cleanup: bool = False,
        increase_resources: bool = False,
        if_done: str = "skip",
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_literal_id("workflow_id", workflow_id)
        self.workflow_id = workflow_id
        self.jobmon_conn_id = jobmon_conn_id
        self.reset_running_jobs = reset_running_jobs
        self.reset_if_running = reset_running_jobs if reset_if_running is None else reset_if_running
        if isinstance(resume_timeout, timedelta):
            resume_timeout = resume_timeout.total_seconds()
        self.resume_timeout: float = seconds("resume_timeout", resume_timeout)
        self.force_cleanup = force_cleanup
        self.increase_resources = increase_resources
        self.if_done = one_of("if_done", if_done, ("skip", "fail"))
        self.deferrable = deferrable
        self._decided: dict[str, Any] | None = None  # kept over a deferral

    def execute(self, context: Context) -> int:
        """Signal the resume, wait for it here or in the triggerer, and reset the tasks."""
        from airflow_jobmon_provider.operators._decided import Resume

        workflow_id = positive_id("workflow_id", self.workflow_id)
        hook = JobmonHook(self.jobmon_conn_id)
        with airflow_errors():
            decided = Resume(
                workflow_id=workflow_id,
                jobmon_conn_id=self.jobmon_conn_id,
                server=hook.server.settings.service_url,
                reset_if_running=self.reset_if_running,
                increase_resources=self.increase_resources,
                if_done=self.if_done,
                resume_timeout=self.resume_timeout,
                deadline=time.time() + self.resume_timeout,
                execution_deadline=execution_deadline(context, self.execution_timeout),
            )
            JobmonWorkflowLink().store(context, hook.server.gui_url, workflow_id)
            work = _ResumeWork(decided, hook, self.log)
            begun = work.begin(self.reset_running_jobs, self.force_cleanup)
            details = begun.details
            if not begun.at_rest:
                if self.deferrable:
                    self._defer(decided, self.reset_running_jobs if begun.signal else None)
                details = work.wait(self.force_cleanup, begun.signal)
            return work.finish(context, details)

    def _defer(self, decided: Resume, reset_running_jobs: bool | None) -> NoReturn:
        from airflow_jobmon_provider.triggers.jobmon import WorkflowResumableTrigger

        self.log.info(
            "Workflow %d is not resumable yet; waiting in the triggerer for up to %.0f s",
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
            return _ResumeWork(plan, hook, self.log).finish(context)

    def _decided_by_an_older_version(self, event: ResumableEvent) -> Resume:
        from airflow_jobmon_provider.operators._decided import Resume

        if event.workflow_id is None:
            event.read(None)
        return Resume(
            workflow_id=positive_id("workflow_id", event.workflow_id),
            jobmon_conn_id=self.jobmon_conn_id,
            server=event.server,
            reset_if_running=self.reset_if_running,
            increase_resources=self.increase_resources,
            if_done=self.if_done,
            resume_timeout=self.resume_timeout,
            deadline=time.time(),
            execution_deadline=None,
        )


class _ResumeWork:
    """What ``ResumeWorkflowOperator`` does on a worker, each request within the user's limits."""

    def __init__(self, decided: Resume, hook: JobmonHook, log: Any) -> None:
        self.decided = decided
        self._hook = hook
        self._log = log

    def begin(self, reset_running_jobs: bool, force_cleanup: bool) -> Begun:
        """Find out all that would keep the workflow from being resumed, and only then tell its run to stop.

        :returns: what was found.
        :raises AirflowSkipException: the workflow is DONE and ``if_done="skip"``.
        """
        from airflow_jobmon_provider.client.conversations.resume import begin_resume

        decided = self.decided
        beginning = begin_resume(
            decided.workflow_id,
            reset_running_jobs=reset_running_jobs,
            force_cleanup=force_cleanup,
            increase_resources=decided.increase_resources,
            server=self._hook.server.settings.service_url,
            retries=self._retries(),
            clock=time.monotonic,
        )
        begun = self._converse(beginning, remaining(decided.deadline) if decided.resume_timeout else None)
        self._stop_if_done(begun.details)
        return begun

    def wait(self, force_cleanup: bool, signal: Call[None] | None) -> WorkflowDetails | None:
        """Wait here until the workflow is at rest; return what the server says of it then.

        :param signal: sent again to a run that may have missed it.
        """
        from airflow_jobmon_provider.client.conversations import wait_until_resumable

        waiting = wait_until_resumable(
            self.decided.workflow_id,
            timeout=max(remaining(self.decided.first_deadline), _LAST_INSTANT)
            if self.decided.resume_timeout
            else 0,
            force_cleanup=force_cleanup,
            clock=time.monotonic,
            at_rest=True,
            signal=signal,
        )
        return self._converse(waiting, None)

    def finish(self, context: Context, details: WorkflowDetails | None = None) -> int:
        """Raise resources if asked for, reset the tasks, and return the workflow's id.

        :param details: what the server has just said of the workflow, which is at rest; None: look anew.
        :raises AirflowSkipException: the workflow is DONE and ``if_done="skip"``.
        """
        from airflow_jobmon_provider.client.conversations.resume import check_at_rest, reset_tasks

        decided = self.decided
        if details is None:
            checking = check_at_rest(decided.workflow_id, self._retries(), time.monotonic)
            details = self._converse(checking, decided.resume_timeout or None)
        # Asked again: the run that was told to stop may have finished the workflow instead.
        self._stop_if_done(details)
        resetting = reset_tasks(
            decided.workflow_id, decided.reset_if_running, self._retries(), time.monotonic
        )
        if decided.increase_resources:
            memory = _RaisedMemory(context, decided, self._hook.server.settings.service_url, details)
            with memory.or_no_retry():
                self._raise_resources(memory)
                self._converse(resetting, None)
            memory.forget()
        else:
            self._converse(resetting, None)
        self._log.info("Workflow %d is ready for its next run", decided.workflow_id)
        return decided.workflow_id

    def _raise_resources(self, memory: _RaisedMemory) -> None:
        # As late as can be: it sees every task that has failed. Until the reset, a second call would raise
        # the same ones once more.
        from airflow_jobmon_provider.client import protocol
        from airflow_jobmon_provider.client.conversations import ask_again

        if memory.knows():
            self._log.warning("An earlier try has raised the resources of the failed tasks; not once more")
            return
        memory.remember()
        call = protocol.increase_resources(self.decided.workflow_id)
        try:
            raised = self._converse(ask_again(call, self._retries(), time.monotonic), None)
        except JobmonError as error:
            if isinstance(error, InvalidRequest) or protocol.was_not_processed(error):
                memory.forget()
            raise
        self._log.info("Raised the resources of %d failed task(s)", raised)

    def _stop_if_done(self, details: WorkflowDetails | None) -> None:
        # A workflow that is DONE reports resumable, but refuses a new run (docs/protocol.md, "Resuming").
        if details is not None and details.status == WorkflowStatus.DONE:
            message = f"workflow {self.decided.workflow_id} is DONE: there is nothing to resume"
            self._log.info("The %s", message)  # Airflow shows a skip's reason only in the line's details
            skip = self.decided.if_done == "skip"
            raise AirflowSkipException(message) if skip else AirflowFailException(message)

    def _retries(self) -> Retries:
        """Return for how long to try again: as the connection says, and within the user's limits."""
        from airflow_jobmon_provider.client.conversations import Retries

        settings = self._hook.server.settings
        limits = [settings.retries_timeout, self.decided.resume_timeout]
        if self.decided.execution_deadline is not None:
            limits.append(remaining(self.decided.execution_deadline))
        return Retries(min(limits), settings.retries_attempts)

    def _converse(self, conversation: Conversation[T], timeout: float | None) -> T:
        """Carry a conversation to its end, each request within ``execution_timeout`` and a limit of its own.

        :param timeout: seconds; None: the requests have the transport's time-outs.
        """
        from airflow_jobmon_provider.client.conversations import in_time

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


class _RaisedMemory:
    """Remembers that the resources of a workflow's failed tasks were raised, until the tasks are reset.

    Where Airflow has a place for it (3.3), a retry learns of it; where not, none may follow.
    """

    _KEY = "jobmon_resources_raised"

    def __init__(
        self, context: Context, decided: Resume, server: str, details: WorkflowDetails | None
    ) -> None:
        self._store: Any = context.get("task_state_store")
        # Once another run has begun, other tasks may have failed, or the same ones again.
        since = None if details is None else details.status_since
        self._raised = {"workflow_id": decided.workflow_id, "server": server, "status_since": since}
        self._sent = False

    def knows(self) -> bool:
        """Whether an earlier try raised them, or may have."""
        kept = self._store.get(self._KEY) if self._store is not None else None
        if not isinstance(kept, dict):
            return False
        from airflow_jobmon_provider.client.settings import same_server

        here = same_server(str(kept.get("server")), str(self._raised["server"]))
        return here and {**kept, "server": None} == {**self._raised, "server": None}

    def remember(self) -> None:
        """Keep for the next try that they are being raised: its reply may be lost."""
        self._sent = True
        if self._store is not None:
            self._store.set(self._KEY, self._raised)

    def forget(self) -> None:
        """They were not raised, or the tasks have been reset."""
        self._sent = False
        if self._store is not None:
            self._store.delete(self._KEY)

    @contextlib.contextmanager
    def or_no_retry(self) -> Iterator[None]:
        """Let no retry follow that would raise them again because nobody remembers.

        :raises AirflowFailException: they may have been raised, and what followed failed.
        """
        try:
            yield
        except (JobmonError, AirflowTaskTimeout) as error:
            if self._store is not None or not self._sent:
                raise
            raise AirflowFailException(
                f"{error}. The resources of workflow {self._raised['workflow_id']}'s failed tasks may have"
                f" been raised already, which this Airflow cannot remember for a retry (3.3 can): resume the"
                f" workflow with increase_resources=False"
            ) from None


class CreateWorkflowRunOperator(RenderedBeforeDeferral, BaseOperator):
    """Create the next run of a Jobmon workflow, keep it alive until an executor has it, and wait for its end.

    With ``cluster_name``, the worker executes the run itself, with the Jobmon client that is installed there;
    without, somebody else has to, who finds the run's id in the XCom ``workflow_run_id``.

    The run is LINKING at first. Airflow keeps its heartbeat good until an executor takes it (BOUND), and from
    then on only watches: the executor's own heartbeat has to tell Jobmon whether it lives.

    A retry goes on with the run that an earlier try created, while it lives (Airflow 3.3 and later remember
    it), unless a user has cleared the task. Where the reply to creating one was lost, it waits until that run
    has been reaped. So no retry makes a second run.

    What was decided before a deferral holds after it: ids, connection and limits do not change with the
    templates that Airflow renders anew.

    :param workflow_id: the workflow. Templated.
    :param jobmon_conn_id: id of the Jobmon connection. Default ``jobmon_default``. Templated.
    :param cluster_name: execute the run on this cluster, by Jobmon's name for it: Jobmon's distributor and
        swarm run in a process of their own on this worker, and their output goes to the task log. The task
        keeps its worker for that long, also with ``deferrable``; but the run survives the worker's death, and
        a retry goes on watching it. Default: somebody else executes it. Templated.
    :param jobmon_python: with ``cluster_name``, path of the Python that has Jobmon's client. Default: the
        connection's, else that of the ``jobmon`` command on PATH, else Airflow's own. Templated.
    :param wait_for_completion: wait for the run's end. False: return its id at once; then somebody else must
        keep it alive (``WorkflowRunSensor``) or execute it before its heartbeat runs out. Default True.
    :param workflow_run_heartbeat_interval: seconds between heartbeats. Default: the connection's, else
        Jobmon's setting, 30.
    :param heartbeat_report_by_buffer: a heartbeat is good for the interval times this. Default: the
        connection's, else Jobmon's setting, 3.1.
    :param keep_alive: ``until_bound`` (default), or ``until_done`` for executors that do not beat themselves:
        it hides a dead executor from Jobmon's reaper.
    :param create_timeout: seconds in which the run must have been created; waiting for a lost one, for the
        end of one that a clear has stopped, and for a server that does not answer included. Default 600.
    :param handoff_timeout: seconds after its creation in which an executor must take the run; else it is
        aborted and the task fails. Default 3600.
    :param startup_timeout: seconds that an executor which has taken the run may need until its tasks run
        (BOUND, INSTANTIATED, LAUNCHED); nothing else ends a run whose executor dies then, so it is ended as
        ERROR and the task fails. Default 3600.
    :param poll_interval: longest pause in seconds between looks at a run that an executor has. Default 60.
    :param cancel_on_kill: when a user marks the task failed or clears it, or it times out, also stop a run
        that an executor has, by a cold resume signal. False: leave it running. A run that nobody has taken is
        aborted in any case. While the task is deferred, Airflow tells of a user's act from 3.3 on. Where no
        user has ended the task, such as when a worker is drained, the run goes on in any case, and a retry
        goes on with it. Default True.
    :param resume_on_retry: a retry that finds the earlier try's run ended badly resumes the workflow and
        creates another; where Airflow remembers no run (before 3.3), it does so if the workflow's last run
        ended badly. It never stops a run that is alive. False: it reports the failure again. Default False.
    :param deferrable: wait in the triggerer instead of on a worker. Default: ``[operators]
        default_deferrable``.
    :returns: the workflow run id, as XCom. ``workflow_id`` and ``workflow_run_id`` are pushed before the
        wait, ``status`` (a code) and ``task_counts`` after it.
    :raises AirflowException: the run could not be created or executed, or did not end DONE; one line that
        says why, and where tasks failed, their counts, the first of them and the ends of their errors.
    """

    template_fields: Sequence[str] = ("workflow_id", "jobmon_conn_id", "cluster_name", "jobmon_python")
    ui_color = "#d6e8f5"
    operator_extra_links = (JobmonWorkflowLink(),)

    # What the try has come to that is executed in this process.
    _execution: Execution | None = None
    _own: OwnRun | None = None
    _earlier: OwnRun | None = None  # an earlier try's, which this one looks at
    _memory: RunMemory | None = None
    _kept: Mapping[str, Any] = MappingProxyType({})  # over a deferral; an older version kept nothing
    _ti: Any = None
    _thread = 0  # in which the task is executed
    _waits = False  # for Jobmon, and asks Airflow nothing
    _killed = False  # on_kill was called, and is to be heeded as soon as the task waits
    _settled = False  # nothing is to be done about the run any more

    def __init__(
        self,
        *,
        workflow_id: int | str,
        jobmon_conn_id: str = JobmonHook.default_conn_name,
        cluster_name: str | None = None,
        jobmon_python: str | None = None,
        wait_for_completion: bool = True,
        workflow_run_heartbeat_interval: float | None = None,
        heartbeat_report_by_buffer: float | None = None,
        keep_alive: str = KeepAlive.UNTIL_BOUND.value,
        create_timeout: float = 600,
        handoff_timeout: float = 3600,
        startup_timeout: float = 3600,
        poll_interval: float = DEFAULT_POLL_INTERVAL,
        cancel_on_kill: bool = True,
        resume_on_retry: bool = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_literal_id("workflow_id", workflow_id)
        check_heartbeat(workflow_run_heartbeat_interval, heartbeat_report_by_buffer)
        self.workflow_id = workflow_id
        if cluster_name is not None and not wait_for_completion:
            raise ValueError("cluster_name needs wait_for_completion=True: the worker executes the run")
        self.jobmon_conn_id = jobmon_conn_id
        self.cluster_name = cluster_name
        self.jobmon_python = jobmon_python
        self.wait_for_completion = wait_for_completion
        self.workflow_run_heartbeat_interval = workflow_run_heartbeat_interval
        self.heartbeat_report_by_buffer = heartbeat_report_by_buffer
        self.keep_alive = one_of("keep_alive", keep_alive, _KEEP_ALIVE)
        self.create_timeout = seconds("create_timeout", create_timeout)
        self.handoff_timeout = seconds("handoff_timeout", handoff_timeout, above=0)
        self.startup_timeout = seconds("startup_timeout", startup_timeout, above=0)
        self.poll_interval = seconds("poll_interval", poll_interval, above=0)
        self.cancel_on_kill = cancel_on_kill
        self.resume_on_retry = resume_on_retry
        self.deferrable = deferrable

    def execute(self, context: Context) -> int:
        """Create the run, or find that of an earlier try, and wait for its end here or in the triggerer."""
        from airflow_jobmon_provider.execution.environment import executor_environment, find_python
        from airflow_jobmon_provider.execution.process import Execution, executor_command
        from airflow_jobmon_provider.operators._retry import RunMemory
        from airflow_jobmon_provider.triggers.events import RunEvent

        workflow_id = positive_id("workflow_id", self.workflow_id)
        hook = JobmonHook(self.jobmon_conn_id)
        with airflow_errors(), self._heeding_on_kill(context):
            heartbeat = heartbeat_of(
                hook.server.settings.heartbeat,
                self.workflow_run_heartbeat_interval,
                self.heartbeat_report_by_buffer,
            )
            if self.cluster_name is not None:  # before there is a run
                python = find_python(self.jobmon_python or hook.server.jobmon_python)
                environment = executor_environment(hook.server.settings, heartbeat)
            server = hook.server.settings.service_url
            self._memory = memory = RunMemory(context, workflow_id, server, self.log)
            own, status = self._run_of_this_task(context, hook, memory, heartbeat.good_for)
            run = own.workflow_run_id
            with self._looking_after(own, hook):
                memory.remember(run, own.created_at)
                context["ti"].xcom_push(key="workflow_id", value=workflow_id)
                context["ti"].xcom_push(key="workflow_run_id", value=run)
                JobmonWorkflowLink().store(context, hook.server.gui_url, workflow_id)
                if not self.wait_for_completion:
                    with self._waiting():
                        return run
                if self.cluster_name is not None and status is RunStatus.LINKING:
                    with self._waiting():
                        command = executor_command(python, workflow_id, run, self.cluster_name)
                        secrets = hook.server.settings.secrets
                        self._execution = Execution(command, environment, self.log, secrets)
                        end = self._wait_for_execution(hook, workflow_id, run, heartbeat)
                else:
                    end = self._wait(hook, own, status, heartbeat)
                self._settled = end.status is not None and end.status.is_terminal
        return self._finish(context, own, RunEvent.of(end, run, workflow_id), hook)

    def _run_of_this_task(
        self, context: Context, hook: JobmonHook, memory: RunMemory, good_for: float
    ) -> tuple[OwnRun, RunStatus]:
        """Return the run that an earlier try created, or a new one, and its status."""
        end = time.monotonic() + self.create_timeout

        def left() -> float:
            return max(end - time.monotonic(), 0.0)

        found = self._run_of_an_earlier_try(hook, memory, left)
        if found is not None:
            run, created_at, status = found
        else:
            run = self._create(hook, memory.workflow_id, good_for, left(), perhaps_lost=memory.is_retry)
            created_at, status = time.time(), RunStatus.LINKING
        deadline = execution_deadline(context, self.execution_timeout)
        return self._own_run(memory, run, created_at, deadline), status

    def _own_run(
        self, memory: RunMemory, run: int, created_at: float, deadline: float | None = None
    ) -> OwnRun:
        from airflow_jobmon_provider.operators._decided import OwnRun

        return OwnRun(
            run,
            memory.workflow_id,
            self.jobmon_conn_id,
            memory.server,
            self.cancel_on_kill,
            created_at,
            deadline,
        )

    def _create(
        self, hook: JobmonHook, workflow_id: int, good_for: float, timeout: float, *, perhaps_lost: bool
    ) -> int:
        import getpass

        from airflow_jobmon_provider.client.conversations import Retries, create_run, in_time
        from airflow_jobmon_provider.client.conversations.server_version import check_server_version

        end = time.monotonic() + timeout
        checking = check_server_version(None, Retries(timeout, math.inf), time.monotonic)
        self._converse(hook, in_time(checking, timeout, time.monotonic))
        creating = create_run(
            workflow_id,
            user=getpass.getuser(),
            good_for=good_for,
            timeout=max(end - time.monotonic(), 0.0),
            perhaps_lost=perhaps_lost,  # by a try that died before anybody learned of its run
            clock=time.monotonic,
        )
        run = self._converse(hook, creating).workflow_run_id
        self.log.info("Created workflow run %d of workflow %d", run, workflow_id)
        return run

    def _run_of_an_earlier_try(
        self, hook: JobmonHook, memory: RunMemory, left: Callable[[], float]
    ) -> tuple[int, float, RunStatus] | None:
        """Return the run to go on with, when it was created, and its status; None: create a new one.

        :param left: returns the seconds that are left of ``create_timeout``.
        :raises AirflowException: the run ended badly, and that is all there is to say.
        """
        from airflow_jobmon_provider.client import protocol
        from airflow_jobmon_provider.client.conversations import ask_until, ended
        from airflow_jobmon_provider.operators._retry import Step, next_step

        earlier = memory.recall()
        if earlier is None:
            if memory.is_retry and not memory.is_kept:
                self._prepare_without_memory(hook, memory.workflow_id, left)
            return None
        run = earlier.workflow_run_id
        self._earlier = self._own_run(memory, run, earlier.created_at)
        try:
            status = self._converse(hook, ask_until(protocol.peek_status(run), left(), time.monotonic))
        except WorkflowRunNotFound:
            return None
        self.log.info("An earlier try created workflow run %d; it is %s: %s", run, status, status.meaning)
        step = next_step(
            status,
            cleared=memory.was_cleared_since(earlier, status),
            cancel_on_kill=self.cancel_on_kill,
            resume_on_retry=self.resume_on_retry,
        )
        if step is Step.GO_ON:
            return run, earlier.created_at, status
        if step is Step.CREATE:
            return None
        if step is Step.FAIL:
            raise AirflowException(
                f"{ended(run, status).message}. Resume the workflow first, or set resume_on_retry=True to let"
                f" a retry do that"
            )
        patience = 0.0  # our run has ended: if one is alive now, it is not ours to wait for
        if step is Step.STOP:
            self._stop_cleared(hook, memory.workflow_id, run, left)
            patience = left()
        self._make_ready(hook, memory.workflow_id, patience, left())
        return None

    def _stop_cleared(self, hook: JobmonHook, workflow_id: int, run: int, left: Callable[[], float]) -> None:
        """Stop the run of an earlier try, which the user has cleared, and wait for its end.

        :raises AirflowException: it has not ended in time; until then, an executor is at work on its tasks.
        """
        from airflow_jobmon_provider.client.conversations import stop_run

        self.log.info("The task was cleared: stopping workflow run %d", run)
        stopping = stop_run(run, workflow_id, timeout=left(), clock=time.monotonic)
        status = self._converse(hook, stopping)
        if status is None or not status.is_terminal:
            raise AirflowException(
                f"workflow run {run} was told to stop, as the task was cleared, and is still"
                f" {status or 'out of reach'} after {self.create_timeout:g} s (create_timeout). Its tasks are"
                f" not reset under its executor: wait for its end, or end it, and clear this task again"
            )

    def _prepare_without_memory(self, hook: JobmonHook, workflow_id: int, left: Callable[[], float]) -> None:
        """Do what a retry can where Airflow does not tell which run an earlier try created (before 3.3).

        :raises AirflowException: the workflow is DONE, so no run is left to be created.
        """
        from airflow_jobmon_provider.client import protocol
        from airflow_jobmon_provider.client.conversations import ask_until

        call = protocol.workflow_details(workflow_id)
        details = self._converse(hook, ask_until(call, left(), time.monotonic))
        status = details.status if details is not None else None
        if status == WorkflowStatus.DONE:
            raise AirflowException(
                f"workflow {workflow_id} is DONE, so there is nothing left to run. This Airflow does not"
                f" remember whose run finished it (3.3 and later do): if it was that of an earlier try, mark"
                f" this task as success"
            )
        if not self.resume_on_retry:
            self.log.warning(
                "This Airflow does not remember the run of an earlier try (3.3 and later do): another one is"
                " created if none is alive, and failed tasks are not reset; resume_on_retry=True does that"
            )
        # A run that is LINKING has its tasks ready, and is waited for when the next one is created.
        elif status is not None and status != WorkflowStatus.REGISTERING:
            self.log.info("Making workflow %d ready for another run, once none is alive", workflow_id)
            self._make_ready(hook, workflow_id, left(), left())

    def _make_ready(self, hook: JobmonHook, workflow_id: int, patience: float, timeout: float) -> None:
        from airflow_jobmon_provider.client.conversations import make_ready

        ready = make_ready(workflow_id, patience=patience, timeout=timeout, clock=time.monotonic)
        self._converse(hook, ready)
        self.log.info("Workflow %d is ready for its next run", workflow_id)

    def _wait(self, hook: JobmonHook, own: OwnRun, status: RunStatus, heartbeat: Heartbeat) -> RunEnd:
        from airflow_jobmon_provider.client.conversations import ended

        run, workflow_id = own.workflow_run_id, own.workflow_id
        assert workflow_id is not None
        if status.is_terminal:  # nothing is deferred that is over already
            return ended(run, status)
        if status is RunStatus.LINKING:
            self.log.info(
                "Keeping it alive until an executor takes it, for up to %g s: start one on the cluster",
                self.handoff_timeout,
            )
        with self._waiting():
            if not self.deferrable:
                watch = self._watch(workflow_id, run, heartbeat, KeepAlive(self.keep_alive), status)
                return hook.converse(watch, log=self.log)
            trigger = self._trigger(own, heartbeat)
        return self.defer(trigger=trigger, kwargs={"own": asdict(own)}, method_name="come_back")

    def _trigger(self, own: OwnRun, heartbeat: Heartbeat) -> WorkflowRunHeartbeatTrigger:
        from airflow_jobmon_provider.triggers.jobmon import WorkflowRunHeartbeatTrigger

        return WorkflowRunHeartbeatTrigger(
            workflow_run_id=own.workflow_run_id,
            jobmon_conn_id=own.jobmon_conn_id,
            workflow_run_heartbeat_interval=heartbeat.interval,
            heartbeat_report_by_buffer=heartbeat.buffer,
            keep_alive=self.keep_alive,
            poll_interval=self.poll_interval,
            handoff_deadline=own.created_at + self.handoff_timeout,
            deadline=own.deadline,  # Airflow's own time does not pass while a task is deferred
            owned=True,
            created_at=own.created_at,
            workflow_id=own.workflow_id,
            cancel_on_kill=own.cancel_on_kill,
            startup_timeout=self.startup_timeout,
            server=own.server,
        )

    def _watch(
        self,
        workflow_id: int,
        run: int,
        heartbeat: Heartbeat,
        keep_alive: KeepAlive,
        status: RunStatus | None = None,
    ) -> Conversation[RunEnd]:
        from airflow_jobmon_provider.client.conversations import ProgressWatch, watch_run

        age = max(time.time() - self._own.created_at, 0.0) if self._own else 0.0
        return watch_run(
            run,
            keep_alive=keep_alive,
            heartbeat=heartbeat,
            poll_interval=self.poll_interval,
            clock=time.monotonic,
            handoff_timeout=max(self.handoff_timeout - age, 0.0),
            startup_timeout=self.startup_timeout,
            owned=True,
            age=age,
            status=status,
            progress=ProgressWatch(workflow_id, time.monotonic, age=age),
        )

    def _converse(self, hook: JobmonHook, conversation: Conversation[T]) -> T:
        """Carry a conversation to its end; ``on_kill`` is heeded in its pauses, not amid a request."""

        def sleep(seconds: float) -> None:
            with self._waiting():
                time.sleep(seconds)

        return hook.converse(conversation, log=self.log, sleep=sleep)

    def _wait_for_execution(
        self, hook: JobmonHook, workflow_id: int, run: int, heartbeat: Heartbeat
    ) -> RunEnd:
        """Watch the run while our own executor is at work on it, and see to its end if that one dies."""
        from airflow_jobmon_provider.client.conversations import RunOutcome, ended
        from airflow_jobmon_provider.execution.executor import Exit
        from airflow_jobmon_provider.execution.process import ExecutorEnded

        execution = self._execution
        assert execution is not None
        linking = RunStatus.LINKING  # else there would be no executor of ours
        watch = self._watch(workflow_id, run, heartbeat, KeepAlive(self.keep_alive), linking)
        try:
            end = hook.converse(watch, log=self.log, sleep=execution.wait)
        except ExecutorEnded:
            execution.stop()  # at once: what it has started must not go on for nobody
            status, keep_alive = self._end_after_executor(hook, run, execution)
            if status is not None and status.is_terminal:
                end = ended(run, status)
            else:
                watch = self._watch(workflow_id, run, heartbeat, keep_alive, status)
                end = hook.converse(watch, log=self.log)
        execution.stop(_EXECUTOR_GRACE)
        others = execution.exit_code == Exit.NOT_TAKEN  # then how our executor ended says nothing of the run
        if end.outcome is not RunOutcome.DONE and not others and execution.problem is not None:
            end = replace(end, message=f"{end.message}. {execution.problem}")
        return end

    def _end_after_executor(
        self, hook: JobmonHook, run: int, execution: Execution
    ) -> tuple[RunStatus | None, KeepAlive]:
        """End what our dead executor has left, unless that is another executor's.

        :returns: the run's status, and who is to beat for it from now on; None: it was not asked for.
        """
        from airflow_jobmon_provider.client.conversations import end_without_executor
        from airflow_jobmon_provider.execution.executor import Exit

        if execution.exit_code == Exit.NOT_TAKEN:
            self.log.warning("Workflow run %d is not this task's to execute; watching it on", run)
            return None, KeepAlive(self.keep_alive)
        ending = end_without_executor(run, taken=execution.has_taken, clock=time.monotonic)
        status = hook.converse(ending, log=self.log)
        if not status.is_terminal and not execution.has_taken:
            self.log.warning("Our executor has died; another one has workflow run %d: it is %s", run, status)
            return status, KeepAlive(self.keep_alive)
        if not status.is_terminal:
            self.log.warning(
                "The executor of workflow run %d has died (exit code %s) and left it %s; waiting for"
                " Jobmon's reaper to end it, which takes minutes",
                run,
                execution.exit_code,
                status,
            )
        return status, KeepAlive.NEVER

    def come_back(
        self, context: Context, event: dict[str, Any] | None = None, own: dict[str, Any] | None = None
    ) -> int:
        """Go on after a deferral, as :meth:`execute_complete` says.

        :param own: what was known of the run before the deferral.
        """
        self._kept = own or {}
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
        from airflow_jobmon_provider.triggers.events import RunEvent

        ended = RunEvent.read(event)
        run = self._own_after_deferral(ended, self._kept)
        hook = JobmonHook(run.jobmon_conn_id)
        with self._heeding_on_kill(context), self._looking_after(run, hook):
            return self._finish(context, run, ended, hook)

    def _own_after_deferral(self, event: RunEvent, kept: Mapping[str, Any]) -> OwnRun:
        from airflow_jobmon_provider.operators._decided import OwnRun

        known = {"jobmon_conn_id": self.jobmon_conn_id, "cancel_on_kill": self.cancel_on_kill, **kept}
        for key in ("workflow_run_id", "workflow_id", "server"):  # the trigger's word comes first
            said = getattr(event, key)
            known[key] = kept.get(key) if said is None else said
        names = {field.name for field in fields(OwnRun)}
        return OwnRun(**{name: value for name, value in known.items() if name in names})

    def _finish(self, context: Context, own: OwnRun, event: RunEvent, hook: JobmonHook) -> int:
        """Push what is known of the run's end, and return its id or raise the reason."""
        self._settled = self._settled or event.has_ended
        context["ti"].xcom_push(key="status", value=event.workflow_run_status)
        if not event.has_ended:  # gave up on a run that may still be ours
            # A hand-off that was not seen in time is no reason to stop an executor that may have the run.
            over = not self._kept if own.deadline is None else remaining(own.deadline) == 0
            self._give_up(own, hook, stop=event.status == "timeout" and over and own.cancel_on_kill)
            self._settled = True
            raise AirflowException(event.message)
        from airflow_jobmon_provider.client.conversations import count_tasks, explain_failure

        if event.status == "success":
            self.log.info(event.message)
            if own.workflow_id is not None:
                counts, _ = self._tell(own, hook, count_tasks(own.workflow_id))
                self._push_counts(context, own, counts)
            return own.workflow_run_id
        if event.workflow_run_status == RunStatus.ABORTED:  # the tasks had no part in it
            raise AirflowException(event.message)
        if own.workflow_id is None:
            raise AirflowException(event.message)
        explanation, problem = self._tell(own, hook, explain_failure(own.workflow_id))
        if explanation is None:
            raise AirflowException(f"{event.message}. Why could not be asked: {problem}")
        self._push_counts(context, own, explanation.counts)
        raise AirflowException(f"{event.message}\n{explanation.text}".rstrip())

    def _tell(self, own: OwnRun, hook: JobmonHook, asking: Conversation[T]) -> tuple[T | None, str]:
        """Return what the server tells of a run that has ended, and else why it tells nothing."""
        from airflow_jobmon_provider.client.conversations import in_time

        left = math.inf if own.deadline is None else remaining(own.deadline)
        try:
            hook.check_server(own.server)
            return self._converse(hook, in_time(asking, left, time.monotonic, at_least=0)), ""
        except Exception as error:
            from airflow_jobmon_provider.client.redaction import excerpt

            return None, excerpt(error)

    def _push_counts(self, context: Context, own: OwnRun, counts: TaskCounts | None) -> None:
        if counts is not None:
            self.log.info("Workflow %s: %s", own.workflow_id, counts)
            context["ti"].xcom_push(key="task_counts", value=counts.as_dict())

    @contextlib.contextmanager
    def _heeding_on_kill(self, context: Context) -> Iterator[None]:
        """Remember whose task this is while it is executed."""
        self._ti = context.get("ti")
        self._thread = threading.get_ident()
        self._waits = self._killed = self._settled = False
        try:
            yield
        finally:
            self._thread = 0

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        """Let ``on_kill`` break off what is done in here, which asks Airflow nothing.

        Anywhere else, a request to Airflow may be under way: its answer would be taken for that to the next.
        """
        before, self._waits = self._waits, True
        try:
            if self._killed:
                self.on_kill()
            yield
        finally:
            self._waits = before

    @contextlib.contextmanager
    def _looking_after(self, own: OwnRun, hook: JobmonHook) -> Iterator[None]:
        """Leave no run behind that nobody owns, however the task is broken off (docs/rules.md, rule 2)."""
        self._own = own
        try:
            yield
        except TaskDeferred:
            raise
        except AirflowTaskTimeout:  # the limit that the user has set; on_kill is called next
            if not self._settled:
                self._settled = True
                self._cancel(own, hook)
            raise
        except Exception:
            if not self._settled:
                self._settled = True
                self._give_up(own, hook, stop=False)
            raise
        except BaseException:  # a termination, with or without a call of on_kill
            if not self._settled:
                self._settle(own)
            raise

    def on_kill(self) -> None:
        """Stop the run if Airflow says that a user has ended the task, or that it is over; else let it go.

        Airflow also calls this when a worker is drained or its heartbeats fail: then a retry goes on with the
        run.

        :raises AirflowException: no user has ended the task; this try of it ends.
        """
        interrupting = self._thread == threading.get_ident()
        if interrupting and not self._waits:
            self._killed = True
            return
        own = self._own
        if self._settled or (own is None and not interrupting):
            return
        self._killed = False
        if own is None:
            if self._earlier is not None:
                self._settle(self._earlier)
            raise AirflowException("this process was told to end before it had a workflow run to wait for")
        if self._settle(own) or not interrupting:
            return
        raise AirflowException(
            f"this process was told to end, and no user has ended the task, so workflow run"
            f" {own.workflow_run_id} goes on: a retry watches it"
        )

    def _settle(self, own: OwnRun) -> bool:
        """Do about the run what follows from the task's state in Airflow.

        :returns: whether a user has ended the task, or it is over.
        """
        self._settled = True
        state = state_of(self._ti)
        self.log.info("This process is told to end; the task's state in Airflow is: %s", state)
        if not is_ended(state):
            self.log.warning(
                "No user has ended the task, as far as Airflow tells, so workflow run %d is let go: a retry"
                " goes on with it. A run that no executor has taken is lost when its heartbeat runs out",
                own.workflow_run_id,
            )
            if self._execution is not None:
                self._execution.let_go()
            return False
        if state == "restarting" and self._memory is not None:
            within(_MEMORY_TIMEOUT, self._memory.remember_clear)
        self._cancel(own)
        return True

    def _cancel(self, own: OwnRun, hook: JobmonHook | None = None) -> None:
        """Stop the run as ``cancel_on_kill`` says, and the executor with it."""
        status = self._give_up(own, hook, stop=own.cancel_on_kill)
        if self._execution is None:
            return
        if status is None or not (own.cancel_on_kill or status.is_terminal):
            # Not known, or not to be stopped. One that has not taken the run ends by itself now; to end one
            # that has would leave its tasks at work on the cluster, which only the signal stops.
            self._execution.let_go()
        elif status is RunStatus.ABORTED:
            self._execution.stop()
        else:
            # It learns of the signal by its next heartbeat, has its tasks killed, and ends the run and
            # itself. If Airflow kills this process before that, it goes on doing so all the same.
            self._execution.stop(_EXECUTOR_GRACE if status.is_terminal else _CANCEL_PATIENCE)

    def _give_up(self, own: OwnRun, hook: JobmonHook | None, *, stop: bool) -> RunStatus | None:
        """Leave no run behind that nobody owns (docs/rules.md, rule 2).

        :param hook: None: read the connection anew.
        :param stop: also stop it if an executor has it.
        :returns: the status that it has now; None: not known.
        """
        from airflow_jobmon_provider.client.conversations import give_up_run

        run = own.workflow_run_id
        if stop and own.workflow_id is None:
            self.log.warning("The workflow of run %d is not known, so an executor is not told to stop", run)
        status: RunStatus | None = None
        giving_up = give_up_run(
            run,
            stop_workflow=own.workflow_id if stop else None,
            timeout=ON_KILL_TIMEOUT,
            clock=time.monotonic,
        )
        try:
            hook = hook or JobmonHook(own.jobmon_conn_id)
            hook.check_server(own.server)
            status = hook.converse(giving_up, log=self.log)
        except Exception as error:  # it must not hide why the run is given up
            self.log.warning("Workflow run %d could not be stopped: %s", run, error)
        else:
            self.log.info("Workflow run %d is now %s", run, status or "out of reach")
        return status

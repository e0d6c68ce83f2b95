"""Operators that resume a Jobmon workflow and create its next workflow run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
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

from airflow_jobmon_provider.client.decisions import KeepAlive
from airflow_jobmon_provider.client.exceptions import (
    InvalidRequest,
    JobmonError,
    WorkflowRunNotFound,
)
from airflow_jobmon_provider.client.statuses import RunStatus, WorkflowStatus
from airflow_jobmon_provider.client.validation import one_of, positive_id, seconds
from airflow_jobmon_provider.common import (
    DEFAULT_POLL_INTERVAL,
    ON_KILL_TIMEOUT,
    airflow_errors,
    check_heartbeat,
    check_literal_id,
    execution_deadline,
    execution_limit,
    heartbeat_of,
    read_event,
    remaining,
)
from airflow_jobmon_provider.hooks.jobmon import JobmonHook
from airflow_jobmon_provider.links import JobmonWorkflowLink

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_jobmon_provider.client.conversations import Conversation, Retries, RunEnd
    from airflow_jobmon_provider.client.protocol import Call, TaskCounts, WorkflowDetails
    from airflow_jobmon_provider.client.resume import Begun
    from airflow_jobmon_provider.execution import Execution

T = TypeVar("T")

_LAST_INSTANT = 0.001  # seconds; 0 would mean "check once", for as long as that takes
_EXECUTOR_GRACE = 30.0  # seconds that an executor has to stop its distributor after the run's end
_CANCEL_PATIENCE = 120.0  # seconds; its tasks learn that they are to end by a heartbeat each 90 s, by default


class ResumeWorkflowOperator(BaseOperator):
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
        ``resource_scales``, before they are reset; once, also where a retry follows. Needs Jobmon 3.7.
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

    def execute(self, context: Context) -> int:
        """Signal the resume, wait for it here or in the triggerer, and reset the tasks."""
        workflow_id = positive_id("workflow_id", self.workflow_id)
        hook = JobmonHook(self.jobmon_conn_id)
        with airflow_errors():
            decided = _Resume(
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

    def _defer(self, decided: _Resume, reset_running_jobs: bool | None) -> NoReturn:
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
            method_name="execute_complete",
            kwargs={"decided": asdict(decided)},
        )
        raise AssertionError("defer() does not return")

    def execute_complete(
        self, context: Context, event: dict[str, Any] | None = None, decided: dict[str, Any] | None = None
    ) -> int:
        """Go on when the trigger has fired, as was decided before the deferral.

        :param event: see :class:`~airflow_jobmon_provider.triggers.jobmon.WorkflowResumableTrigger`.
        :param decided: what ``execute`` had decided; None: a version of this provider deferred that did not
            say, and the operator's own arguments are all there is.
        """
        event = read_event(event)
        plan = self._decided_by_an_older_version(event) if decided is None else _Resume(**decided)
        if event["status"] != "success":
            if event["status"] == "timeout" and plan.is_over:
                raise AirflowTaskTimeout(f"execution_timeout is over: {event['message']}")
            raise AirflowException(event["message"])
        with airflow_errors():
            hook = JobmonHook(plan.jobmon_conn_id)
            hook.check_server(event.get("server") or plan.server)
            return _ResumeWork(plan, hook, self.log).finish(context)

    def _decided_by_an_older_version(self, event: dict[str, Any]) -> _Resume:
        if event.get("workflow_id") is None:
            read_event(None)
        return _Resume(
            workflow_id=positive_id("workflow_id", event["workflow_id"]),
            jobmon_conn_id=self.jobmon_conn_id,
            server=event.get("server"),
            reset_if_running=self.reset_if_running,
            increase_resources=self.increase_resources,
            if_done=self.if_done,
            resume_timeout=self.resume_timeout,
            deadline=time.time(),
            execution_deadline=None,
        )


@dataclass(frozen=True)
class _Resume:
    """What was decided before anything was sent, and holds after a deferral (design rule 9). Plain values.

    :param deadline: seconds since the epoch when ``resume_timeout`` is over.
    :param execution_deadline: the same for ``execution_timeout``; None: there is none.
    """

    workflow_id: int
    jobmon_conn_id: str
    server: str | None
    reset_if_running: bool
    increase_resources: bool
    if_done: str
    resume_timeout: float
    deadline: float
    execution_deadline: float | None

    @property
    def first_deadline(self) -> float:
        """When the first of both time-outs is over."""
        return (
            self.deadline if self.execution_deadline is None else min(self.deadline, self.execution_deadline)
        )

    @property
    def is_over(self) -> bool:
        """Whether it is ``execution_timeout`` that is over, if one of them is."""
        return self.execution_deadline is not None and self.execution_deadline <= self.deadline


class _ResumeWork:
    """What ``ResumeWorkflowOperator`` does on a worker, each request within the user's limits."""

    def __init__(self, decided: _Resume, hook: JobmonHook, log: Any) -> None:
        self.decided = decided
        self._hook = hook
        self._log = log

    def begin(self, reset_running_jobs: bool, force_cleanup: bool) -> Begun:
        """Find out all that would keep the workflow from being resumed, and only then tell its run to stop.

        :returns: what was found.
        :raises AirflowSkipException: the workflow is DONE and ``if_done="skip"``.
        """
        from airflow_jobmon_provider.client.resume import begin_resume

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
        from airflow_jobmon_provider.client.resume import check_at_rest, reset_tasks

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
        # A workflow that is DONE reports resumable, but refuses a new run (protocol page).
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
        self, context: Context, decided: _Resume, server: str, details: WorkflowDetails | None
    ) -> None:
        self._store: Any = context.get("task_state_store")
        # Once another run has begun, other tasks may have failed, or the same ones again.
        since = None if details is None else details.status_since
        self._raised = {"workflow_id": decided.workflow_id, "server": server, "status_since": since}
        self._sent = False

    def knows(self) -> bool:
        """Whether an earlier try raised them, or may have."""
        return self._store is not None and self._store.get(self._KEY) == self._raised

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


class CreateWorkflowRunOperator(BaseOperator):
    """Create the next run of a Jobmon workflow, keep it alive until an executor has it, and wait for its end.

    With ``cluster_name``, the worker executes the run itself, with the Jobmon client that is installed there;
    without, somebody else has to, who finds the run's id in the XCom ``workflow_run_id``.

    The run is LINKING at first. Airflow keeps its heartbeat good until an executor takes it (BOUND), and from
    then on only watches: the executor's own heartbeat has to tell Jobmon whether it lives.

    A retry goes on with the run that an earlier try created, while it lives (Airflow 3.3 and later remember
    it). Where the reply to creating one was lost, it waits until that run has been reaped. So no retry makes
    a second run.

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
    :param create_timeout: seconds in which the run must have been created, waiting for a lost one included.
        Default 600.
    :param handoff_timeout: seconds in which an executor must take the run; else it is aborted and the task
        fails. Default 3600.
    :param poll_interval: longest pause in seconds between looks at a run that an executor has. Default 60.
    :param cancel_on_kill: when a user marks the task failed or clears it, or it times out, also stop a run
        that an executor has, by a cold resume signal. False: leave it running. A run that nobody has taken is
        aborted in any case. While the task is deferred, Airflow tells of a user's act from 3.3 on. Default
        True.
    :param resume_on_retry: a retry that finds the earlier try's run ended badly resumes the workflow (cold)
        and creates another. False: it reports the failure again. Default False.
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
        self.keep_alive = one_of(
            "keep_alive", keep_alive, (KeepAlive.UNTIL_BOUND.value, KeepAlive.UNTIL_DONE.value)
        )
        self.create_timeout = seconds("create_timeout", create_timeout)
        self.handoff_timeout = seconds("handoff_timeout", handoff_timeout, above=0)
        self.poll_interval = seconds("poll_interval", poll_interval, above=0)
        self.cancel_on_kill = cancel_on_kill
        self.resume_on_retry = resume_on_retry
        self.deferrable = deferrable
        self._workflow_run_id: int | None = None
        self._execution: Execution | None = None

    def execute(self, context: Context) -> int:
        """Create the run, or find that of an earlier try, and wait for its end here or in the triggerer."""
        from airflow_jobmon_provider import execution
        from airflow_jobmon_provider.client.conversations import ended
        from airflow_jobmon_provider.triggers.jobmon import run_event

        workflow_id = positive_id("workflow_id", self.workflow_id)
        hook = JobmonHook(self.jobmon_conn_id)
        memory = _RunMemory(context, workflow_id)
        with airflow_errors():
            interval, buffer = heartbeat_of(
                hook.server.settings, self.workflow_run_heartbeat_interval, self.heartbeat_report_by_buffer
            )
            if self.cluster_name is not None:  # before there is a run
                python = execution.find_python(self.jobmon_python or hook.server.jobmon_python)
                environment = execution.executor_environment(hook.server.settings, interval, buffer)
            run, status = self._run_of_an_earlier_try(hook, memory) or (
                self._create(context, hook, workflow_id, interval * buffer),
                RunStatus.LINKING,
            )
            self._workflow_run_id = run
            try:
                memory.remember(run)
                context["ti"].xcom_push(key="workflow_id", value=workflow_id)
                context["ti"].xcom_push(key="workflow_run_id", value=run)
                JobmonWorkflowLink().store(context, hook.server.gui_url, workflow_id)
                if not self.wait_for_completion:
                    return run
                # Nothing is deferred that is over already.
                if status.is_terminal:
                    end = ended(run, status)
                elif self.cluster_name is not None and status is RunStatus.LINKING:
                    command = execution.executor_command(python, workflow_id, run, self.cluster_name)
                    self._execution = execution.Execution(command, environment, self.log)
                    end = self._wait_for_execution(hook, workflow_id, run, interval, buffer)
                else:
                    end = self._wait(hook, workflow_id, run, interval, buffer)
            except TaskDeferred:
                raise
            except AirflowTaskTimeout:
                self._cancel(hook, run, workflow_id)
                raise
            except BaseException:  # a termination is none of Exception's kind
                self._give_up(hook, run, stop_workflow=None)
                raise
        return self.execute_complete(context, run_event(run, end))

    def _create(self, context: Context, hook: JobmonHook, workflow_id: int, good_for: float) -> int:
        import getpass

        from airflow_jobmon_provider.client.ownership import create_run

        # A try before this one may have created a run and died before anybody learned of it.
        earlier_try = getattr(context["ti"], "try_number", 1) > 1
        creating = create_run(
            workflow_id,
            user=getpass.getuser(),
            good_for=good_for,
            timeout=self.create_timeout,
            perhaps_lost=earlier_try,
            clock=time.monotonic,
        )
        run = hook.converse(creating, log=self.log).workflow_run_id
        self.log.info("Created workflow run %d of workflow %d", run, workflow_id)
        return run

    def _run_of_an_earlier_try(self, hook: JobmonHook, memory: _RunMemory) -> tuple[int, RunStatus] | None:
        """Return the run to go on with and its status; None: a new one is to be created.

        :raises AirflowException: the run ended badly, and that is all there is to say.
        """
        from airflow_jobmon_provider.client import protocol
        from airflow_jobmon_provider.client.conversations import ended

        earlier = memory.recall()
        if earlier is None:
            return None
        run = earlier.workflow_run_id
        try:
            status = hook.ask(protocol.peek_status(run))
        except WorkflowRunNotFound:
            return None
        self.log.info("An earlier try created workflow run %d; it is %s: %s", run, status, status.meaning)
        factory = hook.get_workflow_run_factory(memory.workflow_id)
        patience = 0.0  # our run has ended: if one is alive now, it is somebody else's, and not ours to stop
        if memory.was_cleared_since(earlier):
            # The user wants it done again. The old try's trigger may not have been told to stop its run yet.
            if status is RunStatus.DONE:
                return None
            if not status.is_terminal:
                if not self.cancel_on_kill and status is not RunStatus.LINKING:
                    return run, status
                self._give_up(hook, run, stop_workflow=memory.workflow_id)
                patience = self.create_timeout
        elif not status.is_terminal or status is RunStatus.DONE:
            return run, status
        elif status is RunStatus.ABORTED:
            return None  # no executor ever had it, so there is nothing to resume
        elif not self.resume_on_retry:
            raise AirflowException(
                f"{ended(run, status).message}. Resume the workflow first, or set resume_on_retry=True to let"
                f" a retry do that"
            )
        factory.wait_for_workflow_resume(patience)
        factory.reset_task_statuses()
        self.log.info("Workflow %d is ready for its next run", memory.workflow_id)
        return None

    def _wait(self, hook: JobmonHook, workflow_id: int, run: int, interval: float, buffer: float) -> RunEnd:
        created_at = time.time()
        self.log.info(
            "Keeping it alive until an executor takes it, for up to %g s: start one on the cluster",
            self.handoff_timeout,
        )
        if self.deferrable:
            from airflow_jobmon_provider.triggers.jobmon import WorkflowRunHeartbeatTrigger

            limit = self.execution_timeout  # does not tick while deferred, so the trigger keeps it
            self.defer(
                trigger=WorkflowRunHeartbeatTrigger(
                    workflow_run_id=run,
                    jobmon_conn_id=self.jobmon_conn_id,
                    workflow_run_heartbeat_interval=interval,
                    heartbeat_report_by_buffer=buffer,
                    keep_alive=self.keep_alive,
                    poll_interval=self.poll_interval,
                    handoff_deadline=created_at + self.handoff_timeout,
                    deadline=created_at + limit.total_seconds() if limit else None,
                    owned=True,
                    created_at=created_at,
                    workflow_id=workflow_id,
                    cancel_on_kill=self.cancel_on_kill,
                ),
                method_name="execute_complete",
            )
        watch = self._watch(workflow_id, run, interval, buffer, KeepAlive(self.keep_alive))
        return hook.converse(watch, log=self.log)

    def _watch(
        self, workflow_id: int, run: int, interval: float, buffer: float, keep_alive: KeepAlive
    ) -> Conversation[RunEnd]:
        from airflow_jobmon_provider.client.conversations import watch_run
        from airflow_jobmon_provider.client.follow import ProgressWatch

        return watch_run(
            run,
            keep_alive=keep_alive,
            heartbeat_interval=interval,
            report_by_buffer=buffer,
            poll_interval=self.poll_interval,
            clock=time.monotonic,
            handoff_timeout=self.handoff_timeout,
            progress=ProgressWatch(workflow_id, time.monotonic),
        )

    def _wait_for_execution(
        self, hook: JobmonHook, workflow_id: int, run: int, interval: float, buffer: float
    ) -> RunEnd:
        """Watch the run while our own executor is at work on it, and see to its end if that one dies."""
        from airflow_jobmon_provider.client.conversations import RunOutcome, ended
        from airflow_jobmon_provider.execution import ExecutorEnded
        from airflow_jobmon_provider.executor import Exit

        execution = self._execution
        assert execution is not None
        watch = self._watch(workflow_id, run, interval, buffer, KeepAlive(self.keep_alive))
        try:
            end = hook.converse(watch, log=self.log, sleep=execution.wait)
        except ExecutorEnded:
            execution.stop()  # at once: what it has started must not go on for nobody
            status, keep_alive = self._end_after_executor(hook, run, execution)
            if status is not None and status.is_terminal:
                end = ended(run, status)
            else:
                watch = self._watch(workflow_id, run, interval, buffer, keep_alive)
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
        from airflow_jobmon_provider.client.ownership import end_without_executor
        from airflow_jobmon_provider.executor import Exit

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

    def execute_complete(self, context: Context, event: dict[str, Any]) -> int:
        """Succeed or fail as the run has ended.

        :param event: see :class:`~airflow_jobmon_provider.triggers.jobmon.WorkflowRunHeartbeatTrigger`.
        """
        from airflow_jobmon_provider.client.follow import count_tasks, explain_failure

        run: int = event["workflow_run_id"]
        workflow_id = positive_id("workflow_id", self.workflow_id)
        hook = JobmonHook(self.jobmon_conn_id)
        context["ti"].xcom_push(key="status", value=event["workflow_run_status"])
        if event["status"] == "success":
            self.log.info(event["message"])
            with contextlib.suppress(JobmonError, AirflowException):  # DONE, whatever else cannot be told
                self._push_counts(context, hook.converse(count_tasks(workflow_id), log=self.log))
            return run
        if event["status"] != "failed":  # gave up on a run that may still be ours
            timed_out = event["status"] == "timeout" and self.cancel_on_kill
            self._give_up(hook, run, stop_workflow=workflow_id if timed_out else None)
            raise AirflowException(event["message"])
        if event["workflow_run_status"] == RunStatus.ABORTED:  # the tasks had no part in it
            raise AirflowException(event["message"])
        with airflow_errors():
            explanation = hook.converse(explain_failure(workflow_id), log=self.log)
        self._push_counts(context, explanation.counts)
        raise AirflowException(f"{event['message']}\n{explanation.text}".rstrip())

    def _push_counts(self, context: Context, counts: TaskCounts | None) -> None:
        if counts is not None:
            self.log.info("Workflow %s: %s", self.workflow_id, counts)
            context["ti"].xcom_push(key="task_counts", value=counts.as_dict())

    def on_kill(self) -> None:
        """Abort the run if no executor has taken it; stop one that an executor has, by ``cancel_on_kill``."""
        if self._workflow_run_id is not None:
            workflow_id = positive_id("workflow_id", self.workflow_id)
            self._cancel(JobmonHook(self.jobmon_conn_id), self._workflow_run_id, workflow_id)

    def _cancel(self, hook: JobmonHook, run: int, workflow_id: int) -> None:
        """Stop the run as ``cancel_on_kill`` says, and the executor with it."""
        status = self._give_up(hook, run, stop_workflow=workflow_id if self.cancel_on_kill else None)
        if self._execution is None:
            return
        taken = status is not None and not status.is_terminal
        if taken and not self.cancel_on_kill:
            self._execution.let_go()
            return
        # It learns of the signal by its next heartbeat, has its tasks killed, and ends the run and itself.
        # If Airflow kills this process before that, it goes on doing so all the same.
        self._execution.stop(_CANCEL_PATIENCE if taken else 0)

    def _give_up(self, hook: JobmonHook, run: int, *, stop_workflow: int | None) -> RunStatus | None:
        """Leave no run behind that nobody owns (design rule 2)."""
        from airflow_jobmon_provider.client.ownership import give_up_run

        status: RunStatus | None = None
        giving_up = give_up_run(
            run, stop_workflow=stop_workflow, timeout=ON_KILL_TIMEOUT, clock=time.monotonic
        )
        try:
            status = hook.converse(giving_up, log=self.log)
        except (JobmonError, AirflowException) as error:
            self.log.warning("Workflow run %d could not be stopped: %s", run, error)
        else:
            self.log.info("Workflow run %d is now %s", run, status or "out of reach")
        return status


@dataclass(frozen=True)
class _EarlierRun:
    """What a try remembers for the next: its run, and how often a user had cleared the DAG run by then."""

    workflow_run_id: int
    clear_number: int


class _RunMemory:
    """Remembers across the tries of a task which run it created, where Airflow has a place for that (3.3)."""

    _KEY = "jobmon_workflow_run"

    def __init__(self, context: Context, workflow_id: int) -> None:
        self.workflow_id = workflow_id
        self._store: Any = context.get("task_state_store")
        self._clear_number = getattr(context.get("dag_run"), "clear_number", None) or 0

    def recall(self) -> _EarlierRun | None:
        """Return the run of an earlier try for the same workflow."""
        kept = self._store.get(self._KEY) if self._store is not None else None
        if not isinstance(kept, dict) or kept.get("workflow_id") != self.workflow_id:
            return None
        return _EarlierRun(int(kept["workflow_run_id"]), int(kept["clear_number"]))

    def remember(self, workflow_run_id: int) -> None:
        """Keep the run for the next try."""
        if self._store is not None:
            kept = {"workflow_id": self.workflow_id, "workflow_run_id": workflow_run_id}
            self._store.set(self._KEY, {**kept, "clear_number": self._clear_number})

    def was_cleared_since(self, earlier: _EarlierRun) -> bool:
        """Whether a user has cleared tasks of the DAG run since that try: a new try is no retry then."""
        return self._clear_number != earlier.clear_number

"""Workflow runs of Jobmon: resume a workflow, create its next run, keep that run's heartbeat alive.

A drop-in for ``jobmon.client.workflow_run``: same names, signatures and defaults, so that Jobmon's own resume
command works with this module in place of theirs. What differs: waiting returns the moment the workflow is
resumable, and a reply that says no raises.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from airflow_jobmon_provider.client import protocol
from airflow_jobmon_provider.client.conversations import (
    Conversation,
    Retries,
    ask_again,
    in_time,
    wait_until_resumable,
)
from airflow_jobmon_provider.client.conversations.pacing import STARTING
from airflow_jobmon_provider.client.conversations.resume import check_increase_resources
from airflow_jobmon_provider.client.exceptions import (
    ResumeTimeout,
    ServerFailure,
    ServerUnreachable,
    WorkflowBusy,
    WorkflowNotResumable,
)
from airflow_jobmon_provider.client.heartbeat import Heartbeat
from airflow_jobmon_provider.client.lifecycle import RunStatus, read_status
from airflow_jobmon_provider.client.protocol import routes
from airflow_jobmon_provider.client.requester import Requester, ask, converse, retries
from airflow_jobmon_provider.client.settings import (
    DEFAULT_RETRIES_ATTEMPTS,
    DEFAULT_RETRIES_TIMEOUT,
    heartbeat_defaults,
)
from airflow_jobmon_provider.client.user import current_user
from airflow_jobmon_provider.client.validation import number, positive_id

__all__ = ["WorkflowRun", "WorkflowRunFactory", "logger"]

logger = logging.getLogger(__name__)

_LAST_INSTANT = 0.001  # seconds; 0 would mean "check once", for as long as that takes


class WorkflowRunFactory:
    """Brings a workflow into a state in which its next run can be created, and creates it.

    :param workflow_id: the workflow; digits as text are taken, too.
    :param requester: anything with Jobmon's ``send_request``. Default: as Jobmon's own settings say.
    :raises ValueError: the workflow id is no positive integer.
    :raises ConfigError: no requester was given and Jobmon's settings name no server.
    """

    def __init__(self, workflow_id: int | str, requester: Any = None) -> None:
        self.workflow_id = positive_id("workflow_id", workflow_id)
        self.requester = Requester.from_defaults() if requester is None else requester
        self.workflow_is_resumable = False

    def __repr__(self) -> str:
        """Name the workflow."""
        return f"WorkflowRunFactory(workflow_id={self.workflow_id})"

    def set_workflow_resume(
        self, reset_running_jobs: bool = True, resume_timeout: float = 300, force_cleanup: bool = False
    ) -> None:
        """Tell the workflow's active run to stop, and wait until the workflow can be resumed.

        :param reset_running_jobs: True: cold resume, running tasks are killed. False: hot resume, they are
            let finish. Default True.
        :param resume_timeout: seconds for signal and wait, also where the server does not answer; 0: ask
            once for each. Default 300. It needs a requester of this project: any other gives each request a
            time-out of its own.
        :param force_cleanup: clean task instances in KILL_SELF up at once instead of waiting for their
            workers, for jobs that were ended from outside (scancel, node failure). Needs Jobmon 3.7. Default
            False.
        :raises WorkflowNotFound: there is no such workflow.
        :raises ResumeTimeout: it did not become resumable in time; a ``WorkflowNotResumable``.
        :raises RouteNotSupported: the server cannot force a clean-up; nothing was changed.
        :raises ServerUnreachable, ServerFailure: the server did not answer, also not in the end.
        """
        end = time.monotonic() + number("resume_timeout", resume_timeout)
        self._signal(reset_running_jobs, force_cleanup, resume_timeout)
        left = max(end - time.monotonic(), _LAST_INSTANT) if resume_timeout > 0 else 0
        self.wait_for_workflow_resume(left, force_cleanup)

    def signal_resume(self, reset_running_jobs: bool = True, force_cleanup: bool = False) -> None:
        """Tell the workflow's active run to stop, and do not wait for it.

        The server takes the signal for a workflow that does not exist, too; waiting finds that out.

        :param reset_running_jobs: see :meth:`set_workflow_resume`.
        :param force_cleanup: see :meth:`set_workflow_resume`.
        :raises RouteNotSupported: the server cannot force a clean-up; nothing was changed.
        """
        self._signal(reset_running_jobs, force_cleanup, None)

    def _signal(self, reset_running_jobs: bool, force_cleanup: bool, timeout: float | None) -> None:
        """Signal. ``timeout``: seconds that it may take; 0: ask once; None: as the requester tries."""
        started = time.monotonic()

        def signal() -> Conversation[None]:
            if force_cleanup:
                # Before the signal: a server that cannot clean up says so while nothing has been changed.
                try:
                    yield from wait_until_resumable(
                        self.workflow_id, timeout=0, force_cleanup=True, clock=time.monotonic
                    )
                    self.workflow_is_resumable = True
                    return
                except ResumeTimeout:
                    pass
                except (ServerUnreachable, ServerFailure):
                    if timeout and time.monotonic() - started >= timeout:
                        raise
            call = routes.set_resume(self.workflow_id, bool(reset_running_jobs))
            yield from ask_again(call, self._retries(timeout), time.monotonic)

        if not self.workflow_is_resumable:
            signalling = signal()
            if timeout:
                signalling = in_time(signalling, timeout, time.monotonic)
            converse(self.requester, signalling, log=logger)

    def wait_for_workflow_resume(self, resume_timeout: float = 300, force_cleanup: bool = False) -> None:
        """Wait until the workflow can be resumed, without telling anything to stop.

        The first check is at once, the last at the deadline, and nothing is waited for after a yes.

        :param resume_timeout: seconds to wait; 0: check once. Default 300.
        :param force_cleanup: see :meth:`set_workflow_resume`.
        :raises WorkflowNotFound: there is no such workflow.
        :raises ResumeTimeout: it did not become resumable in time; a ``WorkflowNotResumable``.
        :raises RouteNotSupported: the server cannot force a clean-up.
        :raises ServerUnreachable, ServerFailure: the server did not answer, also not in the end.
        """
        number("resume_timeout", resume_timeout)
        if self.workflow_is_resumable:
            return
        waiting = wait_until_resumable(
            self.workflow_id, timeout=resume_timeout, force_cleanup=force_cleanup, clock=time.monotonic
        )
        converse(self.requester, waiting, log=logger)
        self.workflow_is_resumable = True

    def _retries(self, timeout: float | None = None) -> Retries:
        """Return how long the requester tries a request again, and no longer than the time-out."""
        retries_timeout = getattr(self.requester, "retries_timeout", DEFAULT_RETRIES_TIMEOUT)
        attempts = getattr(self.requester, "retries_attempts", DEFAULT_RETRIES_ATTEMPTS)
        return Retries(retries_timeout if timeout is None else min(retries_timeout, timeout), attempts)

    def force_cleanup_kill_self(self) -> int:
        """Give up on task instances that were told to kill themselves, and end their run.

        :returns: how many task instances were cleaned up.
        :raises RouteNotSupported: the server cannot do it (before 3.7).
        """
        cleaned = ask(self.requester, routes.force_cleanup_kill_self(self.workflow_id))
        logger.info("workflow %d: cleaned up %d KILL_SELF task instance(s)", self.workflow_id, cleaned)
        return cleaned

    def check_increase_resources(self) -> None:
        """Make sure that the server can do what :meth:`increase_resources` asks for; changes nothing.

        :raises RouteNotSupported: the server cannot do it (before 3.6).
        """
        checking = check_increase_resources(self.workflow_id, self._retries(), time.monotonic)
        converse(self.requester, checking, log=logger)

    def increase_resources(self) -> int:
        """Raise the resources of tasks that failed for lack of them, by the tasks' own ``resource_scales``.

        To be called before :meth:`reset_task_statuses`, which makes the server forget why a task failed. A
        second call before that raises the same tasks once more.

        :returns: how many tasks were raised.
        :raises WorkflowBusy: a run of the workflow is alive; nothing was changed.
        :raises RouteNotSupported: the server cannot do it (before 3.6).
        :raises WorkflowNotFound: there is no such workflow.
        """
        if not ask(self.requester, routes.is_resumable(self.workflow_id)).resumable:
            raise WorkflowBusy(f"workflow {self.workflow_id} is not resumable: a run of it is alive")
        self._refuse_if_starting()
        raised = ask(self.requester, routes.increase_resources(self.workflow_id))
        logger.info("workflow %d: raised the resources of %d task(s)", self.workflow_id, raised)
        return raised

    def reset_task_statuses(self, reset_if_running: bool = True, force_cleanup: bool = False) -> None:
        """Make the workflow's tasks that are not done ready to run again; waits for resumability first.

        The server needs time in proportion to the workflow's tasks, which no ``resume_timeout`` bounds.

        :param reset_if_running: also those that are running. Default True.
        :param force_cleanup: see :meth:`set_workflow_resume`.
        :raises WorkflowBusy: an executor has a run of the workflow and is about to begin (INSTANTIATED,
            LAUNCHED), for which Jobmon itself would reset its tasks; a ``WorkflowNotResumable``.
        :raises WorkflowNotResumable: the server refused, with its words.
        :raises WorkflowNotFound: there is no such workflow.
        """
        self.wait_for_workflow_resume(force_cleanup=force_cleanup)
        self._refuse_if_starting()
        ask(self.requester, routes.set_resume_state(self.workflow_id, bool(reset_if_running)))

    def _refuse_if_starting(self) -> None:
        details = ask(self.requester, routes.workflow_details(self.workflow_id))
        if details is not None and details.status in STARTING:
            raise WorkflowBusy(
                f"workflow {self.workflow_id} is not resumable: an executor has taken a run of it and is"
                f" about to begin (INSTANTIATED or LAUNCHED)"
            )

    def create_workflow_run(
        self,
        workflow_run_heartbeat_interval: float | None = None,
        heartbeat_report_by_buffer: float | None = None,
    ) -> WorkflowRun:
        """Create the workflow's next run. The workflow should have been told to resume before.

        :param workflow_run_heartbeat_interval: see :class:`WorkflowRun`.
        :param heartbeat_report_by_buffer: see :class:`WorkflowRun`.
        :returns: the run, which is LINKING and lost when its heartbeat runs out.
        :raises WorkflowNotResumable: the server refused, with its words.
        :raises WorkflowNotFound: there is no such workflow.
        """
        run = WorkflowRun(
            self.workflow_id, self.requester, workflow_run_heartbeat_interval, heartbeat_report_by_buffer
        )
        run.bind()
        return run


class WorkflowRun:
    """One run of a workflow: each start and each resume makes a new one.

    :param workflow_id: the workflow; digits as text are taken, too.
    :param requester: anything with Jobmon's ``send_request``. Default: as Jobmon's own settings say.
    :param workflow_run_heartbeat_interval: seconds between heartbeats. 0 is legal, and a run that is lost at
        once. Default: Jobmon's setting, 30.
    :param heartbeat_report_by_buffer: a heartbeat is good for the interval times this. Default: Jobmon's
        setting, 3.1.
    :raises ValueError: a number is negative or not finite, or the workflow id is no integer.
    :raises ConfigError: no requester was given and Jobmon's settings name no server.
    """

    def __init__(
        self,
        workflow_id: int | str,
        requester: Any = None,
        workflow_run_heartbeat_interval: float | None = None,
        heartbeat_report_by_buffer: float | None = None,
    ) -> None:
        # As with Jobmon's own class, whose test suite makes one for workflow -1, bind() refuses an integer
        # that is no id; anything that is no integer is refused here.
        if not isinstance(workflow_id, int) or isinstance(workflow_id, bool):
            workflow_id = positive_id("workflow_id", workflow_id)
        self.workflow_id = workflow_id
        self.user = current_user()
        self.requester = Requester.from_defaults() if requester is None else requester
        default = heartbeat_defaults()
        self.heartbeat_interval, self.heartbeat_report_by_buffer = default.interval, default.buffer
        if workflow_run_heartbeat_interval is not None:
            given = number("workflow_run_heartbeat_interval", workflow_run_heartbeat_interval)
            self.heartbeat_interval = given
        if heartbeat_report_by_buffer is not None:
            given = number("heartbeat_report_by_buffer", heartbeat_report_by_buffer)
            self.heartbeat_report_by_buffer = given
        self._workflow_run_id: int | None = None
        self._status: str | None = None

    @property
    def _heartbeat(self) -> Heartbeat:
        return Heartbeat(self.heartbeat_interval, self.heartbeat_report_by_buffer)

    @property
    def workflow_run_id(self) -> int:
        """Id of the run.

        :raises WorkflowNotResumable: it was not bound yet.
        """
        if self._workflow_run_id is None:
            raise WorkflowNotResumable(f"{self!r} has no id: bind() it first")
        return self._workflow_run_id

    @property
    def status(self) -> str | None:
        """Code of the status that the server last reported.

        :raises WorkflowNotResumable: it was not bound yet.
        """
        if self._status is None:
            raise WorkflowNotResumable(f"{self!r} has no status: bind() it first")
        return self._status

    def bind(self) -> None:
        """Create the run on the server; a second call does nothing.

        A lost reply is not followed by a second try, which would only be refused: the first may have created
        a run. Only a request that certainly changed nothing is sent again.

        :raises WorkflowNotResumable: the server refused, with its words.
        :raises WorkflowNotFound: there is no such workflow; a ``WorkflowNotResumable``.
        :raises ServerUnreachable, ServerFailure: no answer. If ``processed`` is true, the run may exist and
            keep the workflow busy until its heartbeat runs out.
        :raises ValueError: the workflow id is not positive; nothing was sent.
        """
        if self._workflow_run_id is not None:
            return
        _refuse_no_id(self.workflow_id)
        call = routes.create_workflow_run(self.workflow_id, self.user, self._heartbeat.good_for)
        retrying = retries(
            getattr(self.requester, "retries_timeout", DEFAULT_RETRIES_TIMEOUT),
            getattr(self.requester, "retries_attempts", DEFAULT_RETRIES_ATTEMPTS),
            protocol.was_not_processed,
        )
        created = retrying(ask, self.requester, call)
        self._workflow_run_id = created.workflow_run_id
        self._status = created.status.value

    def log_heartbeat(self) -> str:
        """Say that the run is alive, with the status the server last reported: a heartbeat can move a run.

        :returns: code of the status that is now.
        :raises WorkflowNotResumable: it was not bound yet.
        :raises WorkflowRunNotFound: the server does not know the run any more.
        """
        known = read_status(self.status or "")
        call = routes.log_heartbeat(self.workflow_run_id, known, self._heartbeat.good_for)
        return self._learn(ask(self.requester, call))

    def peek_status(self) -> str:
        """Read the run's status from the server and change nothing there.

        :returns: code of the status that is now.
        :raises WorkflowNotResumable: it was not bound yet.
        :raises WorkflowRunNotFound: the server does not know the run any more.
        """
        return self._learn(ask(self.requester, routes.peek_status(self.workflow_run_id)))

    def _update_status(self, status: str) -> None:
        """Ask for a transition of the run; afterwards ``status`` is what the server says it is.

        :param status: code of the wanted status. The server ignores a transition that is not valid.
        :raises ValueError: there is no such status.
        """
        wanted = RunStatus(status)
        now = self._learn(ask(self.requester, routes.update_status(self.workflow_run_id, wanted)))
        if now != wanted:
            logger.warning("%r: Jobmon refused to move it to %s", self, wanted)

    def _learn(self, status: RunStatus) -> str:
        if not status.is_known and status != self._status:
            logger.warning("workflow run %s is %s: %s", self._workflow_run_id, status, status.meaning)
        self._status = status.value
        return status.value

    def __repr__(self) -> str:
        """Name workflow, run and status, also before the run is bound."""
        return (
            f"WorkflowRun(workflow_id={self.workflow_id}, workflow_run_id={self._workflow_run_id},"
            f" status={self._status})"
        )


class _NoWorkflowId(WorkflowNotResumable, ValueError):
    """A workflow id that is not valid, as Jobmon's callers (first base) and Python's (second) expect it."""


def _refuse_no_id(workflow_id: int) -> None:
    try:
        positive_id("workflow_id", workflow_id)
    except ValueError as error:
        raise _NoWorkflowId(str(error)) from None

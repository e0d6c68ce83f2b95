"""What a try of a task has come to, and what is done about its run when the try is broken off."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.providers.common.compat.sdk import AirflowException, AirflowTaskTimeout, TaskDeferred

from airflow_jobmon_provider.client.conversations import give_up_run, in_time
from airflow_jobmon_provider.client.lifecycle import RunStatus
from airflow_jobmon_provider.client.redaction import excerpt
from airflow_jobmon_provider.execution.watching import EXECUTOR_GRACE
from airflow_jobmon_provider.hooks.jobmon import JobmonHook
from airflow_jobmon_provider.task.limits import ON_KILL_TIMEOUT, remaining
from airflow_jobmon_provider.task.state import SUCCESS, is_ended, state_of, within

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_jobmon_provider.client.conversations import Conversation
    from airflow_jobmon_provider.execution.job_execution import JobExecution
    from airflow_jobmon_provider.execution.process import Execution
    from airflow_jobmon_provider.operators._decided import OwnRun
    from airflow_jobmon_provider.operators._retry import RunMemory

T = TypeVar("T")

_CANCEL_PATIENCE = 120.0  # seconds; its tasks learn that they are to end by a heartbeat each 90 s, by default
_MEMORY_TIMEOUT = 2.0  # seconds


class Attempt:
    """A try of ``CreateWorkflowRunOperator``, from ``execute`` or ``execute_complete`` to its end.

    It knows nothing of the operator's parameters: all that holds for a run comes with the run (docs/rules.md,
    rule 9). Airflow may call ``on_kill`` in a signal handler amid anything that is done here, or in another
    thread.

    :param context: the running task's.
    :param log: the task's.
    :param kept: what was known of the run before a deferral; empty: there was none, or an older version kept
        nothing.
    :ivar memory: what a retry learns of; None: this is no try that may create a run.
    :ivar earlier: the run of an earlier try, at which this one looks.
    :ivar own: the run that this try looks after.
    :ivar execution: our own executor of that run.
    :ivar settled: nothing is to be done about the run any more.
    """

    def __init__(self, context: Context, log: Any, kept: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.kept = kept
        self.memory: RunMemory | None = None
        self.earlier: OwnRun | None = None
        self.own: OwnRun | None = None
        self.execution: Execution | JobExecution | None = None
        self.settled = False
        self._ti: Any = context.get("ti")
        self._log = log
        self._thread = 0  # in which the task is executed
        self._waits = False  # for Jobmon, and asks Airflow nothing
        self._killed = False  # on_kill was called, and is to be heeded as soon as the task waits

    # --- What the try does ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def heeding_on_kill(self) -> Iterator[None]:
        """Know the thread in which the task is executed, as long as it is: ``on_kill`` may interrupt it."""
        self._thread = threading.get_ident()
        try:
            yield
        finally:
            self._thread = 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
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
    def looking_after(self, own: OwnRun, hook: JobmonHook) -> Iterator[None]:
        """Leave no run behind without an owner, however the task is broken off (docs/rules.md, rule 2)."""
        self.own = own
        try:
            yield
        except TaskDeferred:
            raise
        except AirflowTaskTimeout:  # the limit that the user has set; on_kill is called next
            if not self.settled:
                self.settled = True
                self._cancel(own, hook)
            raise
        except Exception:
            if not self.settled:
                self.settled = True
                self._give_up(own, hook, stop=False)
            raise
        except BaseException:  # a termination, with or without a call of on_kill
            if not self.settled:
                self._settle(own)
            raise

    def converse(self, hook: JobmonHook, conversation: Conversation[T]) -> T:
        """Carry a conversation to its end; ``on_kill`` is heeded in its pauses, not amid a request."""

        def sleep(seconds: float) -> None:
            with self.waiting():
                time.sleep(seconds)

        return hook.converse(conversation, log=self._log, sleep=sleep)

    def push(self, key: str, value: Any) -> None:
        """Push an XCom of the task."""
        self._ti.xcom_push(key=key, value=value)

    def tell(self, own: OwnRun, hook: JobmonHook, asking: Conversation[T]) -> tuple[T | None, str]:
        """Return what the server tells of a run that has ended, and else why it tells nothing."""
        left = math.inf if own.deadline is None else remaining(own.deadline)
        try:
            hook.check_server(own.server)
            return self.converse(hook, in_time(asking, left, time.monotonic, at_least=0)), ""
        except Exception as error:
            return None, excerpt(error)

    def leave(self, own: OwnRun, hook: JobmonHook, *, timed_out: bool) -> None:
        """Do what is to be done about a run that has not ended when its watch ends: it may still be ours.

        :param timed_out: the watch ended at one of its limits.
        """
        # A hand-off that was not seen in time is no reason to stop an executor that may have the run.
        over = not self.kept if own.deadline is None else remaining(own.deadline) == 0
        self._give_up(own, hook, stop=timed_out and over and own.cancel_on_kill)
        self.settled = True

    # --- How it is broken off -------------------------------------------------------------------------------

    def on_kill(self) -> None:
        """Do what the operator's ``on_kill`` promises.

        :raises AirflowException: no user has ended the task; this try of it ends.
        """
        interrupting = self._thread == threading.get_ident()
        if interrupting and not self._waits:
            self._killed = True
            return
        own = self.own
        if self.settled or (own is None and not interrupting):
            return
        self._killed = False
        if own is None:
            if self.earlier is not None:
                self._settle(self.earlier)
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
        self.settled = True
        state = state_of(self._ti)
        self._log.info("This process is told to end; the task's state in Airflow is: %s", state)
        if not is_ended(state):
            if state == SUCCESS:
                why = "A user has marked the task as success, so workflow run %d is left alone"
            else:
                why = (
                    "No user has ended the task, as far as Airflow tells, so workflow run %d is let go: a"
                    " retry goes on with it"
                )
            lost = ". A run that no executor has taken is lost when its heartbeat runs out"
            self._log.warning(why + lost, own.workflow_run_id)
            if self.execution is not None:
                self.execution.let_go()
            return state == SUCCESS
        if state == "restarting" and self.memory is not None:
            within(_MEMORY_TIMEOUT, self.memory.remember_clear)
        self._cancel(own)
        return True

    def _cancel(self, own: OwnRun, hook: JobmonHook | None = None) -> None:
        """Stop the run as ``cancel_on_kill`` says, and the executor with it."""
        status = self._give_up(own, hook, stop=own.cancel_on_kill)
        if self.execution is None:
            return
        if status is None or not (own.cancel_on_kill or status.is_terminal):
            # Not known, or not to be stopped. One that has not taken the run ends by itself now; to end one
            # that has would leave its tasks at work on the cluster, which only the signal stops.
            self.execution.let_go()
        elif status is RunStatus.ABORTED:
            self.execution.stop()
        else:
            # It learns of the signal by its next heartbeat, has its tasks killed, and ends the run and
            # itself. If Airflow kills this process before that, it goes on doing so all the same.
            self.execution.stop(EXECUTOR_GRACE if status.is_terminal else _CANCEL_PATIENCE)

    def _give_up(self, own: OwnRun, hook: JobmonHook | None, *, stop: bool) -> RunStatus | None:
        """Leave no run behind without an owner (docs/rules.md, rule 2).

        :param hook: None: read the connection anew.
        :param stop: also stop it if an executor has it.
        :returns: the status that it has now; None: not known.
        """
        run = own.workflow_run_id
        if stop and own.workflow_id is None:
            self._log.warning("The workflow of run %d is not known, so an executor is not told to stop", run)
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
            status = hook.converse(giving_up, log=self._log)
        except Exception as error:  # it must not hide why the run is given up
            self._log.warning("workflow run %d could not be stopped: %s", run, error)
        else:
            self._log.info("workflow run %d is now %s", run, status or "out of reach")
        return status

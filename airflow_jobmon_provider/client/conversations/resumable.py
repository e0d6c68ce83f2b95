"""Wait until a workflow is resumable."""

from __future__ import annotations

import logging
import random

from airflow_jobmon_provider.client.conversations import pacing
from airflow_jobmon_provider.client.conversations.asking import (
    _SHORTEST_PAUSE,
    Outage,
    in_time,
)
from airflow_jobmon_provider.client.conversations.pacing import ResumeStep, Uniform
from airflow_jobmon_provider.client.conversations.steps import (
    Clock,
    Conversation,
    Note,
    Pause,
)
from airflow_jobmon_provider.client.exceptions import (
    JobmonError,
    ResumeTimeout,
)
from airflow_jobmon_provider.client.lifecycle import WorkflowStatus
from airflow_jobmon_provider.client.protocol import Call, WorkflowDetails, routes


def wait_until_resumable(
    workflow_id: int,
    *,
    timeout: float,
    force_cleanup: bool,
    clock: Clock,
    uniform: Uniform = random.uniform,
    at_rest: bool = False,
    signal: Call[None] | None = None,
    kill_patience: float = 0.0,
    longest: float | None = None,
) -> Conversation[WorkflowDetails | None]:
    """Return once the workflow is resumable.

    The first check is at once, and nothing is waited for after the one that says yes. An outage is waited
    out as long as the time-out allows; no request outlasts it by more than ``LAST_LOOK``.

    :param timeout: seconds; 0: check once.
    :param force_cleanup: clean KILL_SELF task instances up instead of waiting for their workers.
    :param clock: monotonic seconds.
    :param at_rest: wait for the end of a run in INSTANTIATED or LAUNCHED, too. An executor has such a run and
        is about to begin, but for Jobmon its workflow is resumable. Default False: as Jobmon says.
    :param signal: the workflow's active run was told to stop while it may have been in a status that takes no
        signal (LINKING, INSTANTIATED, LAUNCHED): send this again until it is in one that does. Default: no
        signal.
    :param kill_patience: seconds for which ``force_cleanup`` waits for KILL_SELF task instances as long as
        none of them ends. For a workflow whose run was alive a moment ago: they may still be at work, and
        would go on beside those of the next run. Default 0: they are cleaned up at once.
    :param longest: longest pause in seconds between two checks. Default: ``LONGEST_RESUME_PAUSE``.
    :returns: the workflow's details as of the check that said yes, with ``at_rest``; else None. None also for
        a workflow without runs.
    :raises ResumeTimeout: the time is over.
    :raises ServerFailure, ServerUnreachable: the time is over, and the server did not answer at the end.
    :raises RouteNotSupported: a clean-up is wanted of a server that has none.
    :raises WorkflowNotFound, InvalidRequest, UnreadableReply: final, whatever the time.
    """
    outage = Outage(f"workflow {workflow_id}", clock, tries_on=timeout > 0)
    looks = _Looks(workflow_id, outage, force_cleanup, at_rest, signal, kill_patience, clock)
    waiting = _wait_until_resumable(looks, timeout, clock, uniform, longest or pacing.LONGEST_RESUME_PAUSE)
    return (yield from in_time(waiting, timeout, clock) if timeout > 0 else waiting)


def _wait_until_resumable(
    looks: _Looks, timeout: float, clock: Clock, uniform: Uniform, longest: float
) -> Conversation[WorkflowDetails | None]:
    started = clock()
    while True:
        step = yield from looks.look()
        if step is ResumeStep.RESUMABLE:
            return looks.details
        if step is ResumeStep.CLEAN_UP:
            continue  # it has just been done: look again at once
        elapsed = clock() - started
        if elapsed >= timeout:
            raise looks.problem(elapsed)
        wanted = pacing.resume_pause(elapsed, uniform, longest)
        if looks.outage.error is not None:
            wanted = looks.outage.pause(min(longest, pacing.LONGEST_OUTAGE_PAUSE), uniform)
        yield Pause(max(min(wanted, timeout - elapsed), _SHORTEST_PAUSE))


class _Looks:
    """Looks whether a workflow is resumable, does what a look asks for, and knows what the last one saw."""

    def __init__(
        self,
        workflow_id: int,
        outage: Outage,
        force_cleanup: bool,
        at_rest: bool,
        signal: Call[None] | None,
        kill_patience: float,
        clock: Clock,
    ) -> None:
        self.workflow_id = workflow_id
        self.outage = outage
        self.details: WorkflowDetails | None = None
        self._force_cleanup = force_cleanup
        self._at_rest = at_rest
        self._signal = signal
        self._kill_patience = kill_patience
        self._clock = clock
        self._pending = 0
        self._pending_since = clock()
        self._just_cleaned = False
        self._starting = False
        self._answered = False
        self._was_out = False

    def look(self) -> Conversation[ResumeStep]:
        """Look once. RESUMABLE: the wait is over; CLEAN_UP: cleaned up; WAIT: not yet, or no answer."""
        self._was_out = self.outage.error is not None
        reply = yield from self.outage.ask(routes.is_resumable(self.workflow_id))
        if reply is None:
            return ResumeStep.WAIT
        pending = reply.pending_kill_self or 0
        if pending != self._pending:
            self._pending, self._pending_since = pending, self._clock()
        step = pacing.resume_step(reply, self._force_cleanup)
        if step is ResumeStep.CLEAN_UP and not self._just_cleaned:
            if pending and self._clock() < self._pending_since + self._kill_patience:
                return ResumeStep.WAIT
            return (yield from self._clean_up())
        self._just_cleaned = False
        resumable = step is ResumeStep.RESUMABLE
        if (self._at_rest and resumable) or self._signal is not None:
            resumable = yield from self._look_closer(resumable)
        self._answered = self._answered or self.outage.error is None
        return ResumeStep.RESUMABLE if resumable else ResumeStep.WAIT

    def _clean_up(self) -> Conversation[ResumeStep]:
        cleaned = yield from self.outage.ask(routes.force_cleanup_kill_self(self.workflow_id))
        if cleaned is None:
            return ResumeStep.WAIT
        text = f"forced the clean-up of {cleaned} KILL_SELF task instance(s)"
        yield Note(logging.WARNING, f"workflow {self.workflow_id}: {text}")
        self._just_cleaned = True
        return ResumeStep.CLEAN_UP

    def _look_closer(self, resumable: bool) -> Conversation[bool]:
        """Return whether it is at rest; send the signal again where its run may have missed it.

        :param resumable: what the server has just said.
        """
        details = yield from self.outage.ask(routes.workflow_details(self.workflow_id))
        if self.outage.error is not None:
            return False
        self.details = details
        status = None if details is None else details.status
        if status in pacing.STARTING and not self._starting:
            yield Note(
                logging.INFO, f"workflow {self.workflow_id}: {_STARTING}; waiting until it can be told"
            )
        self._starting = status in pacing.STARTING
        if resumable and status == WorkflowStatus.RUNNING:  # the executor may have begun between the two
            again = yield from self.outage.ask(routes.is_resumable(self.workflow_id))
            resumable = again is not None and again.resumable
        if self._signal is not None and (self._starting or not resumable):
            yield from self._signal_again(status)
        return resumable and not self._starting

    def _signal_again(self, status: str | None) -> Conversation[None]:
        """Tell the run to stop until it is in a status that takes the signal."""
        if status == WorkflowStatus.RUNNING or pacing.misses_signals(status):
            assert self._signal is not None
            yield from self.outage.ask(self._signal)
            if status == WorkflowStatus.RUNNING and self.outage.error is None:
                self._signal = None  # that status takes it
        else:
            self._signal = None  # the run has ended: one that comes now is another's

    def problem(self, elapsed: float) -> JobmonError:
        """Return why the wait is over without a yes."""
        # One request without an answer may have been cut short by the deadline, and says nothing.
        if self.outage.error is not None and (self._was_out or not self._answered):
            return self.outage.error
        text = f"workflow {self.workflow_id} did not become resumable within {elapsed:.1f} s"
        if self._starting:
            return ResumeTimeout(f"{text}: {_STARTING}. {_HOW_TO_END_IT}")
        if self._pending:
            text += f": {self._pending} task instance(s) in KILL_SELF have not ended"
            if not self._force_cleanup:
                text += "; if their jobs are gone (scancel, node failure), use force_cleanup=True"
        else:
            text += ": a run of it is still alive"
        return ResumeTimeout(
            text + ". Wait longer, or for Jobmon's reaper if the run's process has died (by default up to 6.5"
            " minutes after its last heartbeat)"
        )


_STARTING = (
    "an executor has taken a run of it and not begun (INSTANTIATED or LAUNCHED), and takes no signal until it"
    " does"
)

_HOW_TO_END_IT = (
    "Wait longer. If that executor is dead, Jobmon's reaper does not end its run: PUT"
    ' /workflow_run/<id of the run>/update_status with {"status": "E"} does'
)

"""Conversations about owning a run: create exactly one, and leave none behind (design rule 2)."""

from __future__ import annotations

import logging
import random
from typing import TypeVar

from airflow_jobmon_provider.client import decisions, protocol
from airflow_jobmon_provider.client.conversations import (
    Ask,
    Clock,
    Conversation,
    Note,
    Outage,
    Pause,
    wait_until_resumable,
)
from airflow_jobmon_provider.client.decisions import Uniform
from airflow_jobmon_provider.client.exceptions import (
    JobmonError,
    ResumeTimeout,
    ServerFailure,
    ServerUnreachable,
    WorkflowBusy,
)
from airflow_jobmon_provider.client.protocol import Call, CreatedRun
from airflow_jobmon_provider.client.statuses import RunStatus, WorkflowStatus

T = TypeVar("T")

_SHORTEST_ANSWER = 1.0  # seconds that a server has to answer, also where no time is left


def create_run(
    workflow_id: int,
    *,
    user: str,
    good_for: float,
    timeout: float,
    perhaps_lost: bool,
    clock: Clock,
    uniform: Uniform = random.uniform,
) -> Conversation[CreatedRun]:
    """Create the workflow's next run, also where the reply to an earlier request was lost.

    If a reply is lost, its run may exist and be LINKING with nobody to keep it alive. The next request is
    then refused until that run's heartbeat date has passed and it has been reaped, by this client where the
    server lets it be found, else by Jobmon's reaper (protocol page, "What follows from this"). The server
    lets only one run link, so asking again never makes a second one.

    :param user: who the run is for, as Jobmon records it.
    :param good_for: seconds for which the run counts as alive without a heartbeat.
    :param timeout: seconds after which to give up.
    :param perhaps_lost: an earlier try of the same task may have lost a run: wait for one that is in the way.
    :param clock: monotonic seconds.
    :raises WorkflowBusy: somebody else has a run of the workflow, or still has at the time-out.
    :raises WorkflowNotResumable: refused for another reason; final.
    :raises ServerFailure, ServerUnreachable: the server did not answer until the time-out.
    """
    started = clock()
    waiting = False
    failed = False
    while True:
        problem: JobmonError
        try:
            created: CreatedRun = yield Ask(protocol.create_workflow_run(workflow_id, user, good_for))
            return created
        except WorkflowBusy as error:
            problem = error
            if not perhaps_lost:
                raise (yield from _with_owner(workflow_id, error)) from None
            if not waiting:
                waiting = True
                yield Note(
                    logging.WARNING,
                    f"workflow {workflow_id} has a run in the way, which may be one whose reply was lost;"
                    f" waiting up to {timeout - (clock() - started):.0f} s for its heartbeat to run out",
                )
            yield from _reap_lost_run(workflow_id)
        except (ServerFailure, ServerUnreachable) as error:
            problem = error
            perhaps_lost = perhaps_lost or error.processed
            if not failed:
                failed = True
                yield Note(logging.WARNING, f"workflow {workflow_id}: creating a run, trying on: {error}")
        elapsed = clock() - started
        if elapsed >= timeout:
            raise (yield from _with_owner(workflow_id, problem)) from None
        yield Pause(max(min(decisions.resume_pause(elapsed, uniform), timeout - elapsed), 0.001))


def _with_owner(workflow_id: int, problem: JobmonError) -> Conversation[JobmonError]:
    """Return a refusal with the name of who has the workflow's latest run, where the server tells (3.7)."""
    if isinstance(problem, WorkflowBusy):
        try:
            details = yield Ask(protocol.workflow_details(workflow_id))
        except JobmonError:
            details = None
        if details is not None and details.run_user is not None:
            return WorkflowBusy(f"{problem}. The latest run is that of user {details.run_user}")
    return problem


def _reap_lost_run(workflow_id: int) -> Conversation[None]:
    """Reap the workflow's run in LINKING if its heartbeat has run out. Never a run of another workflow.

    3.4.8 lists only the runs of its own version, which no route tells, so there it is Jobmon's reaper's work.
    """
    try:
        lost = yield Ask(protocol.lost_workflow_runs(RunStatus.LINKING))
        for run in lost:
            if run.workflow_id == workflow_id:
                yield Ask(protocol.reap(run.workflow_run_id))
                yield Note(logging.INFO, f"reaped workflow run {run.workflow_run_id}: nobody kept it alive")
    except JobmonError as error:
        yield Note(logging.DEBUG, f"workflow {workflow_id}: no lost run could be reaped: {error}")


def end_without_executor(
    workflow_run_id: int, *, clock: Clock, uniform: Uniform = random.uniform
) -> Conversation[RunStatus]:
    """End a run whose executor is known to be dead, as far as that is not the work of Jobmon's reaper.

    The reaper ends runs in R, C and H (protocol page, "Statuses"). One in L is aborted, so that no other
    executor waits for it; B, I and O are left by nobody else, and would stand in the workflow's way for ever.

    :param clock: monotonic seconds.
    :returns: the status that the run has now.
    :raises WorkflowRunNotFound, InvalidRequest, UnreadableReply: final. An outage is not, and is outlived.
    """
    outage = Outage(f"workflow run {workflow_run_id}", clock)
    while True:
        # Only LINKING leads to ABORTED; for any other status this reads it and changes nothing.
        seen = yield from outage.ask(protocol.update_status(workflow_run_id, RunStatus.ABORTED))
        if seen in (RunStatus.BOUND, RunStatus.INSTANTIATED, RunStatus.LAUNCHED):
            seen = yield from outage.ask(protocol.update_status(workflow_run_id, RunStatus.ERROR))
        if seen is not None:
            return seen
        yield Pause(outage.pause(decisions.LONGEST_OUTAGE_PAUSE, uniform))


def give_up_run(
    workflow_run_id: int,
    *,
    stop_workflow: int | None,
    timeout: float,
    clock: Clock,
    uniform: Uniform = random.uniform,
) -> Conversation[RunStatus | None]:
    """Abort a run that nobody has taken; stop one that an executor has, if that is wanted.

    :param stop_workflow: the run's workflow, to be told to stop (cold resume); None: leave a run alone that
        an executor has. The signal goes out only while this run is the workflow's active one.
    :param timeout: seconds after which to stop trying.
    :param clock: monotonic seconds.
    :returns: the status that the server last reported; None: it did not answer.
    :raises WorkflowRunNotFound, InvalidRequest, UnreadableReply: final.
    """
    started = clock()
    outage = Outage(f"workflow run {workflow_run_id}", clock)
    status: RunStatus | None = None
    while True:
        # Only LINKING leads to ABORTED; for any other status this reads it and changes nothing.
        seen = yield from outage.ask(protocol.update_status(workflow_run_id, RunStatus.ABORTED))
        status = seen or status
        if seen is not None:
            stopping = seen in (RunStatus.COLD_RESUME, RunStatus.HOT_RESUME)
            if seen.is_terminal or stopping or stop_workflow is None:
                return seen
            if seen in (RunStatus.BOUND, RunStatus.RUNNING):  # I and O are not moved, and last a moment
                yield from outage.ask(protocol.set_resume(stop_workflow, reset_running_jobs=True))
        elapsed = clock() - started
        if elapsed >= timeout:
            return status
        yield Pause(max(min(uniform(0.3, 0.6), timeout - elapsed), 0.001))


def ask_until(
    call: Call[T], *, timeout: float, clock: Clock, uniform: Uniform = random.uniform
) -> Conversation[T]:
    """Return what a call returns, asked again through an outage until the time is over.

    :param timeout: seconds; 0: ask once.
    :param clock: monotonic seconds.
    :raises ServerFailure, ServerUnreachable: the server did not answer, also not in the end; or it may still
        be at work on a costly call, which is not to be sent again.
    :raises JobmonError: what the call raises; final.
    """
    started = clock()
    failures = 0
    while True:
        left = timeout - (clock() - started)
        try:
            reply: T = yield Ask(call, timeout=max(left, _SHORTEST_ANSWER))
            return reply
        except (ServerFailure, ServerUnreachable) as error:
            left = timeout - (clock() - started)
            if left <= 0 or (call.costly and error.processed):
                raise
            failures += 1
            if failures == 1:
                yield Note(logging.WARNING, f"Jobmon does not answer, trying on for {left:.0f} s: {error}")
        pause = decisions.outage_pause(failures, None, decisions.LONGEST_OUTAGE_PAUSE, uniform)
        yield Pause(max(min(pause, left), 0.001))


def stop_run(
    workflow_run_id: int,
    workflow_id: int,
    *,
    timeout: float,
    clock: Clock,
    uniform: Uniform = random.uniform,
) -> Conversation[RunStatus | None]:
    """Give a run up and wait until it has ended: until then, an executor may be at work on its tasks.

    :param workflow_id: the run's workflow, to be told to stop (cold resume).
    :param timeout: seconds after which to return.
    :param clock: monotonic seconds.
    :returns: the status that the server last reported; None: it did not answer.
    :raises WorkflowRunNotFound, InvalidRequest, UnreadableReply: final.
    """
    started = clock()
    status: RunStatus | None = None
    while True:
        left = timeout - (clock() - started)
        # Again and again: no signal moves a run in I or O, which comes to R only later.
        seen = yield from give_up_run(
            workflow_run_id,
            stop_workflow=workflow_id,
            timeout=max(left, 0.0),
            clock=clock,
            uniform=uniform,
        )
        status = seen or status
        elapsed = clock() - started
        if (status is not None and status.is_terminal) or elapsed >= timeout:
            return status
        yield Pause(max(min(decisions.resume_pause(elapsed, uniform), timeout - elapsed), 0.001))


def make_ready(
    workflow_id: int, *, patience: float, timeout: float, clock: Clock, uniform: Uniform = random.uniform
) -> Conversation[None]:
    """Reset a workflow's tasks once no run of it is alive. Nothing is told to stop.

    The server calls a workflow resumable whose run is INSTANTIATED or LAUNCHED, and would reset tasks under a
    living executor; the workflow's own status tells of such a run.

    :param patience: seconds to wait for the end of a run that is alive; 0: check once.
    :param timeout: seconds for all of it, at least ``patience``.
    :param clock: monotonic seconds.
    :raises ResumeTimeout: a run is still alive.
    :raises WorkflowNotFound: there is no such workflow.
    :raises ServerFailure, ServerUnreachable: the server did not answer, also not in the end.
    """
    started = clock()

    def left(of: float) -> float:
        return max(of - (clock() - started), 0.0)

    while True:
        yield from wait_until_resumable(
            workflow_id, timeout=left(patience), force_cleanup=False, clock=clock, uniform=uniform
        )
        call = protocol.workflow_details(workflow_id)
        details = yield from ask_until(call, timeout=left(timeout), clock=clock, uniform=uniform)
        if details is None or details.status not in (WorkflowStatus.INSTANTIATING, WorkflowStatus.LAUNCHED):
            break
        if left(patience) <= 0:
            raise ResumeTimeout(
                f"workflow {workflow_id} did not become resumable within {patience:g} s: a run of it is still"
                f" alive, whose executor is starting. Wait for that run, or stop it first"
            )
        pause = decisions.resume_pause(clock() - started, uniform)
        yield Pause(max(min(pause, left(patience)), 0.001))
    reset = protocol.set_resume_state(workflow_id, reset_if_running=True)
    yield from ask_until(reset, timeout=left(timeout), clock=clock, uniform=uniform)

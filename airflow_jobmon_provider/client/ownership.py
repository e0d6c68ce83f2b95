"""Conversations about owning a run: create exactly one, and leave none behind (design rule 2)."""

from __future__ import annotations

import logging
import random

from airflow_jobmon_provider.client import decisions, protocol
from airflow_jobmon_provider.client.conversations import Ask, Clock, Conversation, Note, Outage, Pause
from airflow_jobmon_provider.client.decisions import Uniform
from airflow_jobmon_provider.client.exceptions import (
    JobmonError,
    ServerFailure,
    ServerUnreachable,
    WorkflowBusy,
    WorkflowRunNotFound,
)
from airflow_jobmon_provider.client.protocol import CreatedRun
from airflow_jobmon_provider.client.statuses import RunStatus

_LATE_COMMIT = 5.0  # seconds for which a run that has just been created may be unknown


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
    workflow_run_id: int, *, taken: bool = True, clock: Clock, uniform: Uniform = random.uniform
) -> Conversation[RunStatus]:
    """End a run whose executor is known to be dead, as far as that is not the work of Jobmon's reaper.

    The reaper ends runs in R, C and H (protocol page, "Statuses"). One in L is aborted, so that no other
    executor waits for it; B, I and O are left by nobody else, and would stand in the workflow's way for ever.

    A run that has just been created may not be there yet, where the server answers before it commits.

    :param taken: the executor had asked for the run, so one in B, I or O is its own. False: it is another
        executor's, and left alone. Default True.
    :param clock: monotonic seconds.
    :returns: the status that the run has now.
    :raises WorkflowRunNotFound, InvalidRequest, UnreadableReply: final. An outage is not, and is outlived.
    """
    started = clock()
    outage = Outage(f"workflow run {workflow_run_id}", clock)
    while True:
        try:
            # Only LINKING leads to ABORTED; for any other status this reads it and changes nothing.
            seen = yield from outage.ask(protocol.update_status(workflow_run_id, RunStatus.ABORTED))
        except WorkflowRunNotFound:
            if clock() - started >= _LATE_COMMIT:
                raise
            yield Pause(uniform(0.3, 0.6))
            continue
        if taken and seen in (RunStatus.BOUND, RunStatus.INSTANTIATED, RunStatus.LAUNCHED):
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

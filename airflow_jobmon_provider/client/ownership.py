"""Conversations about owning a run: create exactly one, and leave none behind (docs/rules.md, rule 2)."""

from __future__ import annotations

import logging
import random
from dataclasses import replace
from typing import TypeVar

from airflow_jobmon_provider.client import decisions, protocol
from airflow_jobmon_provider.client.conversations import (
    LAST_LOOK,
    Ask,
    Clock,
    Conversation,
    Note,
    Outage,
    Pause,
    RunEnd,
    RunOutcome,
    ask_until,
    ended,
    wait_until_resumable,
)
from airflow_jobmon_provider.client.decisions import Uniform
from airflow_jobmon_provider.client.exceptions import (
    JobmonError,
    ServerFailure,
    ServerUnreachable,
    WorkflowBusy,
)
from airflow_jobmon_provider.client.lifecycle import RunStatus
from airflow_jobmon_provider.client.protocol import Call, CreatedRun

T = TypeVar("T")

_OVERDUE_PATIENCE = 5.0  # seconds: a worker goes on trying
_LAST_CHANCE = 20.0


def abort(workflow_run_id: int) -> Call[RunStatus]:
    """Return the call that aborts a run which no executor has taken.

    Only LINKING leads to ABORTED. For a run in any other status the call reads it, and changes nothing.
    """
    return protocol.update_status(workflow_run_id, RunStatus.ABORTED)


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
    server lets it be found, else by Jobmon's reaper (docs/protocol.md, "Creating a run"). The server
    lets only one run link, so asking again never makes a second one.

    :param user: who the run is for, as Jobmon records it.
    :param good_for: seconds for which the run counts as alive without a heartbeat.
    :param timeout: seconds after which to give up. No request lasts longer, but each has a second at least.
    :param perhaps_lost: an earlier try of the same task may have lost a run: wait for one that is in the way.
    :param clock: monotonic seconds.
    :raises WorkflowBusy: somebody else has a run of the workflow, or still has at the time-out.
    :raises WorkflowNotResumable: refused for another reason; final.
    :raises ServerFailure, ServerUnreachable: the server did not answer until the time-out.
    """
    started = clock()
    end = started + timeout
    waiting = False
    failed = False
    while True:
        problem: JobmonError
        try:
            call = protocol.create_workflow_run(workflow_id, user, good_for)
            created: CreatedRun = yield Ask(call, _left(end, clock))
            return created
        except WorkflowBusy as error:
            problem = error
            if not perhaps_lost:
                raise (yield from _with_owner(workflow_id, error, end, clock)) from None
            if not waiting:
                waiting = True
                yield _waiting_for_a_run(workflow_id, end - clock())
            yield from _reap_lost_run(workflow_id, end, clock)
        except (ServerFailure, ServerUnreachable) as error:
            problem = error
            perhaps_lost = perhaps_lost or error.processed
            if not failed:
                failed = True
                yield Note(logging.WARNING, f"workflow {workflow_id}: creating a run, trying on: {error}")
        elapsed = clock() - started
        if elapsed >= timeout:
            raise (yield from _with_owner(workflow_id, problem, end, clock)) from None
        yield Pause(max(min(decisions.resume_pause(elapsed, uniform), timeout - elapsed), 0.001))


def _waiting_for_a_run(workflow_id: int, left: float) -> Note:
    text = f"workflow {workflow_id} has a run in the way, which may be one whose reply was lost"
    return Note(logging.WARNING, f"{text}; waiting up to {left:.0f} s for its heartbeat to run out")


def _left(end: float, clock: Clock) -> float:
    """Return how many seconds a request may take whose answer is wanted by the end, at least one."""
    return max(end - clock(), LAST_LOOK)


def _with_owner(
    workflow_id: int, problem: JobmonError, end: float, clock: Clock
) -> Conversation[JobmonError]:
    """Return a refusal with the name of who has the workflow's latest run, where the server tells (3.7)."""
    if isinstance(problem, WorkflowBusy):
        try:
            details = yield Ask(protocol.workflow_details(workflow_id, refused=True), _left(end, clock))
        except JobmonError:
            details = None
        if details is not None and details.run_user is not None:
            return WorkflowBusy(f"{problem}. The latest run is that of user {details.run_user}")
    return problem


def _reap_lost_run(workflow_id: int, end: float, clock: Clock) -> Conversation[None]:
    """Reap the workflow's run in LINKING if its heartbeat has run out. Never a run of another workflow.

    3.4.8 lists only the runs of its own version, which no route tells, so there it is Jobmon's reaper's work.
    """
    try:
        lost = yield Ask(protocol.lost_workflow_runs(RunStatus.LINKING), _left(end, clock))
        for run in lost:
            if run.workflow_id == workflow_id:
                yield Ask(protocol.reap(run.workflow_run_id), _left(end, clock))
                yield Note(logging.INFO, f"reaped workflow run {run.workflow_run_id}: nobody kept it alive")
    except JobmonError as error:
        yield Note(logging.DEBUG, f"workflow {workflow_id}: no lost run could be reaped: {error}")


def end_without_executor(
    workflow_run_id: int, *, taken: bool = True, clock: Clock, uniform: Uniform = random.uniform
) -> Conversation[RunStatus]:
    """End a run whose executor is known to be dead, as far as that is not the work of Jobmon's reaper.

    The reaper ends runs in R, C and H (docs/protocol.md, "Statuses"). One in L is aborted, so that no other
    executor waits for it; B, I and O are left by nobody else, and would stand in the workflow's way for ever.

    A run that has just been created may not be there yet, where the server answers before it commits.

    :param taken: the executor had asked for the run, so one in B, I or O is its own. False: it is another
        executor's, and left alone. Default True.
    :param clock: monotonic seconds.
    :returns: the status that the run has now.
    :raises WorkflowRunNotFound, InvalidRequest, UnreadableReply: final. An outage is not, and is outlived.
    """
    subject = f"workflow run {workflow_run_id}"
    outage = Outage(subject, clock, not_found_until=clock() + decisions.COMMIT_PATIENCE)
    while True:
        seen = yield from outage.ask(abort(workflow_run_id))
        if taken and seen is not None and seen.is_starting:
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

    A signal to stop moves a run in B or R only (docs/protocol.md, "Resuming"). One in I or O is asked about
    until it is RUNNING, and then told to stop. A warning says so where that was not in time.

    :param stop_workflow: the run's workflow, to be told to stop (cold resume); None: leave a run alone that
        an executor has. The signal goes out only while this run is the workflow's active one.
    :param timeout: seconds after which to stop trying. No request lasts longer than a third of them, but each
        has a second at least.
    :param clock: monotonic seconds.
    :returns: the status that the server last reported; None: it did not answer.
    :raises WorkflowRunNotFound: there is no such run, still after ten seconds: a server may reply before it
        has committed what it says.
    :raises InvalidRequest, UnreadableReply: final.
    """
    started = clock()
    end = started + timeout
    outage = Outage(
        f"workflow run {workflow_run_id}", clock, not_found_until=started + decisions.COMMIT_PATIENCE
    )
    status: RunStatus | None = None
    while True:
        # The reply counts, not a look after it: that may still say LINKING.
        patience = max(min(timeout / 3, _left(end, clock)), LAST_LOOK)
        seen = yield from outage.ask(abort(workflow_run_id), patience)
        status = seen or status
        if seen is not None:
            left_alone = stop_workflow is None and seen is not RunStatus.LINKING
            if seen.is_terminal or seen.is_stopping or left_alone:
                return seen
            # In a status that is not known, this run is not what the signal would move.
            if stop_workflow is not None and seen.takes_signals:
                # If the reply is lost, the status is read again before another signal.
                signal = protocol.set_resume(stop_workflow, reset_running_jobs=True)
                yield from outage.ask(signal, _left(end, clock))
        elapsed = clock() - started
        if elapsed >= timeout:
            text = _what_is_left(workflow_run_id, status, stop_workflow, outage.error)
            yield Note(
                logging.WARNING, f"workflow run {workflow_run_id} was not stopped in {elapsed:.0f} s: {text}"
            )
            return status
        yield Pause(max(min(uniform(0.3, 0.6), timeout - elapsed), 0.001))


def _what_is_left(
    workflow_run_id: int, status: RunStatus | None, stop_workflow: int | None, error: JobmonError | None
) -> str:
    """Return what became of a run that could not be given up, and what the user can do."""
    found = f"it is {status}" if error is None else f"it was {status or 'not asked about'}, and {error}"
    if status is RunStatus.LINKING or stop_workflow is None:
        return f"{found}. If no executor takes it, its heartbeat runs out by itself"
    if status is not None and status.is_starting:
        return (
            f"{found}, where it cannot be told to stop. End its executor on the cluster, or resume workflow"
            f" {stop_workflow} once the run is RUNNING"
        )
    return f"{found}. To stop it, resume workflow {stop_workflow}, or end its executor on the cluster"


def give_up_overdue_run(
    end: RunEnd,
    workflow_run_id: int,
    *,
    stop_workflow: int | None,
    last_chance: bool = False,
    clock: Clock,
    uniform: Uniform = random.uniform,
) -> Conversation[RunEnd]:
    """Stop a run of ours whose time was over when its watch ended, for where nothing else is sure to do it.

    Airflow 2.11 ends a task that comes back after its ``execution_timeout`` before any code of ours runs.

    :param end: how the watch ended. Where the server does not answer, it stays as it is: the watch has tried.
    :param stop_workflow: see :func:`give_up_run`; None: the watch has done what there is to do.
    :param last_chance: nothing else will try after this: take 20 s instead of 5, and try also where the
        server did not answer.
    :param clock: monotonic seconds.
    :returns: the end as it is then; it is another one if the run has ended by itself meanwhile. Raises no
        ``JobmonError``.
    """
    over = end.outcome is RunOutcome.TIMEOUT and (last_chance or (end.answered and end.status is not None))
    if stop_workflow is None or not over or (end.status is not None and end.status.is_terminal):
        return end
    giving_up = give_up_run(
        workflow_run_id,
        stop_workflow=stop_workflow,
        timeout=_LAST_CHANCE if last_chance else _OVERDUE_PATIENCE,
        clock=clock,
        uniform=uniform,
    )
    try:
        status = yield from giving_up
    except JobmonError as error:
        yield Note(logging.WARNING, f"workflow run {workflow_run_id} could not be stopped: {error}")
        return end
    if status in (RunStatus.DONE, RunStatus.ERROR, RunStatus.STOPPED):
        return ended(workflow_run_id, status)
    if status is None:
        return replace(end, answered=False)
    told = status.is_terminal or status.is_stopping
    then = f"Told to stop, it is {status}" if told else f"It could not be told to stop yet, as it is {status}"
    return replace(end, status=status, message=f"{end.message}. {then}")


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

    :param patience: seconds to wait for the end of a run that is alive; 0: check once.
    :param timeout: seconds for all of it, at least ``patience``.
    :param clock: monotonic seconds.
    :raises ResumeTimeout: a run is still alive.
    :raises WorkflowNotFound: there is no such workflow.
    :raises ServerFailure, ServerUnreachable: the server did not answer, also not in the end.
    """
    started = clock()
    yield from wait_until_resumable(
        workflow_id, timeout=patience, force_cleanup=False, clock=clock, uniform=uniform, at_rest=True
    )
    reset = protocol.set_resume_state(workflow_id, reset_if_running=True)
    yield from ask_until(reset, max(timeout - (clock() - started), 0.0), clock, uniform=uniform)

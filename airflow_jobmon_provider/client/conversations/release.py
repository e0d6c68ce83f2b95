"""Leave no run behind that nobody owns (docs/rules.md, rule 2)."""

from __future__ import annotations

import logging
import random
from dataclasses import replace

from airflow_jobmon_provider.client.conversations import pacing
from airflow_jobmon_provider.client.conversations.asking import LAST_LOOK, Outage, left_until
from airflow_jobmon_provider.client.conversations.pacing import Uniform
from airflow_jobmon_provider.client.conversations.steps import Clock, Conversation, Note, Pause
from airflow_jobmon_provider.client.conversations.watch import RunEnd, RunOutcome, ended
from airflow_jobmon_provider.client.exceptions import (
    JobmonError,
)
from airflow_jobmon_provider.client.lifecycle import RunStatus
from airflow_jobmon_provider.client.protocol import Call, routes

_OVERDUE_PATIENCE = 5.0  # seconds: a worker goes on trying

_LAST_CHANCE = 20.0


def abort(workflow_run_id: int) -> Call[RunStatus]:
    """Return the call that aborts a run which no executor has taken.

    Only LINKING leads to ABORTED. For a run in any other status the call reads it, and changes nothing.
    """
    return routes.update_status(workflow_run_id, RunStatus.ABORTED)


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
    outage = Outage(subject, clock, not_found_until=clock() + pacing.COMMIT_PATIENCE)
    while True:
        seen = yield from outage.ask(abort(workflow_run_id))
        if taken and seen is not None and seen.is_starting:
            seen = yield from outage.ask(routes.update_status(workflow_run_id, RunStatus.ERROR))
        if seen is not None:
            return seen
        yield Pause(outage.pause(pacing.LONGEST_OUTAGE_PAUSE, uniform))


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
        f"workflow run {workflow_run_id}", clock, not_found_until=started + pacing.COMMIT_PATIENCE
    )
    status: RunStatus | None = None
    while True:
        # The reply counts, not a look after it: that may still say LINKING.
        patience = max(min(timeout / 3, left_until(end, clock)), LAST_LOOK)
        seen = yield from outage.ask(abort(workflow_run_id), patience)
        status = seen or status
        if seen is not None:
            left_alone = stop_workflow is None and seen is not RunStatus.LINKING
            if seen.is_terminal or seen.is_stopping or left_alone:
                return seen
            # In a status that is not known, this run is not what the signal would move.
            if stop_workflow is not None and seen.takes_signals:
                # If the reply is lost, the status is read again before another signal.
                signal = routes.set_resume(stop_workflow, reset_running_jobs=True)
                yield from outage.ask(signal, left_until(end, clock))
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
        yield Pause(max(min(pacing.resume_pause(elapsed, uniform), timeout - elapsed), 0.001))

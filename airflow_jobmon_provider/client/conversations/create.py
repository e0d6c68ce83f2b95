"""Create exactly one run (docs/rules.md, rule 2)."""

from __future__ import annotations

import logging
import random

from airflow_jobmon_provider.client.conversations import pacing
from airflow_jobmon_provider.client.conversations.asking import left_until
from airflow_jobmon_provider.client.conversations.pacing import Uniform
from airflow_jobmon_provider.client.conversations.steps import Ask, Clock, Conversation, Note, Pause
from airflow_jobmon_provider.client.exceptions import (
    JobmonError,
    ServerFailure,
    ServerUnreachable,
    WorkflowBusy,
)
from airflow_jobmon_provider.client.lifecycle import RunStatus
from airflow_jobmon_provider.client.protocol import CreatedRun, routes


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
    :raises WorkflowBusy: another client has a run of the workflow, or still has one at the time-out.
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
            call = routes.create_workflow_run(workflow_id, user, good_for)
            created: CreatedRun = yield Ask(call, left_until(end, clock))
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
                yield _not_created_yet(workflow_id, error)
        elapsed = clock() - started
        if elapsed >= timeout:
            raise (yield from _with_owner(workflow_id, problem, end, clock)) from None
        yield Pause(max(min(pacing.resume_pause(elapsed, uniform), timeout - elapsed), 0.001))


def _not_created_yet(workflow_id: int, error: JobmonError) -> Note:
    text = f"workflow {workflow_id}: its next run cannot be created yet; will keep trying: {error}"
    return Note(logging.WARNING, text)


def _waiting_for_a_run(workflow_id: int, left: float) -> Note:
    text = f"workflow {workflow_id} has a run in the way, which may be one whose reply was lost"
    return Note(logging.WARNING, f"{text}; waiting up to {left:.0f} s for its heartbeat to run out")


def _with_owner(
    workflow_id: int, problem: JobmonError, end: float, clock: Clock
) -> Conversation[JobmonError]:
    """Return a refusal with the name of who has the workflow's latest run, where the server tells (3.6)."""
    if isinstance(problem, WorkflowBusy):
        try:
            details = yield Ask(routes.workflow_details(workflow_id, refused=True), left_until(end, clock))
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
        lost = yield Ask(routes.lost_workflow_runs(RunStatus.LINKING), left_until(end, clock))
        for run in lost:
            if run.workflow_id == workflow_id:
                yield Ask(routes.reap(run.workflow_run_id), left_until(end, clock))
                yield Note(logging.INFO, f"reaped workflow run {run.workflow_run_id}: nobody kept it alive")
    except JobmonError as error:
        yield Note(logging.DEBUG, f"workflow {workflow_id}: no lost run could be reaped: {error}")

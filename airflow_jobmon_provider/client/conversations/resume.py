"""Conversations that make a workflow ready for its next run: look first, then signal, then reset."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from http import HTTPStatus

from airflow_jobmon_provider.client.conversations import pacing
from airflow_jobmon_provider.client.conversations.asking import Retries, ask_again, ask_until, try_again
from airflow_jobmon_provider.client.conversations.pacing import Uniform
from airflow_jobmon_provider.client.conversations.resumable import wait_until_resumable
from airflow_jobmon_provider.client.conversations.server_version import check_server_version
from airflow_jobmon_provider.client.conversations.steps import Clock, Conversation, Note
from airflow_jobmon_provider.client.exceptions import (
    InvalidRequest,
    ResumeTimeout,
    ServerFailure,
    ServerUnreachable,
    WorkflowBusy,
)
from airflow_jobmon_provider.client.lifecycle import WorkflowStatus
from airflow_jobmon_provider.client.protocol import Call, WorkflowDetails, routes


@dataclass(frozen=True, slots=True)
class Begun:
    """How far a resume has come.

    :param details: what the server says of the workflow; None: it has no runs.
    :param at_rest: there was nothing to stop; nothing has been changed.
    :param signal: the signal that the workflow's run may have missed; send it again while it is waited for.
        None: it cannot have missed it.
    :param increase_resources: the resources of tasks that failed for lack of them are to be raised.
    """

    details: WorkflowDetails | None
    at_rest: bool
    signal: Call[None] | None = None
    increase_resources: bool = False


def begin_resume(
    workflow_id: int,
    *,
    reset_running_jobs: bool,
    force_cleanup: bool,
    increase_resources: bool | None,
    server: str,
    retries: Retries,
    clock: Clock,
) -> Conversation[Begun]:
    """Tell a workflow's run to stop, once nothing is known that would keep the workflow from being resumed.

    A workflow that is DONE or at rest is told nothing.

    :param reset_running_jobs: True: cold resume; False: hot.
    :param force_cleanup: clean KILL_SELF task instances up; the server must be able to.
    :param increase_resources: True: the server must be able to raise resources. None: they are to be raised
        if it can.
    :param server: its address without credentials, for the log.
    :param retries: for each request.
    :param clock: monotonic seconds.
    :raises WorkflowNotFound: there is no such workflow; nothing was changed.
    :raises RouteNotSupported: the server cannot do what is asked for, or is too old (``ServerTooOld``);
        nothing was changed.
    :raises JobmonError: the server said no, or did not answer, also not in the end.
    """
    details = yield from ask_again(routes.workflow_details(workflow_id), retries, clock)
    before = None if details is None else details.status
    if before == WorkflowStatus.DONE:
        return Begun(details, at_rest=True)
    yield from check_server_version(details, retries, clock)
    raises = yield from _can_raise(workflow_id, increase_resources, retries, clock)
    try:
        details = yield from try_again(
            lambda: wait_until_resumable(
                workflow_id, timeout=0, force_cleanup=force_cleanup, clock=clock, at_rest=True
            ),
            retries,
            clock,
        )
    except ResumeTimeout:
        signal = routes.set_resume(workflow_id, reset_running_jobs)
        how = "cold" if reset_running_jobs else "hot"
        yield Note(
            logging.INFO, f"workflow {workflow_id}: telling its run to stop ({how} resume), at {server}"
        )
        yield from ask_again(signal, retries, clock)
        missed = pacing.misses_signals(before)
        return Begun(details, at_rest=False, signal=signal if missed else None, increase_resources=raises)
    return Begun(details, at_rest=True, increase_resources=raises)


def _can_raise(workflow_id: int, wanted: bool | None, retries: Retries, clock: Clock) -> Conversation[bool]:
    """Return whether resources are to be raised: as wanted, or if the server can."""
    can = wanted is not False
    try:
        if can:
            yield from check_increase_resources(workflow_id, retries, clock)
    except InvalidRequest as error:
        if wanted:
            raise
        text = f"workflow {workflow_id}: its tasks keep the resources that they have: {error}"
        yield Note(logging.INFO, text)
        can = False
    return can


def check_increase_resources(workflow_id: int, retries: Retries, clock: Clock) -> Conversation[None]:
    """Make sure that the server can raise resources; changes nothing.

    :raises RouteNotSupported: it cannot (before 3.6).
    """
    try:
        yield from ask_again(routes.probe_increase_resources(workflow_id), retries, clock)
    except InvalidRequest as error:
        if error.status_code != HTTPStatus.METHOD_NOT_ALLOWED:  # that is the right answer to a GET
            raise


def check_at_rest(workflow_id: int, retries: Retries, clock: Clock) -> Conversation[WorkflowDetails | None]:
    """Return what the server says of a workflow that was at rest a while ago, and still has to be.

    :raises WorkflowBusy: a run of it is alive.
    :raises JobmonError: the server said no, or did not answer, also not in the end.
    """

    def look() -> Conversation[WorkflowDetails | None]:
        return wait_until_resumable(workflow_id, timeout=0, force_cleanup=False, clock=clock, at_rest=True)

    try:
        return (yield from try_again(look, retries, clock))
    except ResumeTimeout:
        raise WorkflowBusy(
            f"workflow {workflow_id} is not resumable any more: a run of it is alive, created since the"
            f" last one ended. Nothing was reset"
        ) from None


def reset_tasks(
    workflow_id: int, reset_if_running: bool, retries: Retries, clock: Clock
) -> Conversation[None]:
    """Make the tasks that are not done ready to run again. The server needs O(tasks) for that.

    :param reset_if_running: also those that count as running.
    :raises WorkflowNotResumable: the server refused, with its words.
    :raises JobmonError: the server said no, or did not answer; whether it may still be at work, is said.
    """
    call = routes.set_resume_state(workflow_id, reset_if_running)
    try:
        yield from ask_again(call, retries, clock)
    except (ServerFailure, ServerUnreachable) as error:
        if not error.processed:
            raise
        raise type(error)(
            f"{error}. The server may still be resetting the tasks of workflow {workflow_id}: give it time,"
            f" and try again; a second reset does no harm"
        ) from None


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
    reset = routes.set_resume_state(workflow_id, reset_if_running=True)
    yield from ask_until(reset, max(timeout - (clock() - started), 0.0), clock, uniform=uniform)

"""Watch a run while an executor of our own is at work on it, and see to its end if that executor dies."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from airflow_jobmon_provider.client.conversations import (
    Conversation,
    Interrupted,
    Note,
    Pause,
    RunEnd,
    RunOutcome,
    end_without_executor,
    ended,
)
from airflow_jobmon_provider.client.heartbeat import KeepAlive
from airflow_jobmon_provider.client.lifecycle import RunStatus
from airflow_jobmon_provider.execution.executor import Exit

EXECUTOR_GRACE = 30.0  # seconds that an executor has to stop its distributor after the run's end


class ExecutorEnded(Interrupted):
    """The executor has ended, and all that it has written is logged."""


class Executor(Protocol):
    """What is known of an executor of ours."""

    @property
    def exit_code(self) -> int | None:
        """Its exit code, see :class:`~airflow_jobmon_provider.execution.executor.Exit`; None: not known."""

    @property
    def is_queued(self) -> bool:
        """Whether it is known that it has not begun."""

    @property
    def has_taken(self) -> bool:
        """Whether it has asked the server for the run: one that is past LINKING may be its own."""

    @property
    def problem(self) -> str | None:
        """What kept it from executing the run to its end, in one line; None: nothing."""


def watch_executor(
    workflow_run_id: int,
    executor: Executor,
    watch: Callable[[KeepAlive, RunStatus | None], Conversation[RunEnd]],
    *,
    keep_alive: KeepAlive,
    status: RunStatus | None,
    clock: Callable[[], float],
) -> Conversation[RunEnd]:
    """Watch a run to its end; what waits in the pauses raises :class:`ExecutorEnded` when the executor has.

    :param executor: ours.
    :param watch: watches the run, given who is to beat for it, and the status in which it was seen last.
    :param keep_alive: who is to beat for it.
    :param status: see ``watch``.
    :param clock: monotonic seconds.
    :returns: how the run ended; the message says first what kept the executor from its work.
    """
    end: RunEnd | None = None
    try:
        end = yield from watch(keep_alive, status)
        # What was seen of a job last may be older than the run's end: it may have begun, and ended the run.
        may_tell_why = not executor.is_queued or end.outcome in (RunOutcome.DONE, RunOutcome.FAILED)
        if end.status is not None and end.status.is_terminal and may_tell_why:
            yield Pause(EXECUTOR_GRACE)  # until it has ended, too
    except ExecutorEnded:
        pass
    if end is None:
        status, keep_alive = yield from _end_after(workflow_run_id, executor, keep_alive, clock)
        if status is not None and status.is_terminal:
            end = ended(workflow_run_id, status)
        else:
            end = yield from watch(keep_alive, status)
    others = executor.exit_code == Exit.NOT_TAKEN  # then how our executor ended says nothing of the run
    if end.outcome is not RunOutcome.DONE and not others and executor.problem is not None:
        end = replace(end, message=f"{executor.problem}. {end.message}")
    return replace(end, exit_code=executor.exit_code)


def _end_after(
    run: int, executor: Executor, keep_alive: KeepAlive, clock: Callable[[], float]
) -> Conversation[tuple[RunStatus | None, KeepAlive]]:
    """End what our dead executor has left, unless that is another executor's.

    :returns: the run's status, and who is to beat for it from now on; None: it was not asked for.
    """
    if executor.exit_code == Exit.NOT_TAKEN:
        line = f"workflow run {run} is not this task's to execute; will keep watching it"
        yield Note(logging.WARNING, line)
        return None, keep_alive
    status = yield from end_without_executor(run, taken=executor.has_taken, clock=clock)
    if status.is_terminal:
        return status, KeepAlive.NEVER
    if not executor.has_taken:
        line = f"Our executor has died; another one has workflow run {run}: it is {status}"
        yield Note(logging.WARNING, line)
        return status, keep_alive
    why = executor.problem or "the executor has died"
    line = (
        f"{why}. It has left workflow run {run} {status}; waiting for Jobmon's reaper to end it, which takes"
    )
    yield Note(logging.WARNING, f"{line} minutes")
    return status, KeepAlive.NEVER

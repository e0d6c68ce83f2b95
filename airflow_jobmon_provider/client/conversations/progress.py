"""How far a workflow's tasks are."""

from __future__ import annotations

import logging
import random

from airflow_jobmon_provider.client.conversations.pacing import Uniform
from airflow_jobmon_provider.client.conversations.steps import Ask, Clock, Conversation, Note
from airflow_jobmon_provider.client.exceptions import JobmonError
from airflow_jobmon_provider.client.protocol import TaskCounts, routes

SHORTEST_PROGRESS_PAUSE = 60.0

LONGEST_PROGRESS_PAUSE = 600.0

LONGEST_COSTLY_PAUSE = 3600.0

COUNT_TIMEOUT = 60.0
"""Seconds for a count during a watch: the run's own status waits for it, which a server tells at once."""

_TASKS_A_SECOND = 1000 / 60

_SHARE_OF_THE_SERVER = 1 / 200


def progress_pause(total_tasks: int, since_change: float, took: float, uniform: Uniform) -> float:
    """Return how long to wait before counting a workflow's tasks again.

    The server reads every task row for it: measured on 3.4.8 with SQLite, 6 ms for 1,000 tasks, 30 ms for
    10,000 and 0.5 s for 100,000. So the wait is the longest of

    * a minute: nobody reads a log faster, and up to 1,000 tasks that costs the server next to nothing;
    * 60 ms for each task: the server reads 1,000 rows a minute for us, up to 10,000 tasks;
    * a quarter of the time for which the counts have been as they are: a quiet workflow is asked less;

    but not longer than ten minutes, so that a workflow of any size shows signs of life. Above them all stands
    what it really costs there: 200 times as long as the last reply took, up to an hour. So a server that is
    slow, by size or by load, spends no more than half a percent of its time on one workflow.

    The result is up to a tenth longer, so that many watches that started together drift apart.

    :param total_tasks: how many tasks the workflow has; 0: not known yet.
    :param since_change: seconds since the counts last changed.
    :param took: seconds that the last count took.
    """
    by_size = total_tasks / _TASKS_A_SECOND
    wanted = min(max(SHORTEST_PROGRESS_PAUSE, by_size, since_change / 4), LONGEST_PROGRESS_PAUSE)
    pause = max(wanted, min(took / _SHARE_OF_THE_SERVER, LONGEST_COSTLY_PAUSE))
    return uniform(1.0, 1.1) * pause


class ProgressWatch:
    """Says how far a workflow's tasks are, as ``watch_run`` goes along. It never wakes the watch by itself.

    :param workflow_id: the workflow of the run that is watched.
    :param clock: monotonic seconds.
    :param age: seconds for which the run has existed before: a triggerer that takes over many old runs
        counts their tasks one by one over the next minutes, not all at once.
    """

    __slots__ = ("_changed", "_clock", "_counts", "_due", "_told", "_uniform", "_workflow_id")

    def __init__(
        self, workflow_id: int, clock: Clock, *, age: float = 0.0, uniform: Uniform = random.uniform
    ) -> None:
        self._workflow_id = workflow_id
        self._clock = clock
        self._uniform = uniform
        self._counts: TaskCounts | None = None
        self._told = False
        self._changed = clock() - age
        self._due = clock() + uniform(0.5, 1.0) * progress_pause(0, age, 0, uniform)

    def is_due(self) -> bool:
        """Whether it is time to count the tasks."""
        return self._clock() >= self._due

    def look(self) -> Conversation[bool]:
        """Count the tasks, and log it if it has changed. A failure is told once, at INFO.

        :returns: whether none of them is left to run; also where the server did not tell.
        """
        asked = self._clock()
        settled = True
        try:
            counts: TaskCounts = yield Ask(routes.task_counts(self._workflow_id), COUNT_TIMEOUT)
        except JobmonError as error:
            if not self._told:
                self._told = True
                what = f"workflow {self._workflow_id}: its tasks could not be counted"
                yield Note(logging.INFO, f"{what}; the watch goes on: {error}")
        else:
            if counts != self._counts:
                yield Note(logging.INFO, f"workflow {self._workflow_id}: {counts}")
                self._counts = counts
                self._changed = asked
            settled = counts.total > 0 and not (counts.pending or counts.scheduled or counts.running)
        now = self._clock()
        total = self._counts.total if self._counts else 0
        self._due = now + progress_pause(total, now - self._changed, now - asked, self._uniform)
        return settled

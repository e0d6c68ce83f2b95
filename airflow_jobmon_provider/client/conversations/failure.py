"""Why a workflow's run ended badly."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TypeVar

from airflow_jobmon_provider.client.conversations.steps import Ask, Conversation, Note
from airflow_jobmon_provider.client.exceptions import JobmonError
from airflow_jobmon_provider.client.protocol import Call, FailedTask, TaskCounts, routes

T = TypeVar("T")

EXPLANATION_TIMEOUT = 120.0
"""Seconds for each request about why a run ended badly: a worker waits for it."""

MAX_FAILURE_TEXT = 2000
"""So many bytes of UTF-8 at most: a reader gets the first causes, and no log or mail is flooded."""

_SHORTEST_LINE = 20


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the server tells about a workflow whose run ended badly.

    :param counts: how many tasks are where; None: it did not tell.
    :param text: counts, then the failed tasks with the ends of their errors, one line each; at most
        ``MAX_FAILURE_TEXT`` bytes, "" if the server told nothing.
    """

    counts: TaskCounts | None
    text: str


def count_tasks(workflow_id: int) -> Conversation[TaskCounts | None]:
    """Return how many tasks are where, asked once; None: the server did not tell."""
    return (yield from _try(routes.task_counts(workflow_id)))


def explain_failure(workflow_id: int, *, limit: int = 5, lines: int = 10) -> Conversation[Explanation]:
    """Return why a workflow's run ended badly, as far as the server tells: asked once, and it never raises.

    :param limit: name so many failed tasks at most, those created last first, as the server lists them.
    :param lines: show so many last lines of each one's error at most.
    """
    counts = yield from count_tasks(workflow_id)
    tasks: tuple[FailedTask, ...] = ()
    if limit > 0 and (counts is None or counts.fatal):
        tasks = (yield from _try(routes.failed_tasks(workflow_id, limit))) or ()
    errors: list[tuple[FailedTask, list[str]]] = []
    answers = lines > 0
    for task in tasks:
        # What did not answer for one task won't for the next, and each try may take a whole time-out.
        error = (yield from _try(routes.most_recent_error(task.task_id))) if answers else None
        answers = error is not None
        errors.append((task, (error or "").splitlines()[-lines:]))
    return Explanation(counts, _failure_text(counts, errors))


def _try(call: Call[T]) -> Conversation[T | None]:
    try:
        reply: T = yield Ask(call, EXPLANATION_TIMEOUT)
    except JobmonError as error:
        yield Note(logging.INFO, f"no further details: {error}")
        return None
    return reply


def _failure_text(counts: TaskCounts | None, errors: list[tuple[FailedTask, list[str]]]) -> str:
    """Return the text, each task given the same share of the space; of an error its end is kept."""
    text = [str(counts)] if counts else []
    left = MAX_FAILURE_TEXT - sum(_size(line) for line in text)
    for number, (task, error) in enumerate(errors):
        share = left // (len(errors) - number)
        head = f"task {task.task_id} {task.name!r} failed" + (":" if error else "")
        share -= _size(head)
        if share < 0:
            break
        shown: list[str] = []
        for line in reversed(error):
            cut = _cut("    " + line, share)
            if not cut:
                break
            shown.insert(0, cut)
            share -= _size(cut)
        block = [head, *shown]
        text += block
        left -= sum(_size(line) for line in block)
    return "\n".join(text)


def _size(line: str) -> int:
    return len(line.encode("utf-8", "replace")) + 1


def _cut(line: str, size: int) -> str:
    """Return the line, cut to so many bytes; "" if nothing worth reading would be left."""
    if _size(line) <= size:
        return line
    if size < _SHORTEST_LINE:
        return ""
    return line.encode("utf-8", "replace")[: size - 4].decode("utf-8", "ignore") + "…"

"""Why a workflow's run ended badly, and what the user can do about it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from airflow_jobmon_provider.client.conversations.steps import Ask, Conversation, Note
from airflow_jobmon_provider.client.exceptions import JobmonError
from airflow_jobmon_provider.client.lifecycle import RunStatus
from airflow_jobmon_provider.client.protocol import Call, FailedTask, TaskCounts, routes

T = TypeVar("T")

EXPLANATION_TIMEOUT = 120.0
"""Seconds for each request about why a run ended badly: a worker waits for it."""

MAX_FAILURE_TEXT = 2000
"""So many bytes of UTF-8 at most: a reader gets the first causes, and no log or mail is flooded."""

_SHORTEST_LINE = 20
_LEAST_SHARE = 400  # bytes for a group, as long as there are any
_INDENT = "    "
_NUMBERS = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the server tells about a workflow whose run ended badly.

    :param counts: how many tasks are where; None: it did not tell.
    :param text: the failed tasks with the ends of their errors, those with the same error together; at most
        ``MAX_FAILURE_TEXT`` bytes, "" if the server told nothing.
    """

    counts: TaskCounts | None
    text: str


@dataclass(slots=True)
class _Group:
    """Failed tasks with the same error; the first of them stands for all."""

    task: FailedTask
    error: list[str] = field(default_factory=list)
    size: int = 1


def count_tasks(workflow_id: int) -> Conversation[TaskCounts | None]:
    """Return how many tasks are where, asked once; None: the server did not tell."""
    return (yield from _try(routes.task_counts(workflow_id)))


def explain_failure(workflow_id: int, *, limit: int = 20, lines: int = 10) -> Conversation[Explanation]:
    """Return why a workflow's run ended badly, as far as the server tells: asked once, and it never raises.

    :param limit: ask for the errors of so many failed tasks at most, those created last first, as the server
        lists them. Default 20.
    :param lines: show so many last lines of each error at most. Default 10.
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
    others = counts.fatal - len(tasks) if counts is not None else 0
    return Explanation(counts, _failure_text(_grouped(errors), max(others, 0)))


def reason_of(status: RunStatus, counts: TaskCounts | None) -> str:
    """Return why a run ended badly, as the counts of its workflow's tasks tell it.

    Jobmon gives a run ERROR both when tasks failed and when its heartbeat ran out: by the counts a reader
    can tell which it was.

    :param status: the run's last status.
    :param counts: how many tasks are where; None: not known, which leaves the status's own meaning.
    """
    if counts is None or counts.total == 0:
        return status.meaning
    left = counts.total - counts.done - counts.fatal
    tally = f"{counts.done} of {_tasks(counts.total)} done"
    if counts.fatal:
        tally = f"{counts.fatal} of {_tasks(counts.total)} failed, {counts.done} done"
    if left:
        tally += f", {left} left to run"
    if status is not RunStatus.ERROR:
        return f"{status.meaning} ({tally})"
    if counts.fatal:
        return tally
    return f"its executor broke off, or its heartbeat ran out, as in an outage of Jobmon ({tally})"


def advice_on_end(workflow_id: int, counts: TaskCounts | None) -> str:
    """Return what the user can do about a workflow whose run ended badly, as the counts tell it."""
    resume = f"resume workflow {workflow_id}"
    if counts is None or counts.total == 0:
        return f"To go on, {resume}"
    if counts.fatal:
        return f"Once the cause is mended, {resume}: its next run tries again what failed"
    if counts.done == counts.total:
        return f"Nothing is lost: {resume}, and its next run ends DONE at once"
    return f"To run what is left, {resume}"


def _tasks(number: int) -> str:
    return f"{number} task" if number == 1 else f"{number} tasks"


def _try(call: Call[T]) -> Conversation[T | None]:
    try:
        reply: T = yield Ask(call, EXPLANATION_TIMEOUT)
    except JobmonError as error:
        yield Note(logging.INFO, f"no further details: {error}")
        return None
    return reply


def _grouped(errors: Iterable[tuple[FailedTask, list[str]]]) -> list[_Group]:
    """Return the tasks by their errors, the most frequent error first.

    Errors are the same if their last lines differ in nothing but numbers: a path or an id of each task's own
    makes no other cause.
    """
    groups: dict[str, _Group] = {}
    for task, error in errors:
        last = _NUMBERS.sub("0", error[-1].strip()) if error else ""
        if last in groups:
            groups[last].size += 1
        else:
            groups[last] = _Group(task, error)
    return sorted(groups.values(), key=lambda group: -group.size)


def _failure_text(groups: list[_Group], others: int) -> str:
    """Return the text, each group given a share of the space; of an error its end is kept.

    :param others: how many more tasks failed whose errors were not asked for.
    """
    reserve = len(f"… and {others + sum(group.size for group in groups)} more failed tasks") + 4
    text: list[str] = []
    left = MAX_FAILURE_TEXT - reserve
    for number, group in enumerate(groups):
        block = _block(group, max(left // (len(groups) - number), min(left, _LEAST_SHARE)))
        if not block:
            others += sum(each.size for each in groups[number:])
            break
        text += block
        left -= sum(_size(line) for line in block)
    if others:
        more = f"{'… and ' if text else ''}{others} {'more ' if text else ''}failed"
        text.append(f"{more} {'task' if others == 1 else 'tasks'}")
    return "\n".join(text)


def _block(group: _Group, share: int) -> list[str]:
    """Return the lines about a group of tasks: its error's last line first, then what stood before it.

    :param share: bytes for all of them; where they are too few for the first line, there is none.
    """
    task = f"task {group.task.task_id} {group.task.name!r}"
    error = group.error[-1].strip() if group.error else ""
    who = task if group.size == 1 else f"e.g. {task}"
    room = share - _size(f"{group.size} ×  ({who})")
    said = _cut(error, room) if error else "no error was kept"
    head = f"{group.size} × {said} ({who})"
    if not said or _size(head) > share:
        return []
    share -= _size(head)
    shown: list[str] = []
    before = group.error[:-1] if said == error else group.error  # a line that was cut is shown again
    for line in reversed(before):
        cut = _cut(_INDENT + line, share)
        if not cut:
            break
        shown.insert(0, cut)
        share -= _size(cut)
    return [head, *shown]


def _size(line: str) -> int:
    return len(line.encode("utf-8", "replace")) + 1


def _cut(line: str, size: int) -> str:
    """Return the line, cut to so many bytes; "" if nothing worth reading would be left."""
    if _size(line) <= size:
        return line
    if size < _SHORTEST_LINE:
        return ""
    return line.encode("utf-8", "replace")[: size - 4].decode("utf-8", "ignore") + "…"

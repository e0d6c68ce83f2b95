"""Exchanges of several requests with the server, written once for blocking and asyncio code.

A conversation is a generator. It yields what to do next (:class:`Ask`, :class:`Pause`, :class:`Note`) and a
transport's ``converse`` does it: sends the call and sends the reply back in, or throws the ``JobmonError``
that came instead. What the generator returns is the conversation's result. No I/O, no clock of its own.

* ``steps``: what a conversation yields, and ``Driver``, on which every transport builds.
* ``asking``: one call, asked again. ``pacing``: when to ask next.
* ``resumable``, ``resume``: wait until a workflow is resumable; make it ready for its next run.
* ``create``, ``release``: create exactly one run, and leave none behind.
* ``watch``: follow a run to its end. ``progress``, ``failure``: how far it is, and why it failed.
* ``find``: which workflow a name means.
* ``server_version``: refuse a server that is too old.
"""

from __future__ import annotations

from airflow_jobmon_provider.client.conversations.asking import (
    LAST_LOOK,
    Outage,
    Retries,
    ask_again,
    ask_until,
    in_time,
    try_again,
)
from airflow_jobmon_provider.client.conversations.create import create_run
from airflow_jobmon_provider.client.conversations.failure import (
    EXPLANATION_TIMEOUT,
    MAX_FAILURE_TEXT,
    Explanation,
    advice_on_end,
    count_tasks,
    explain_failure,
    reason_of,
)
from airflow_jobmon_provider.client.conversations.find import find_workflow
from airflow_jobmon_provider.client.conversations.pacing import COMMIT_PATIENCE, KILL_PATIENCE, Uniform
from airflow_jobmon_provider.client.conversations.progress import (
    COUNT_TIMEOUT,
    LONGEST_COSTLY_PAUSE,
    LONGEST_PROGRESS_PAUSE,
    SHORTEST_PROGRESS_PAUSE,
    ProgressWatch,
    progress_pause,
)
from airflow_jobmon_provider.client.conversations.release import (
    abort,
    end_without_executor,
    give_up_overdue_run,
    give_up_run,
    stop_run,
)
from airflow_jobmon_provider.client.conversations.resumable import wait_until_resumable
from airflow_jobmon_provider.client.conversations.resume import (
    Begun,
    begin_resume,
    check_at_rest,
    check_increase_resources,
    make_ready,
    reset_tasks,
)
from airflow_jobmon_provider.client.conversations.server_version import check_age, check_server_version
from airflow_jobmon_provider.client.conversations.steps import (
    Ask,
    Clock,
    Conversation,
    Driver,
    Interrupted,
    Log,
    Note,
    Pause,
    Step,
    carry,
)
from airflow_jobmon_provider.client.conversations.watch import (
    Progress,
    Queue,
    RunEnd,
    RunOutcome,
    ended,
    look_at_run,
    watch_run,
)

__all__ = [
    "COMMIT_PATIENCE",
    "COUNT_TIMEOUT",
    "EXPLANATION_TIMEOUT",
    "KILL_PATIENCE",
    "LAST_LOOK",
    "LONGEST_COSTLY_PAUSE",
    "LONGEST_PROGRESS_PAUSE",
    "MAX_FAILURE_TEXT",
    "SHORTEST_PROGRESS_PAUSE",
    "Ask",
    "Begun",
    "Clock",
    "Conversation",
    "Driver",
    "Explanation",
    "Interrupted",
    "Log",
    "Note",
    "Outage",
    "Pause",
    "Progress",
    "ProgressWatch",
    "Queue",
    "Retries",
    "RunEnd",
    "RunOutcome",
    "Step",
    "Uniform",
    "abort",
    "advice_on_end",
    "ask_again",
    "ask_until",
    "begin_resume",
    "carry",
    "check_age",
    "check_at_rest",
    "check_increase_resources",
    "check_server_version",
    "count_tasks",
    "create_run",
    "end_without_executor",
    "ended",
    "explain_failure",
    "find_workflow",
    "give_up_overdue_run",
    "give_up_run",
    "in_time",
    "look_at_run",
    "make_ready",
    "progress_pause",
    "reason_of",
    "reset_tasks",
    "stop_run",
    "try_again",
    "wait_until_resumable",
    "watch_run",
]

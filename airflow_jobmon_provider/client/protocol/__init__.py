"""Jobmon's HTTP protocol without I/O: what to send for each route, and how to read what comes back.

* ``routes``: one function a route of Jobmon's server. It returns a :class:`Call`, which either transport
  sends and whose ``read`` turns the reply into typed data or raises. A new route is one more function there,
  and one more row in ``tests/routes.py``.
* ``call``: what a request is. ``replies``: what routes reply, typed.
* ``reading``: how the values of a reply are checked.
* ``responses``: reads every HTTP response, status by status.
* ``retry``: the only place that decides which failures are worth a retry.

The facts about routes and replies come from docs/protocol.md, which was measured on Jobmon 3.4.8 and 3.6, and
on its development version of early 2026 ("3.7").
"""

from __future__ import annotations

from airflow_jobmon_provider.client.protocol.call import Call, Verb
from airflow_jobmon_provider.client.protocol.reading import TOO_OLD
from airflow_jobmon_provider.client.protocol.replies import (
    CreatedRun,
    FailedTask,
    FoundWorkflow,
    LostRun,
    Resumability,
    TaskCounts,
    WorkflowDetails,
)
from airflow_jobmon_provider.client.protocol.responses import (
    MAX_REPLY_BYTES,
    NO_WORKFLOW,
    USER_AGENT,
    Response,
    advice_on,
    decipher,
    text_of,
    unpack,
    url_of,
)
from airflow_jobmon_provider.client.protocol.retry import is_retryable, still_at_work, was_not_processed
from airflow_jobmon_provider.client.protocol.routes import CLIENT_VERSION

__all__ = [
    "CLIENT_VERSION",
    "MAX_REPLY_BYTES",
    "NO_WORKFLOW",
    "TOO_OLD",
    "USER_AGENT",
    "Call",
    "CreatedRun",
    "FailedTask",
    "FoundWorkflow",
    "LostRun",
    "Response",
    "Resumability",
    "TaskCounts",
    "Verb",
    "WorkflowDetails",
    "advice_on",
    "decipher",
    "is_retryable",
    "still_at_work",
    "text_of",
    "unpack",
    "url_of",
    "was_not_processed",
]

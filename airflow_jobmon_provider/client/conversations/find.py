"""The conversation that finds a workflow by what it is called."""

from __future__ import annotations

from collections.abc import Iterator

from airflow_jobmon_provider.client.conversations.asking import Retries, ask_again
from airflow_jobmon_provider.client.conversations.server_version import check_server_version
from airflow_jobmon_provider.client.conversations.steps import Clock, Conversation
from airflow_jobmon_provider.client.exceptions import WorkflowAmbiguous, WorkflowNotFound
from airflow_jobmon_provider.client.protocol import Call, FoundWorkflow, routes
from airflow_jobmon_provider.client.workflow_query import WorkflowQuery

MOST_LISTED = 5
"""So many of the workflows that fit are listed, if more than one does."""


def find_workflow(query: WorkflowQuery, retries: Retries, clock: Clock) -> Conversation[int]:
    """Return the id of the one workflow that a query means.

    :param query: what is known of it.
    :param retries: for each request.
    :param clock: monotonic seconds.
    :raises WorkflowNotFound: there is none with tasks and of which a run was ever made; others are not found.
    :raises WorkflowAmbiguous: there is more than one; the line lists the newest.
    :raises RouteNotSupported: the server is too old.
    :raises JobmonError: the server said no, or did not answer, also not in the end.
    """
    replies = []
    yield from check_server_version(None, retries, clock)
    for call in _calls(query):
        workflows = yield from ask_again(call, retries, clock)
        replies.append({each.workflow_id: each for each in workflows})
    found = sorted(set.intersection(*map(set, replies)), reverse=True)
    if len(found) == 1:
        return found[0]
    if not found:
        raise WorkflowNotFound(f"no workflow with a run has {query}")
    newest = found[:MOST_LISTED]
    several = "; ".join(str(replies[0][number]) for number in newest)
    more = f" (the newest of {len(found)})" if len(found) > len(newest) else ""
    raise WorkflowAmbiguous(
        f"{len(found)} workflows have {query}: {several}{more}. Name one of them by more than that, or by"
        " workflow_id"
    )


def _calls(query: WorkflowQuery) -> Iterator[Call[tuple[FoundWorkflow, ...]]]:
    """Yield the calls whose replies have in common what is meant: the route takes one attribute at a time."""
    for name, value in query.workflow_attributes or [("", "")]:
        yield routes.find_workflows(
            query.workflow_name or "", query.tool_name or "", query.workflow_args or "", name, value
        )

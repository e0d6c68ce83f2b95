"""Whether a Jobmon server is one that this client knows; to be asked before the first change on it."""

from __future__ import annotations

from http import HTTPStatus

from airflow_jobmon_provider.client.conversations.asking import Retries, ask_again
from airflow_jobmon_provider.client.conversations.steps import Ask, Clock, Conversation
from airflow_jobmon_provider.client.exceptions import (
    InvalidRequest,
    RouteNotSupported,
    ServerTooOld,
    UnreadableReply,
)
from airflow_jobmon_provider.client.protocol import WorkflowDetails, routes

_OLD_APIS = ("v1", "v2")  # that 3.2.5 to 3.3 have; 3.4 has them, too


def check_server_version(
    details: WorkflowDetails | None, retries: Retries, clock: Clock
) -> Conversation[None]:
    """Make sure that the server is not too old for this client; changes nothing there.

    Jobmon before 3.4 does what it is asked, and answers ``null``: a caller would fail after the change.

    :param details: what ``workflow_details`` said of any workflow of the server, where it was asked. If the
        reply shows that the server is new enough, nothing more is asked. None: one request is made, or two.
    :param retries: for how long to ask again what is worth it.
    :param clock: monotonic seconds.
    :raises ServerTooOld: it is older than 3.4.
    :raises InvalidRequest: the address or the route prefix is wrong, or it wants a login.
    :raises ServerUnreachable, ServerFailure: it did not answer, also not in the end.
    """
    if details is not None and details.modern:
        return
    try:
        version = yield from ask_again(routes.api_version(), retries, clock)
    except RouteNotSupported as error:
        # Below a wrong prefix there is no route at all, and this says so.
        yield Ask(routes.health())
        raise ServerTooOld(str(error), HTTPStatus.NOT_FOUND) from None
    yield from check_age(version, retries, clock)


def check_age(api_version: str, retries: Retries, clock: Clock) -> Conversation[None]:
    """Make sure that a server with this version of the API is not too old; changes nothing there.

    :param api_version: what the server has told.
    :raises ServerTooOld: it is older than 3.4.
    :raises ServerUnreachable, ServerFailure: it did not answer, also not in the end.
    """
    if api_version not in _OLD_APIS:
        return
    try:
        yield from ask_again(routes.probe_age(), retries, clock)
    except ServerTooOld:
        raise
    except (InvalidRequest, UnreadableReply):
        pass  # a refusal is the right answer, in Jobmon's words or in those of a gateway before it

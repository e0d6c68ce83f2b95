"""Whether a Jobmon server is one that this client knows; to be asked before the first change on it."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from airflow_jobmon_provider.client import protocol
from airflow_jobmon_provider.client.exceptions import RouteNotSupported, ServerTooOld
from airflow_jobmon_provider.client.protocol import WorkflowDetails
from airflow_jobmon_provider.client.requester import ask


def check_server_version(
    requester: Any, details: WorkflowDetails | None = None, *, tenacious: bool = True
) -> None:
    """Make sure that the server is not too old for this client; changes nothing there.

    Jobmon before 3.4 does what it is asked, and answers ``null``: a caller would fail after the change.

    :param requester: anything with Jobmon's ``send_request``.
    :param details: what ``workflow_details`` said of any workflow of the server, where it was asked. If the
        reply shows that the server is new enough, nothing more is asked. Default: one request is made.
    :param tenacious: retry what is worth a retry. Default True.
    :raises ServerTooOld: it is older than 3.4.
    :raises InvalidRequest: the address or the route prefix is wrong, or it wants a login.
    :raises ServerUnreachable, ServerFailure: it did not answer, also not in the end.
    """
    if details is not None and details.modern:
        return
    try:
        ask(requester, protocol.api_version(), tenacious=tenacious)
    except RouteNotSupported as error:
        # Below a wrong prefix there is no route at all, and this says so.
        ask(requester, protocol.health(), tenacious=tenacious)
        raise ServerTooOld(str(error), HTTPStatus.NOT_FOUND) from None

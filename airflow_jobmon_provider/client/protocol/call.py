"""What a request is, and what is done with its reply."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from airflow_jobmon_provider.client.exceptions import (
    InvalidRequest,
    JobmonError,
    RecordNotFound,
    RouteNotSupported,
    ServerTooOld,
    TransitionRefused,
)
from airflow_jobmon_provider.client.protocol.reading import TOO_OLD

T = TypeVar("T")

Verb = Literal["get", "post", "put"]


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, and how to read its reply.

    :param verb: HTTP method, as Jobmon's requester spells it.
    :param route: below the route prefix, with its leading slash.
    :param message: JSON body (post, put) or query parameters (get).
    :param read: turns the decoded JSON reply into typed data; raises a ``JobmonError`` if it says no.
    :param not_found: what it means that the server has no such record.
    :param refused: what it means that the server cannot get there from the status that is.
    :param unsupported: what a server without the route cannot do; None: every server has it.
    :param idempotent: whether sending it twice is the same as sending it once.
    :param frequent: whether thousands of it are sent, so that a transport may prepare it and send it in a
        cheaper way. Such a call is idempotent, too. The transport knows it again by its identity: a
        conversation that keeps the object, instead of making an equal one each time, has it prepared once.
    :param costly: whether it costs the server time in proportion to the workflow's tasks: half a minute for
        a million (docs/protocol.md, "Size"). Such a call is given more time, and not sent again while it may
        be at work.
    """

    verb: Verb
    route: str
    message: Mapping[str, Any]
    read: Callable[[Any], T]
    not_found: JobmonError | None = None
    refused: JobmonError | None = None
    unsupported: str | None = None
    idempotent: bool = True
    frequent: bool = False
    costly: bool = False

    def understand(self, reply: Any, server: str) -> T:
        """Return what ``read`` makes of the decoded JSON reply; what it raises says what was asked of whom.

        :param server: address of the server, without credentials.
        """
        try:
            return self.read(reply)
        except JobmonError as error:
            raise type(error)(f"{self.verb.upper()} {server}{self.route}: {error}") from None

    def explain(self, error: JobmonError, server: str) -> JobmonError:
        """Return a transport's error as it reads for what this call asked.

        :param error: what the transport raised.
        :param server: address of the server, without credentials.
        """
        if isinstance(error, RecordNotFound) and self.not_found is not None:
            return type(self.not_found)(f"{self.not_found} at {server}")
        if isinstance(error, TransitionRefused) and self.refused is not None:
            return type(self.refused)(f"{self.refused} at {server}")
        if isinstance(error, ServerTooOld):
            return ServerTooOld(
                f"this Jobmon server ({server}) answers as Jobmon before 3.4 does; {TOO_OLD}",
                error.status_code,
            )
        if self.unsupported is not None and isinstance(error, InvalidRequest) and error.status_code == 404:
            return RouteNotSupported(
                f"this Jobmon server ({server}) cannot {self.unsupported}; needs a newer one"
            )
        return error

"""One exception class for each way in which talking to Jobmon can fail.

``InvalidRequest``, ``InvalidResponse``, ``WorkflowNotResumable`` and ``ConfigError`` carry the names that
Jobmon's users know from ``jobmon.core.exceptions``.
"""

from __future__ import annotations


class JobmonError(Exception):
    """Base of everything this client raises, except ``ValueError`` for bad arguments."""


class ConfigError(JobmonError):
    """A setting is missing or wrong."""


class UnreadableCertificate(ConfigError, OSError):
    """A CA bundle or a client certificate that a setting names cannot be read."""


class ServerChanged(ConfigError):
    """The settings name another server by now than the one on which ids were made."""


class InvalidRequest(JobmonError):
    """The server refused the request (4xx). Sending it again would be refused again.

    :param message: one line for the user.
    :param status_code: HTTP status, where it is known.
    """

    def __init__(self, message: str, status_code: int | None = None) -> None:
        super().__init__(message)
        self.status_code = status_code


class NotAuthorized(InvalidRequest):
    """The server wants other credentials, or none of this user (401, 403)."""


class RecordNotFound(InvalidRequest):
    """The server has no such workflow or run.

    3.4.8 says so with a 500 that names ``NoResultFound``, 3.6 with a 404 that names the workflow
    (docs/protocol.md, "Routes").
    """


class TransitionRefused(InvalidRequest):
    """What was asked would move something to a status that nothing leads to from the one it has.

    3.4.8 says so with a 500 that names ``InvalidStateTransition``.
    """


class RouteNotSupported(InvalidRequest):
    """The server's version of Jobmon does not have the route, so what was asked cannot be done there."""


class ServerTooOld(RouteNotSupported):
    """The server's version of Jobmon is older than any that this client knows."""


class InvalidResponse(JobmonError):
    """The server did not give a reply that can be used."""


class ServerFailure(InvalidResponse):
    """The server failed for now: 5xx, 423 (database deadlock) or 429. Worth asking again.

    :param message: one line for the user.
    :param processed: whether the server may have carried the request out all the same.
    :param retry_after: seconds the server asked to be left alone, if it said.
    """

    def __init__(self, message: str, *, processed: bool = True, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.processed = processed
        self.retry_after = retry_after


class ServerUnreachable(InvalidResponse):
    """No reply: connection refused or broken, or a time-out. Worth asking again.

    :param message: one line for the user.
    :param processed: whether the request may have reached the server and been carried out; False where the
        connection was never made.
    """

    def __init__(self, message: str, *, processed: bool = True) -> None:
        super().__init__(message)
        self.processed = processed


class HostUnknown(InvalidResponse):
    """No name server knows the host, and it was never reached. Asking again won't help: it is misspelt."""


class CertificateNotTrusted(InvalidResponse):
    """The server's certificate is not trusted: signed by nobody known, of another host, or out of date.

    Final: asking again won't help, and the machine that answers there may not be the server.
    """


class UnreadableReply(InvalidResponse):
    """A reply that is not Jobmon's: HTML, broken JSON, a missing or wrong key. Asking again won't help."""


REFUSALS = (NotAuthorized, CertificateNotTrusted)
"""What ends a conversation, unless the connection says something else by now."""


class WorkflowNotResumable(JobmonError):
    """The workflow cannot be resumed, or not by now; also: a workflow run that was never bound."""


class WorkflowBusy(WorkflowNotResumable):
    """Another run of the workflow is alive, so it gets no new one now."""


class ResumeTimeout(WorkflowNotResumable):
    """The workflow did not become resumable in the time given."""


class WorkflowNotFound(WorkflowNotResumable):
    """No workflow has this id on this server."""


class WorkflowAmbiguous(JobmonError):
    """More than one workflow has what was to name one."""


class WorkflowRunNotFound(JobmonError):
    """No workflow run has this id on this server."""

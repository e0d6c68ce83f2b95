"""Which failures are worth a retry."""

from __future__ import annotations

from airflow_jobmon_provider.client.exceptions import (
    JobmonError,
    ServerFailure,
    ServerUnreachable,
)


def is_retryable(error: BaseException) -> bool:
    """Whether asking again may help: the server failed for now or was not reached."""
    return isinstance(error, (ServerFailure, ServerUnreachable))


def was_not_processed(error: BaseException) -> bool:
    """Whether a failed request certainly changed nothing, so that even one that creates may be sent again."""
    return isinstance(error, (ServerFailure, ServerUnreachable)) and not error.processed


def still_at_work(error: JobmonError) -> JobmonError:
    """Return the error of a costly call; it says so where the server may not have finished what was asked."""
    if isinstance(error, (ServerFailure, ServerUnreachable)) and error.processed:
        error.args = (f"{error}; the server may still be at work on it, so it is not sent again",)
    return error

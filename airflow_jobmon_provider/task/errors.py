"""The client's errors in Airflow's terms."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, AirflowTaskTimeout

from airflow_jobmon_provider.client.exceptions import (
    JobmonError,
    RouteNotSupported,
    WorkflowAmbiguous,
    WorkflowNotFound,
)
from airflow_jobmon_provider.task.limits import remaining

_RETRY_IS_USELESS = (WorkflowNotFound, WorkflowAmbiguous, RouteNotSupported)

_CLOCKS_DIFFER = 0.05  # seconds, between the monotonic clock that requests end by and the one of deadlines


class RetryIsUseless(AirflowFailException):
    """What was asked for is impossible, and would be for a retry."""


@contextlib.contextmanager
def airflow_errors() -> Iterator[None]:
    """Turn the client's errors into Airflow's: the same line, and no chain of tracebacks in the task log.

    :raises RetryIsUseless: no retry can help.
    :raises AirflowException: one may.
    """
    try:
        yield
    except _RETRY_IS_USELESS as error:
        raise RetryIsUseless(str(error)) from None
    except JobmonError as error:
        raise AirflowException(str(error)) from None


@contextlib.contextmanager
def execution_limit(deadline: float | None) -> Iterator[None]:
    """Take whatever Jobmon's client raises after the end of ``execution_timeout`` for that end.

    :param deadline: seconds since the epoch; None: no limit.
    :raises AirflowTaskTimeout: it is over, and something failed; the line says what.
    """
    try:
        yield
    except JobmonError as error:
        if deadline is None or remaining(deadline) > _CLOCKS_DIFFER:
            raise
        raise AirflowTaskTimeout(f"execution_timeout is over: {error}") from None

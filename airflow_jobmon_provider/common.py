"""What operators, sensors and triggers share: defaults, terms for Jobmon's errors, checks at DAG parse time.

None of them imports more at its top than a DAG file needs: what only a running task needs is imported where
it is used, as Airflow parses every DAG file again and again.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowTaskTimeout

from airflow_jobmon_provider.client.exceptions import JobmonError
from airflow_jobmon_provider.client.heartbeat import Heartbeat
from airflow_jobmon_provider.client.validation import positive_id, seconds

if TYPE_CHECKING:
    from airflow_jobmon_provider.client.settings import Settings

DEFAULT_POLL_INTERVAL = 60.0

# Airflow gives a trigger's `on_kill` 30 s ([triggerer] on_kill_timeout): enough to find a run out of I and O.
ON_KILL_TIMEOUT = 20.0

_CLOCKS_DIFFER = 0.05  # seconds, between the monotonic clock that requests end by and the one of deadlines

WHY_LATE = "every heartbeat would come too late"


@contextlib.contextmanager
def airflow_errors() -> Iterator[None]:
    """Turn the client's errors into Airflow's: the same line, and no chain of tracebacks in the task log."""
    try:
        yield
    except JobmonError as error:
        raise AirflowException(str(error)) from None


def execution_deadline(context: Any, execution_timeout: timedelta | None) -> float | None:
    """Return when a task's ``execution_timeout`` is over, in seconds since the epoch; None: it has none.

    It counts from the task's start. Airflow's own clock stands still while a task is deferred, and on 3.x
    starts anew on its return.

    :param context: the task's context.
    """
    if execution_timeout is None:
        return None
    started = getattr(context.get("ti"), "start_date", None)
    return (time.time() if started is None else started.timestamp()) + execution_timeout.total_seconds()


def remaining(deadline: float) -> float:
    """Return the seconds until a deadline in seconds since the epoch; 0: it is over."""
    return max(deadline - time.time(), 0.0)


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


def check_literal_id(name: str, value: Any) -> None:
    """Check an id that stands in the DAG file; templates and XComs are checked when they are known.

    :raises ValueError: it is a literal and no positive integer.
    """
    is_template = isinstance(value, str) and ("{{" in value or "{%" in value)
    if not is_template and (value is None or isinstance(value, (str, int, float))):
        positive_id(name, value)


def check_heartbeat(interval: float | None, buffer: float | None) -> None:
    """Check a heartbeat's interval and buffer where they are given; an operator's must work.

    :raises ValueError: the interval is not above 0, or the buffer not above 1.
    """
    if interval is not None:
        seconds("workflow_run_heartbeat_interval", interval, above=0, why=WHY_LATE)
    if buffer is not None:
        seconds("heartbeat_report_by_buffer", buffer, above=1, why=WHY_LATE)


def heartbeat_of(settings: Settings, interval: float | None, buffer: float | None) -> Heartbeat:
    """Return the heartbeat: interval and buffer that are given, else the connection's; they must work.

    :raises ValueError: the interval is not above 0, or the buffer not above 1.
    """
    heartbeat = settings.heartbeat
    if interval is not None:
        heartbeat = replace(heartbeat, interval=interval)
    if buffer is not None:
        heartbeat = replace(heartbeat, buffer=buffer)
    check_heartbeat(heartbeat.interval, heartbeat.buffer)
    return heartbeat


class RenderedBeforeDeferral:
    """Mixin of operators and sensors that need none of their templates once they have been deferred.

    Airflow renders them anew when a task comes back, and what they name may be gone by then: a Variable, an
    upstream's XCom. What was decided before the deferral holds (docs/rules.md, rule 9), so that is no
    failure.
    """

    def _do_render_template_fields(self, *args: Any, **kwargs: Any) -> None:
        # Airflow calls this one for mapped tasks and for others.
        context = kwargs["context"] if "context" in kwargs else args[2]
        try:
            super()._do_render_template_fields(*args, **kwargs)  # type: ignore[misc]
        except Exception as error:
            if not returns_from_deferral(context):
                raise
            log: logging.Logger = self.log  # type: ignore[attr-defined]
            log.warning("A template cannot be rendered any more, and is not needed any more: %s", error)


def returns_from_deferral(context: Any) -> bool:
    """Whether the task that has this context comes back from a deferral."""
    ti = context.get("ti")
    server = getattr(ti, "_ti_context_from_server", None)  # Airflow 3; the attribute beside it is 2's
    return bool(getattr(server, "next_method", None) or getattr(ti, "next_method", None))

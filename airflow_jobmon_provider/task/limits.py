"""Time limits of a task, and default intervals."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

DEFAULT_POLL_INTERVAL = 60.0

# Airflow gives a trigger's `on_kill` 30 s ([triggerer] on_kill_timeout): enough to find a run out of I and O.
ON_KILL_TIMEOUT = 20.0


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

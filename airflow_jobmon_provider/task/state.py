"""What Airflow says about the task instance that this process runs.

Airflow calls an operator's ``on_kill`` when a user ends a task, and just so when a worker is drained or its
heartbeats fail. It calls a trigger's (3.3) when a user ends the task, and just so when a triggerer that has
stalled finds that another one has taken its triggers over. It does not say which, so it is asked.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from airflow_jobmon_provider.client.cancellation import wait_for

T = TypeVar("T")
logger = logging.getLogger(__name__)

# Airflow 3 kills a task's process 5 s after a user has ended the task; a drained one mostly has longer.
ANSWER_TIMEOUT = 10.0

UNKNOWN = "not known"
NO_STATUS = "no status"
"""A user has cleared a task that was deferred; or a scheduler has lost the executor of one that runs."""
GONE = "gone"
"""The task instance does not exist any more, such as after its DAG run was deleted."""
SUCCESS = "success"
"""A user has marked the task, which says that its work counts as done: its run is left alone."""

# "no status" is not among them: a scheduler gives it to a running task, too, whose executor it has lost.
_ENDED = frozenset({"failed", "skipped", "removed", "upstream_failed", "restarting", GONE})


def state_of(ti: Any, timeout: float = ANSWER_TIMEOUT) -> str:
    """Return the state that a task instance has in Airflow now, at most so many seconds later.

    :param ti: the task instance of the running task's context.
    :param timeout: seconds to wait for the answer.
    :returns: Airflow's word for the state; ``UNKNOWN``: it did not answer; ``GONE``.
    """
    ask = _ask_api if hasattr(ti, "get_task_states") else _ask_database
    return within(timeout, lambda: ask(ti)) or UNKNOWN


def is_ended(state: str) -> bool:
    """Whether a user has ended the task, or it is over: no retry goes on with its run, which is stopped."""
    return state in _ENDED


async def state_while_deferred(ti: Any, timeout: float) -> str:
    """Return the state of a trigger's task instance, from the triggerer's event loop.

    :param ti: the trigger's; None: not known.
    :param timeout: seconds to wait for the answer.
    :returns: see :func:`state_of`.
    """
    if ti is None:
        return UNKNOWN
    # Airflow's own thread for what blocks: a triggerer asks its supervisor from no other one.
    from asgiref.sync import sync_to_async

    try:
        return await wait_for(sync_to_async(_ask_api)(ti), timeout)
    except Exception as error:
        logger.debug("Airflow does not answer: %r", error)
        return UNKNOWN


def is_ended_while_deferred(state: str) -> bool:
    """Whether a user has ended a task that was deferred.

    One that is cleared has no status at first, and its next try stops the run if that is seen too late.
    """
    return is_ended(state) or state == NO_STATUS


def within(timeout: float, call: Callable[[], T]) -> T | None:
    """Return what a call returns; None: it failed, or takes longer than so many seconds.

    It runs in a thread of its own: a signal handler may have interrupted this thread while it held the lock
    of the connection to Airflow, which no other call gets before the handler has returned.
    """
    results: list[T] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:
            logger.debug("Airflow does not answer: %r", error)

    thread = threading.Thread(target=run, daemon=True, name="asks-airflow")
    thread.start()
    thread.join(timeout)
    return results[0] if results else None


def _ask_api(ti: Any) -> str:
    """Airflow 3: through the process that supervises this one."""
    index = getattr(ti, "map_index", None)
    ask = getattr(ti, "get_task_states", None)
    if ask is None:  # a triggerer knows a task instance by its data only
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

        ask = RuntimeTaskInstance.get_task_states
    states = ask(
        dag_id=ti.dag_id,
        task_ids=[ti.task_id],
        run_ids=[ti.run_id],
        map_index=-1 if index is None else index,
    )
    found = list(states.get(ti.run_id, {}).values())
    return _word(found[0]) if found else GONE


def _ask_database(ti: Any) -> str:
    """Airflow 2: in its metadata database, with a session of this thread."""
    key = {"dag_id": ti.dag_id, "run_id": ti.run_id, "task_id": ti.task_id, "map_index": ti.map_index}
    # Not `current_state()`, which takes a task instance that is not there for one without a status.
    row = ti.get_task_instance(**key)
    return GONE if row is None else _word(row.state)


def _word(state: Any) -> str:
    return NO_STATUS if state is None else str(getattr(state, "value", state))

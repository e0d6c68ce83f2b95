"""Runs an operator or sensor as Airflow does: execute, defer, run the trigger, resume with its event.

The real scheduler and triggerer do the same in tests/end_to_end; here one test takes milliseconds, and a
failure is an exception. The task instance is a stand-in: a real one needs a running Airflow.
tests/test_airflow_task.py compares it with the real class of the Airflow that runs the tests.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from airflow.providers.common.compat.sdk import BaseOperator, TaskDeferred
from airflow.triggers.base import BaseTrigger

from tests.running_airflow import AIRFLOW_2


@dataclass
class _TaskInstance:
    """Keeps what a task pushes, and knows what Airflow says about it.

    :param max_tries: how many tries Airflow grants it. Only a clear changes that.
    :param map_index: -1: the task is not mapped.
    :param in_airflow: its state in Airflow's database, by map index; a callable is called.
    """

    try_number: int = 1
    xcoms: dict[str, Any] = field(default_factory=dict)
    max_tries: int = 1
    map_index: int | None = -1
    dag_id: str = "dag"
    task_id: str = "run"
    run_id: str = "manual"
    start_date: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    in_airflow: dict[int, str | None] | Callable[[], str | None] = field(
        default_factory=lambda: cast("dict[int, str | None]", {-1: "running"})
    )
    next_method: str | None = None

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = value

    def _states(self) -> dict[int, str | None]:
        states = self.in_airflow() if callable(self.in_airflow) else self.in_airflow
        return states if isinstance(states, dict) else {-1: states}


class ApiTaskInstance(_TaskInstance):
    """What a task has of its task instance on Airflow 3: it asks the API server."""

    def get_task_states(
        self,
        dag_id: str,
        map_index: int | None = None,
        task_ids: list[str] | None = None,
        task_group_id: str | None = None,
        logical_dates: list[datetime] | None = None,
        run_ids: list[str] | None = None,
    ) -> dict[str, Any]:
        """Answer as Airflow's execution API does: one state for each task instance that was asked for."""
        assert (dag_id, task_ids, run_ids) == (self.dag_id, [self.task_id], [self.run_id])
        return {
            self.run_id: {
                self.task_id if index < 0 else f"{self.task_id}_{index}": state
                for index, state in self._states().items()
                if map_index in (None, index)
            }
        }


class DatabaseTaskInstance(_TaskInstance):
    """What a task has of its task instance on Airflow 2: a row of the metadata database."""

    def get_task_instance(self, dag_id: str, run_id: str, task_id: str, map_index: int) -> Any:
        """Answer as a query: a row, or None."""
        assert (dag_id, run_id, task_id) == (self.dag_id, self.run_id, self.task_id)
        states = self._states()
        return SimpleNamespace(state=states[map_index]) if map_index in states else None


if TYPE_CHECKING or not AIRFLOW_2:
    TaskInstance = ApiTaskInstance
else:
    TaskInstance = DatabaseTaskInstance
"""The one of the Airflow that runs the tests."""


class Tries:
    """The tries of one task, with what Airflow 3.3 keeps from one to the next."""

    def __init__(self, retries: int = 1) -> None:
        self.kept: dict[str, Any] = {}
        self.retries = retries
        self.max_tries = retries
        self.clear_number = 0
        self.number = 0

    def get(self, key: str) -> Any:
        return json.loads(json.dumps(self.kept.get(key)))

    def set(self, key: str, value: Any) -> None:
        self.kept[key] = json.loads(json.dumps(value))

    def clear(self) -> None:
        """What Airflow's ``clear_task_instances`` does with one that is not running."""
        self.max_tries = self.number + self.retries
        self.clear_number += 1

    def clear_another_task(self) -> None:
        self.clear_number += 1

    def next(self, *, remembers: bool = True) -> Any:
        """Return the context of the next try."""
        self.number += 1
        ti = TaskInstance(try_number=self.number, max_tries=self.max_tries)
        context: dict[str, Any] = {"ti": ti, "dag_run": SimpleNamespace(clear_number=self.clear_number)}
        return {**context, "task_state_store": self} if remembers else context


@dataclass
class Ended:
    """How a task went.

    :param result: what it returned.
    :param xcoms: what it pushed.
    :param events: the events its triggers fired.
    """

    result: Any
    xcoms: dict[str, Any]
    events: list[dict[str, Any]]


def stored(trigger: BaseTrigger) -> BaseTrigger:
    """Return the trigger as a triggerer makes it anew from Airflow's database."""
    path, kwargs = trigger.serialize()
    module, _, name = path.rpartition(".")
    made: BaseTrigger = getattr(importlib.import_module(module), name)(**json.loads(json.dumps(kwargs)))
    return made


async def kill(trigger: BaseTrigger, state: str | None = "failed") -> None:
    """End a trigger as a triggerer does (3.3) in which it runs no longer.

    :param state: its task's state in Airflow.
    """
    made: Any = stored(trigger)
    made.task_instance = ApiTaskInstance(in_airflow={-1: state})
    await made.on_kill()


async def fire(trigger: BaseTrigger) -> dict[str, Any]:
    """Run a trigger to its one event."""
    events = [event async for event in stored(trigger).run()]
    assert len(events) == 1
    payload: dict[str, Any] = json.loads(json.dumps(events[0].payload))
    return payload


def resume(operator: BaseOperator, deferred: TaskDeferred, event: Any, context: Any) -> Any:
    """Come back from a deferral, with what Airflow's database has kept of it, as JSON."""
    kwargs = json.loads(json.dumps(deferred.kwargs or {}))
    return operator.resume_execution(deferred.method_name, {**kwargs, "event": event}, context)


def execute(operator: BaseOperator, context: Any) -> Any:
    """Execute a task for the first time, as Airflow does, from any thread."""
    if not AIRFLOW_2:
        return operator.execute(context)
    from airflow.models.base import _sentinel

    # By this mark Airflow 2 knows its own call from one of another operator; without it there is a warning
    # in the main thread, and an AttributeError in any other.
    execute: Any = operator.execute
    return execute(context, **{f"{type(operator).__name__}__sentinel": _sentinel})


def run_task(operator: BaseOperator, ti: Any = None) -> Ended:
    """Run a task to its end; what it raises is raised."""
    ti = ti or TaskInstance()
    events: list[dict[str, Any]] = []
    context: Any = {"ti": ti}
    try:
        result = execute(operator, context)
    except TaskDeferred as deferred:
        event = asyncio.run(fire(deferred.trigger))
        events.append(event)
        ti.next_method = deferred.method_name
        result = resume(operator, deferred, event, context)
    return Ended(result, ti.xcoms, events)

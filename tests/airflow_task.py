"""Runs an operator or sensor as Airflow does: execute, defer, run the trigger, resume with its event.

The real scheduler and triggerer do the same in tests/end_to_end; here one test takes milliseconds, and a
failure is an exception. The task instance is a stand-in: a real one needs a running Airflow.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from dataclasses import dataclass, field
from typing import Any

from airflow.providers.common.compat.sdk import BaseOperator, TaskDeferred
from airflow.triggers.base import BaseTrigger


@dataclass
class TaskInstance:
    """Keeps what a task pushes."""

    try_number: int = 1
    xcoms: dict[str, Any] = field(default_factory=dict)

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = value


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


async def fire(trigger: BaseTrigger) -> dict[str, Any]:
    """Run a trigger to its one event."""
    events = [event async for event in stored(trigger).run()]
    assert len(events) == 1
    payload: dict[str, Any] = json.loads(json.dumps(events[0].payload))
    return payload


def run_task(operator: BaseOperator, ti: TaskInstance | None = None) -> Ended:
    """Run a task to its end; what it raises is raised."""
    ti = ti or TaskInstance()
    events: list[dict[str, Any]] = []
    context: Any = {"ti": ti}
    try:
        result = operator.execute(context)
    except TaskDeferred as deferred:
        event = asyncio.run(fire(deferred.trigger))
        events.append(event)
        kwargs = {"event": event, **json.loads(json.dumps(deferred.kwargs or {}))}
        result = operator.resume_execution(deferred.method_name, kwargs, context)
    return Ended(result, ti.xcoms, events)

"""Runs a sensor to its end as Airflow does, through its reschedules and deferrals, and tells how it ended."""

from __future__ import annotations

import asyncio
import copy
import importlib
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime, timezone
from typing import Any

from airflow.exceptions import AirflowRescheduleException
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
    TaskDeferred,
)

from airflow_jobmon_provider.sensors.jobmon import WorkflowResumableSensor, WorkflowRunSensor
from tests.airflow_task import Ended, TaskInstance, execute, fire, resume
from tests.running_airflow import AIRFLOW_2, TIMEOUT

_limit: Any = importlib.import_module(TIMEOUT).timeout  # Airflow's, by a signal
OUR_TRIGGERS = "airflow_jobmon_provider"


def resumable(workflow_id: Any, **options: Any) -> WorkflowResumableSensor:
    return WorkflowResumableSensor(task_id="gate", workflow_id=workflow_id, **options)


def run_ended(run: Any, **options: Any) -> WorkflowRunSensor:
    return WorkflowRunSensor(task_id="wait", workflow_run_id=run, **options)


class Rescheduled(TaskInstance):
    """The part of a task instance that a sensor in reschedule mode asks."""

    _first: datetime | None = None

    @property
    def first(self) -> datetime | None:
        """When the first poke began, if there was a second one."""
        return self._first

    @first.setter
    def first(self, begun: datetime | None) -> None:
        self._first = begun
        if AIRFLOW_2 and begun:  # which gives all of its pokes one start date
            self.start_date = begun

    if not AIRFLOW_2:

        def get_first_reschedule_date(self, context: Any) -> datetime | None:
            return self.first


def context(ti: TaskInstance | None = None) -> Any:
    return {"ti": ti or Rescheduled()}


def nothing() -> None:
    pass


def sense(sensor: Any, ti: Any = None, *, between: Callable[[], None] = nothing) -> Ended:
    """Run a sensor to its end; what it raises is raised. After a reschedule it is another process's.

    :param between: is called when it was first rescheduled or deferred.
    """
    ti = ti or Rescheduled()
    while True:
        started = datetime.now(timezone.utc)
        try:
            return _attempt(copy.deepcopy(sensor), ti, between)
        except AirflowRescheduleException as again:
            if ti.first is None:
                ti.first = started
                between()
            delay = (again.reschedule_date - datetime.now(timezone.utc)).total_seconds()
            time.sleep(max(delay, 0))  # what the scheduler does


def _attempt(sensor: Any, ti: Any, between: Callable[[], None]) -> Ended:
    events: list[dict[str, Any]] = []
    limit = sensor.execution_timeout
    try:
        with _limit(limit.total_seconds()) if limit else nullcontext():
            return Ended(execute(sensor, context(ti)), ti.xcoms, events)
    except TaskDeferred as first:
        deferred = first
        between()
    while True:
        event = asyncio.run(_fired(deferred.trigger))
        if isinstance(event, dict):
            events.append(event)
        ti.next_method = deferred.method_name
        try:
            return Ended(resume(sensor, deferred, event, context(ti)), ti.xcoms, events)
        except TaskDeferred as again:
            deferred = again


async def _fired(trigger: Any) -> Any:
    if type(trigger).__module__.startswith(OUR_TRIGGERS):
        return await fire(trigger)
    async for event in trigger.run():  # Airflow's own, which is a pause
        return json.loads(json.dumps(event.payload, default=str))
    raise AssertionError("a trigger without an event")


def how_it_ends(sensor: Any, *, between: Callable[[], None] = nothing) -> tuple[str, str]:
    """Return what Airflow makes of a sensor's end, as its task runner does, and the reason."""
    return ending(lambda: sense(sensor, between=between))


def ending(act: Callable[[], Any]) -> tuple[str, str]:
    """Return what Airflow makes of what a task does, and the reason."""
    try:
        act()
    except AirflowSkipException as skipped:
        return "skipped", str(skipped)
    except (AirflowFailException, AirflowSensorTimeout) as failed:
        return "fails for good", str(failed)
    except (Exception, AirflowTaskTimeout) as failed:
        return "fails", str(failed)
    return "succeeds", ""

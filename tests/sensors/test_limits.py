"""The sensors' limits and what they decided before deferring, whatever the server does."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (  # type: ignore[attr-defined]  # timezone is there
    AirflowException,
    AirflowSensorTimeout,
    AirflowTaskTimeout,
    TaskDeferred,
    timezone,
)

from dev.jobmon_sandbox import JobmonSandbox
from tests.airflow_task import TaskInstance, fire
from tests.sensors.waiting import Rescheduled, context, resumable, run_ended, sense

pytestmark = pytest.mark.usefixtures("connection")


sensors = pytest.mark.parametrize("make", [resumable, run_ended])


@pytest.fixture(params=["poke", "reschedule", "deferrable"])
def mode(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options of a sensor for each way to wait, with Airflow's long pause between two pokes."""
    return {"deferrable": True} if request.param == "deferrable" else {"mode": request.param}


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def timed(sensor: Any, expected: Any, **options: Any) -> float:
    started = time.monotonic()
    with pytest.raises(expected):
        sense(sensor, **options)
    return time.monotonic() - started


# --- limits -------------------------------------------------------------------------------------------------


@sensors
def test_a_sensors_time_out_is_to_the_second_whatever_the_poke_interval(
    sandbox: JobmonSandbox, mode: dict[str, Any], make: Callable[..., Any]
) -> None:
    workflow = sandbox.make_workflow_in("R")
    an_id = workflow.workflow_id if make is resumable else workflow.workflow_run_id
    took = timed(make(an_id, timeout=timedelta(seconds=2), **mode), AirflowSensorTimeout)
    assert 1.9 < took < 8  # the poke interval is a minute


@sensors
def test_a_sensors_time_out_holds_while_the_server_refuses_connections(
    connection: Callable[..., None], mode: dict[str, Any], make: Callable[..., Any]
) -> None:
    connection("http://127.0.0.1:9", extra={"retries_timeout": 300})
    assert timed(make(7, timeout=1, **mode), AirflowSensorTimeout) < 6


@sensors
def test_a_sensors_time_out_holds_while_the_server_is_silent(
    connection: Callable[..., None], silent: str, mode: dict[str, Any], make: Callable[..., Any]
) -> None:
    connection(silent, extra={"retries_timeout": 300})
    assert timed(make(7, timeout=1, **mode), AirflowSensorTimeout) < 8


def test_a_poke_after_days_of_reschedules_is_no_longer_than_what_is_left(
    connection: Callable[..., None], silent: str
) -> None:
    connection(silent)
    ti = Rescheduled()
    ti.first = timezone.utcnow() - timedelta(days=7)
    assert timed(resumable(7, mode="reschedule", timeout=7 * 86400), AirflowSensorTimeout, ti=ti) < 6


def test_airflow_2_tells_the_first_poke_by_the_start_date() -> None:
    ti = TaskInstance()
    ti.start_date = timezone.utcnow() - timedelta(seconds=30)
    sensor = resumable(7, mode="reschedule")
    assert sensor._begun(context(ti)) == ti.start_date
    assert (timezone.utcnow() - sensor._begun(context(TaskInstance()))).total_seconds() < 5


@sensors
def test_execution_timeout_holds_while_deferred(sandbox: JobmonSandbox, make: Callable[..., Any]) -> None:
    workflow = sandbox.make_workflow_in("R")
    an_id = workflow.workflow_id if make is resumable else workflow.workflow_run_id
    limit = timedelta(seconds=2)
    sensor = make(an_id, deferrable=True, execution_timeout=limit, timeout=86400.0 * 365 * 1000)
    started = time.monotonic()
    with pytest.raises(AirflowTaskTimeout, match="execution_timeout is over: workflow"):
        sense(sensor)
    assert 1.8 < time.monotonic() - started < 8


def test_a_deadline_that_passed_during_a_failover_is_one_short_look(
    connection: Callable[..., None], silent: str
) -> None:
    connection(silent)
    with pytest.raises(TaskDeferred) as deferred:
        resumable(7, deferrable=True, timeout=0).execute(context(TaskInstance()))
    started = time.monotonic()
    event = asyncio.run(fire(deferred.value.trigger))
    assert event["status"] == "timeout"
    assert time.monotonic() - started < 6


# --- what was decided before deferring ----------------------------------------------------------------------


@sensors
@pytest.mark.parametrize("rendered", [None, 5, "nonsense"])
def test_an_id_that_renders_to_something_else_by_then_changes_nothing(
    sandbox: JobmonSandbox, make: Callable[..., Any], rendered: Any, logged: Callable[[], str]
) -> None:
    workflow = sandbox.make_workflow_in("R")
    an_id = workflow.workflow_id if make is resumable else workflow.workflow_run_id
    with pytest.raises(TaskDeferred) as deferred:
        make(an_id, deferrable=True).execute({"ti": TaskInstance()})
    trigger = deferred.value.trigger
    assert trigger.serialize()[1]["server"] == f"{sandbox.url}/api/v2"
    path = f"/api/v2/workflow_run/{workflow.workflow_run_id}/update_status"
    sandbox.put(path, {"status": "D"})
    event = asyncio.run(fire(trigger))
    again = make("{{ gone }}", jobmon_conn_id="{{ gone }}")
    again.workflow_id = again.workflow_run_id = again.jobmon_conn_id = rendered
    kwargs = {"event": event, **(deferred.value.kwargs or {})}
    again.resume_execution(deferred.value.method_name, kwargs, {"ti": TaskInstance()})
    assert event["message"] in logged()


@sensors
@pytest.mark.parametrize("event", [None, {}, {"message": "old"}, "success"])
def test_an_event_that_says_nothing_is_one_clear_line(make: Callable[..., Any], event: Any) -> None:
    with pytest.raises(AirflowException, match="clear it to begin anew"):
        make(5).execute_complete({}, event)


# --- alive is alive -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["I", "O"])
def test_a_run_that_is_about_to_begin_is_alive(
    sandbox: JobmonSandbox, mode: dict[str, Any], status: str
) -> None:
    workflow = sandbox.make_workflow_in("L")
    for step in "BIO"[: "BIO".index(status) + 1]:
        path = f"/api/v2/workflow_run/{workflow.workflow_run_id}/update_status"
        sandbox.put(path, {"status": step})
    with pytest.raises(AirflowSensorTimeout):
        sense(resumable(workflow.workflow_id, timeout=1, **mode))
    assert not sandbox.requests(f"/workflow/{workflow.workflow_id}/set_resume")

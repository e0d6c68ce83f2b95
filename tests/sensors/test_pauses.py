"""How long the sensors wait between two looks, in every mode, and what may be given for a span of time."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pendulum
import pytest
from airflow.exceptions import AirflowRescheduleException
from airflow.providers.common.compat.sdk import DAG, TaskDeferred

from tests.airflow_task import fire
from tests.sensors.waiting import Rescheduled, context, resumable, run_ended
from tests.stub_server import StubServer

pytestmark = pytest.mark.usefixtures("connection")

Make = Callable[..., Any]
Stub = Callable[..., StubServer]

sensors = pytest.mark.parametrize("make", [resumable, run_ended])

WAITING, RUNS, DONE = {"status": "L"}, {"status": "R"}, {"status": "D"}
BUSY = {"workflow_is_resumable": False}


def triggers_longest_pause(sensor: Any) -> Any:
    """Return what the trigger is given, once the sensor has looked and defers."""
    with pytest.raises(TaskDeferred) as deferred:
        sensor.execute(context())
    return deferred.value.trigger.serialize()[1]["poll_interval"]


@pytest.fixture
def waiting(connection: Callable[..., None], stub: Stub) -> Callable[[Make], None]:
    """Make the server say to the sensor that it has to wait."""

    def say(make: Make) -> None:
        connection(stub(BUSY if make is resumable else RUNS).url)

    return say


# --- Deferred -----------------------------------------------------------------------------------------------


@sensors
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "the trigger's"),
        ({"poke_interval": 5}, 5),
        ({"poke_interval": timedelta(minutes=2)}, 120),
        ({"poke_interval": 60}, 60),
        ({"poke_interval": 5, "exponential_backoff": True}, "the trigger's"),
        ({"poke_interval": 5, "exponential_backoff": True, "max_wait": timedelta(seconds=20)}, 20),
        ({"max_wait": 20}, "the trigger's"),
    ],
)
def test_the_poke_interval_is_the_longest_pause_between_the_triggerers_looks(
    waiting: Callable[[Make], None], make: Make, options: dict[str, Any], expected: Any
) -> None:
    waiting(make)
    if expected == "the trigger's":
        expected = None if make is resumable else 60
    assert triggers_longest_pause(make(7, deferrable=True, **options)) == expected


@pytest.mark.parametrize("poll_interval", [7, timedelta(seconds=7)])
def test_the_poll_interval_wins_over_the_poke_interval(
    waiting: Callable[[Make], None], poll_interval: Any
) -> None:
    waiting(run_ended)
    sensor = run_ended(7, deferrable=True, poke_interval=5, poll_interval=poll_interval)
    assert triggers_longest_pause(sensor) == 7


@sensors
def test_a_dags_default_poke_interval_counts_as_given(waiting: Callable[[Make], None], make: Make) -> None:
    waiting(make)
    start = pendulum.datetime(2026, 1, 1, tz="UTC")
    with DAG("gates", schedule=None, start_date=start, default_args={"poke_interval": 5}):
        sensor = make(7, deferrable=True)
    assert (sensor.poke_interval, triggers_longest_pause(sensor)) == (5, 5)


@sensors
def test_the_triggerer_looks_as_often_as_the_poke_interval_wants(
    connection: Callable[..., None], stub: Stub, make: Make
) -> None:
    busy, end = ([BUSY], [{"workflow_is_resumable": True}, []]) if make is resumable else ([RUNS], [DONE])
    server = stub(*busy * 40, *end)
    connection(server.url)
    with pytest.raises(TaskDeferred) as deferred:
        make(7, deferrable=True, poke_interval=0.02).execute(context())
    started = time.monotonic()
    assert asyncio.run(fire(deferred.value.trigger))["status"] == "success"
    assert time.monotonic() - started < 30  # at its own pace, 40 looks take more than 36 s
    assert len(server.requests) >= 41


# --- A run that pokes keep alive ----------------------------------------------------------------------------

HURRY = {"workflow_run_heartbeat_interval": 10, "heartbeat_report_by_buffer": 3}
A_THIRD = 10


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that a sensor makes in mode poke, none of which is waited for."""
    made: list[float] = []
    monkeypatch.setattr("airflow_jobmon_provider.sensors._base.time.sleep", made.append)
    return made


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"poke_interval": 25},
        {"exponential_backoff": True},
        {"exponential_backoff": True, "poke_interval": 5, "max_wait": timedelta(hours=1)},
    ],
)
def test_no_pause_between_two_pokes_loses_a_run_that_they_keep_alive(
    connection: Callable[..., None], stub: Stub, pauses: list[float], options: dict[str, Any]
) -> None:
    server = stub(*[WAITING] * 12, DONE)
    connection(server.url)
    run_ended(7, keep_alive="until_bound", **HURRY, **options).execute(context())
    assert len(pauses) == 11  # the first poke reads the status and beats
    assert max(pauses) == A_THIRD
    assert {request.body["status"] for request in server.requests[1:]} == {"L"}


def test_the_pauses_are_the_users_once_an_executor_has_the_run(
    connection: Callable[..., None], stub: Stub, pauses: list[float]
) -> None:
    connection(stub(WAITING, WAITING, RUNS, RUNS, DONE).url)
    sensor = run_ended(7, keep_alive="until_bound", poke_interval=25, **HURRY)
    sensor.execute(context())
    assert pauses == [A_THIRD, 25, 25]


@pytest.mark.parametrize("status", [RUNS, {"status": "B"}, WAITING])
def test_they_are_short_to_the_end_for_an_executor_that_does_not_beat(
    connection: Callable[..., None], stub: Stub, pauses: list[float], status: dict[str, str]
) -> None:
    connection(stub(*[status] * 4, DONE).url)
    run_ended(7, keep_alive="until_done", **HURRY).execute(context())
    assert set(pauses) == {A_THIRD}


@pytest.mark.parametrize("exponential_backoff", [True, False])
@pytest.mark.parametrize("hours", [0, 1, 100])
def test_a_reschedule_is_soon_enough_to_keep_the_run_alive(
    connection: Callable[..., None], stub: Stub, exponential_backoff: bool, hours: int
) -> None:
    connection(stub(WAITING).url)
    options = {"poke_interval": 20, "exponential_backoff": exponential_backoff, "mode": "reschedule"}
    ti = Rescheduled()
    ti.first = datetime.now(timezone.utc) - timedelta(hours=hours) if hours else None
    with pytest.raises(AirflowRescheduleException) as again:
        run_ended(7, keep_alive="until_bound", **HURRY, **options).execute(context(ti))
    pause = (again.value.reschedule_date - datetime.now(timezone.utc)).total_seconds()
    assert pause <= A_THIRD


def test_a_reschedule_after_a_poke_that_could_not_read_the_connection_is_soon_enough_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By Jobmon's own heartbeat, as the connection's is not known."""
    monkeypatch.delenv("AIRFLOW_CONN_JOBMON_DEFAULT")
    ti = Rescheduled()
    ti.first = datetime.now(timezone.utc) - timedelta(hours=1)
    with pytest.raises(AirflowRescheduleException) as again:
        run_ended(7, keep_alive="until_bound", mode="reschedule").execute(context(ti))
    assert (again.value.reschedule_date - datetime.now(timezone.utc)).total_seconds() <= 31


def test_thousands_of_pokes_with_growing_pauses_are_no_error() -> None:
    """Airflow's own formula overflows after a thousand, which is within a day where the pauses are capped."""
    sensor = resumable(7, exponential_backoff=True, max_wait=60, poke_interval=5)
    pause = sensor._get_next_poke_interval(datetime.now(timezone.utc), lambda: 86400.0, 5000)
    assert pause == 60


@pytest.mark.parametrize(
    ("options", "good_for"),
    [
        ({"poke_interval": 30, **HURRY}, 30),
        ({"poke_interval": timedelta(minutes=1), "mode": "reschedule", **HURRY}, 30),
    ],
)
def test_a_poke_interval_that_would_lose_the_run_is_refused_in_the_dag_file(
    options: dict[str, Any], good_for: int
) -> None:
    says = rf"poke_interval must be shorter than a heartbeat is good for \({good_for} s\)"
    for keep_alive in ("until_bound", "until_done"):
        with pytest.raises(ValueError, match=says):
            run_ended(7, keep_alive=keep_alive, **options)
    run_ended(7, **options)  # it only watches
    run_ended(7, keep_alive="until_bound", deferrable=True, **options)  # the triggerer beats by itself


@pytest.mark.parametrize("mode", ["poke", "reschedule"])
def test_one_that_the_connections_heartbeat_rules_out_is_refused_before_the_first_look(
    connection: Callable[..., None], stub: Stub, mode: str
) -> None:
    server = stub(WAITING)
    connection(server.url, extra={"workflow_run_heartbeat_interval": 10, "heartbeat_report_by_buffer": 3})
    sensor = run_ended(7, keep_alive="until_bound", poke_interval=40, mode=mode)
    with pytest.raises(ValueError, match=r"good for \(30 s\), not 40: the run would be lost"):
        sensor.execute(context())
    assert not server.requests


def test_the_default_poke_interval_gives_way_to_the_heartbeat(
    connection: Callable[..., None], stub: Stub, pauses: list[float]
) -> None:
    connection(
        stub(WAITING, WAITING, DONE).url,
        extra={"workflow_run_heartbeat_interval": 6, "heartbeat_report_by_buffer": 2},
    )
    run_ended(7, keep_alive="until_bound").execute(context())
    assert pauses == [4]


# --- What may be given --------------------------------------------------------------------------------------

SPANS = ["timeout", "poke_interval", "max_wait"]
RUN_SPANS = ["poll_interval", "workflow_run_heartbeat_interval"]
NONSENSE = [True, "60", math.nan, math.inf, -1, timedelta(seconds=-1), [60]]


@pytest.mark.parametrize("value", NONSENSE, ids=str)
@pytest.mark.parametrize(
    ("make", "name"),
    [*((resumable, name) for name in SPANS), *((run_ended, name) for name in SPANS + RUN_SPANS)],
)
def test_what_is_no_span_of_time_is_refused_in_the_dag_file(make: Make, name: str, value: Any) -> None:
    with pytest.raises(
        ValueError, match=f"^{name} must be a number of seconds or a timedelta, at least 0"
    ) as caught:
        make(7, **{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["poke_interval", "max_wait", *RUN_SPANS])
@pytest.mark.parametrize("value", [0, 0.0, timedelta(0)])
def test_a_pause_of_no_length_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be larger than 0"):
        run_ended(7, **{name: value})


@pytest.mark.parametrize("name", ["timeout", "poke_interval", *RUN_SPANS])
@pytest.mark.parametrize("given", [90, 90.0, timedelta(seconds=90)])
def test_every_span_of_time_is_seconds_or_a_timedelta(name: str, given: Any) -> None:
    assert getattr(run_ended(7, **{name: given}), name) == 90


@sensors
@pytest.mark.parametrize("name", SPANS)
@pytest.mark.parametrize("value", [1e30, timedelta.max])
def test_a_span_of_time_that_no_date_can_hold_is_as_good_as_endless(
    connection: Callable[..., None], stub: Stub, make: Make, name: str, value: Any
) -> None:
    connection(stub(BUSY if make is resumable else RUNS).url)
    with pytest.raises(AirflowRescheduleException):
        make(7, mode="reschedule", exponential_backoff=True, **{name: value}).execute(context())
    with pytest.raises(TaskDeferred):
        make(7, deferrable=True, **{name: value}).execute(context())


def test_a_heartbeat_interval_that_is_a_timedelta_is_sent_as_seconds(
    connection: Callable[..., None], stub: Stub
) -> None:
    server = stub(WAITING, WAITING, DONE)
    connection(server.url)
    sensor = run_ended(
        7, keep_alive="until_bound", workflow_run_heartbeat_interval=timedelta(seconds=20), deferrable=True
    )
    with pytest.raises(TaskDeferred) as deferred:
        sensor.execute(context())
    assert deferred.value.trigger.serialize()[1]["workflow_run_heartbeat_interval"] == 20
    assert server.requests[1].body["next_report_increment"] == pytest.approx(62)


# --- What the log says --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (resumable, ["workflow 7 is not resumable yet", "workflow 7 is resumable"]),
        (
            run_ended,
            ["workflow run 7 is RUNNING (R): its tasks are running", "workflow run 7 ended DONE (D)"],
        ),
    ],
)
def test_the_log_names_workflow_and_run_as_the_clients_messages_do(
    connection: Callable[..., None],
    stub: Stub,
    pauses: list[float],
    logged: Callable[[], str],
    make: Make,
    says: list[str],
) -> None:
    rest = [BUSY, {"workflow_is_resumable": True}, []] if make is resumable else [RUNS, DONE]
    connection(stub(*rest).url)
    make(7).execute(context())
    text = logged()
    assert [line for line in says if line not in text] == []
    assert "Workflow 7" not in text
    assert "Workflow run 7" not in text

"""Sensors on a real Jobmon: poke, reschedule and deferrable."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
)

from dev.jobmon_sandbox import JobmonSandbox, wait_until
from tests.sensors.waiting import resumable, run_ended, sense
from tests.stuck_tasks import stop_with_stuck_tasks

NOBODY = 987_654_321

pytestmark = pytest.mark.usefixtures("connection")


@pytest.fixture(params=["poke", "reschedule", "deferrable"])
def mode(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options of a sensor for each way to wait."""
    if request.param == "deferrable":
        return {"deferrable": True}
    return {"mode": request.param, "poke_interval": 0.2}


def later(sandbox: JobmonSandbox, run: int | None, statuses: str, looks: str) -> threading.Thread:
    """Move a run on once a sensor has looked twice."""

    def act() -> None:
        before = len(sandbox.requests(looks))
        wait_until(lambda: len(sandbox.requests(looks)) >= before + 2, 20, "two looks")
        for status in statuses:
            sandbox.put(f"/api/v2/workflow_run/{run}/update_status", {"status": status})

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


# --- WorkflowResumableSensor --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["E", "D", "A"])
def test_a_sensor_ends_on_a_workflow_at_rest(
    sandbox: JobmonSandbox, mode: dict[str, Any], status: str
) -> None:
    workflow_id = sandbox.make_workflow_in(status).workflow_id
    assert sense(resumable(str(workflow_id), **mode)).events == []
    assert len(sandbox.requests(f"/workflow/{workflow_id}/is_resumable")) == 1


def test_it_waits_for_the_run_and_signals_nothing(sandbox: JobmonSandbox, mode: dict[str, Any]) -> None:
    workflow = sandbox.make_workflow_in("R")
    acting = later(sandbox, workflow.workflow_run_id, "E", f"/workflow/{workflow.workflow_id}/is_resumable")
    sense(resumable(workflow.workflow_id, **mode))
    acting.join()
    assert sandbox.run_status(workflow.workflow_run_id or 0) == "E"
    assert not sandbox.requests(f"/workflow/{workflow.workflow_id}/set_resume")


def test_a_resumable_sensor_ends_at_its_time_out(sandbox: JobmonSandbox, mode: dict[str, Any]) -> None:
    workflow_id = sandbox.make_workflow_in("R").workflow_id
    with pytest.raises(AirflowSensorTimeout):
        sense(resumable(workflow_id, timeout=1, **mode))


def test_a_forced_clean_up(
    connection: Callable[..., None], sandbox: JobmonSandbox, mode: dict[str, Any]
) -> None:
    connection(extra={"route_prefix": "/api/v3"})
    workflow_id, run = stop_with_stuck_tasks(sandbox)
    sense(resumable(workflow_id, force_cleanup=True, **mode))
    assert sandbox.run_status(run) == "T"


def test_a_server_that_cannot_clean_up(sandbox: JobmonSandbox, mode: dict[str, Any]) -> None:
    workflow_id = sandbox.make_workflow_in("R").workflow_id
    with pytest.raises(AirflowException, match="cannot force a clean-up; needs a newer one"):
        sense(resumable(workflow_id, force_cleanup=True, **mode))


def test_a_workflow_that_does_not_exist(sandbox: JobmonSandbox, mode: dict[str, Any]) -> None:
    with pytest.raises(AirflowException, match=f"workflow {NOBODY} does not exist"):
        sense(resumable(NOBODY, **mode))


# --- WorkflowRunSensor --------------------------------------------------------------------------------------


def test_a_run_sensor_succeeds_on_a_done_run(sandbox: JobmonSandbox, mode: dict[str, Any]) -> None:
    run = sandbox.make_workflow_in("D").workflow_run_id
    assert sense(run_ended(str(run), **mode)).events == []


def test_a_run_sensor_waits_for_the_end_of_the_run(sandbox: JobmonSandbox, mode: dict[str, Any]) -> None:
    run = sandbox.make_workflow_in("R").workflow_run_id
    acting = later(sandbox, run, "D", f"/workflow_run/{run}/log_heartbeat")
    sense(run_ended(run, poll_interval=0.2, **mode))
    assert sandbox.run_status(run or 0) == "D"
    acting.join()


@pytest.mark.parametrize(("status", "says"), [("E", "tasks failed"), ("A", "given up")])
def test_any_other_end_is_a_failure(
    sandbox: JobmonSandbox, mode: dict[str, Any], status: str, says: str
) -> None:
    run = sandbox.make_workflow_in(status).workflow_run_id
    with pytest.raises(AirflowFailException, match=says):
        sense(run_ended(run, **mode))


def test_an_end_that_comes_while_waiting_is_a_failure_too(sandbox: JobmonSandbox) -> None:
    run = sandbox.make_workflow_in("R").workflow_run_id
    acting = later(sandbox, run, "E", f"/workflow_run/{run}/log_heartbeat")
    with pytest.raises(AirflowFailException, match=r"ended ERROR \(E\)"):
        sense(run_ended(run, deferrable=True, poll_interval=0.2))
    acting.join()


def test_the_time_out_of_a_run_sensor_aborts_nothing(sandbox: JobmonSandbox, mode: dict[str, Any]) -> None:
    run = sandbox.make_workflow_in("L").workflow_run_id or 0
    with pytest.raises(AirflowSensorTimeout):
        sense(run_ended(run, timeout=1, poll_interval=0.2, **mode))
    assert sandbox.run_status(run) == "L"


def test_it_only_watches_unless_asked(sandbox: JobmonSandbox, mode: dict[str, Any]) -> None:
    run = sandbox.make_workflow_in("L", good_for=3600).workflow_run_id or 0
    lost_at = sandbox.heartbeat_date(run)
    acting = later(sandbox, run, "BIORD", f"/workflow_run/{run}/log_heartbeat")
    sense(run_ended(run, poll_interval=0.2, **mode))
    acting.join()
    assert sandbox.heartbeat_date(run) == lost_at


def test_it_keeps_the_run_alive_if_asked(sandbox: JobmonSandbox, mode: dict[str, Any]) -> None:
    run = sandbox.make_workflow_in("L", good_for=1).workflow_run_id or 0
    route = f"/workflow_run/{run}/log_heartbeat"
    acting = later(sandbox, run, "BIORD", route)
    heartbeat = {"workflow_run_heartbeat_interval": 0.5, "heartbeat_report_by_buffer": 600}
    lost_at = sandbox.heartbeat_date(run)
    sense(run_ended(run, keep_alive="until_bound", poll_interval=0.2, **heartbeat, **mode))
    acting.join()
    assert sandbox.heartbeat_date(run) > lost_at
    ours = [request for request in sandbox.requests(route) if request.is_ours]
    assert ours[0].body["status"] == "G"  # it reads the status before it beats
    assert ours[1].body == {"next_report_increment": 300, "status": "L"}


def test_a_run_that_does_not_exist(sandbox: JobmonSandbox, mode: dict[str, Any]) -> None:
    with pytest.raises(AirflowException, match=f"workflow run {NOBODY} does not exist"):
        sense(run_ended(NOBODY, **mode))


# --- both ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "name"), [(resumable, "workflow_id"), (run_ended, "workflow_run_id")])
@pytest.mark.parametrize("value", ["abc", -1, "", "1/../2", True, 3.5, None])
def test_a_bad_id_is_refused(
    sandbox: JobmonSandbox, mode: dict[str, Any], make: Callable[..., Any], name: str, value: Any
) -> None:
    given_by_name = value is None and name == "workflow_id"
    says = "must be given" if given_by_name else "must be a positive integer"
    with pytest.raises(ValueError, match=f"^{name}.* {says}"):
        make(value)
    sensor = make("{{ params.id }}", **mode)
    setattr(sensor, name, value)
    before = len(sandbox.requests())
    with pytest.raises(ValueError, match=f"{name} must be a positive integer"):
        sense(sensor)
    assert not [request for request in sandbox.requests()[before:] if request.is_ours]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep_alive": "always"}, "keep_alive must be one of"),
        ({"workflow_run_heartbeat_interval": 0}, "interval must be larger than 0"),
        ({"heartbeat_report_by_buffer": 1}, "every heartbeat would come too late"),
        ({"poll_interval": -1}, "poll_interval must be a number"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        run_ended(5, **options)


def test_an_outage_between_two_pokes_is_no_failure(
    connection: Callable[..., None], sandbox: JobmonSandbox, logged: Callable[[], str]
) -> None:
    connection("http://127.0.0.1:9")
    with pytest.raises(AirflowSensorTimeout):
        sense(resumable(7, poke_interval=0.1, timeout=0.3))
    assert "Jobmon is not answering; will keep trying: GET http://127.0.0.1:9" in logged()

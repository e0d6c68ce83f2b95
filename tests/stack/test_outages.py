"""Fifty deferred runs, while Jobmon is down, locked, or another version than before."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from dev.airflow_stack import AirflowStack
from dev.jobmon_sandbox import JobmonSandbox, wait_until
from dev.services import connect_to_mariadb
from tests.stack.fleet import DAG, Fleet, Run, launch

DOWN, LOCKED = 300.0, 60.0  # seconds
WENT, CAME = "Jobmon is not answering; will keep trying", "Jobmon is answering again after"

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def fleet(jobmon: JobmonSandbox, production: AirflowStack) -> Fleet:
    """Half of the runs have a window of ten minutes, and outlive five without a heartbeat."""
    return launch(jobmon, production, run=25, long_run=25)


def warnings(fleet: Fleet) -> dict[Run, tuple[int, int]]:
    """How often each one's log warns of the start and of the end of an outage."""
    logs = {run: fleet.log(run) for run in fleet.runs}
    return {run: (log.count(WENT), log.count(CAME)) for run, log in logs.items()}


def calm(fleet: Fleet) -> dict[Run, tuple[int, int]]:
    """Wait until nobody is in an outage any more, and return the warnings up to now."""
    wait_until(lambda: all(a == b for a, b in warnings(fleet).values()), 90, "the end of earlier outages")
    return warnings(fleet)


def lasts(seconds: float, check: Callable[[], object]) -> None:
    """Let a fault last so long, and check now and then that it does no harm."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        check()
        time.sleep(5)


def assert_warned_once_more(fleet: Fleet, before: dict[Run, tuple[int, int]]) -> None:
    def warned() -> bool:
        return all(ends > before[run][1] for run, (_, ends) in warnings(fleet).items())

    wait_until(warned, 90, "a warning of each that the outage is over")
    assert warnings(fleet) == {run: (starts + 1, ends + 1) for run, (starts, ends) in before.items()}


def test_a_minute_of_deadlocks(fleet: Fleet, jobmon: JobmonSandbox) -> None:
    """MariaDB's own error for a deadlock, at each change of a run: the server makes a 423 of it."""
    fleet.assert_all_deferred()
    before = calm(fleet)
    jobmon.change(
        "CREATE TRIGGER deadlock BEFORE UPDATE ON workflow_run FOR EACH ROW SIGNAL SQLSTATE '40001' SET"
        " MYSQL_ERRNO = 1213, MESSAGE_TEXT = 'Deadlock found when trying to get lock; try restarting"
        " transaction'"
    )
    try:
        lasts(LOCKED, fleet.assert_all_deferred)
    finally:
        jobmon.change("DROP TRIGGER deadlock")
    codes = Counter(request.status_code for request in jobmon.requests("/log_heartbeat"))
    assert codes[423] > len(fleet.runs)
    assert_warned_once_more(fleet, before)
    fleet.assert_all_deferred()


def test_a_minute_of_locked_tables(fleet: Fleet, jobmon: JobmonSandbox) -> None:
    """The server hangs, and replies to nobody."""
    before = calm(fleet)
    with connect_to_mariadb(jobmon.environment()["JOBMON__DB__SQLALCHEMY_DATABASE_URI"]) as locker:
        locker.cursor().execute("LOCK TABLES workflow_run WRITE")

        def nobody_ended() -> None:
            assert Counter(fleet.states().values()) == {"deferred": len(fleet.runs)}

        lasts(LOCKED, nobody_ended)
    assert_warned_once_more(fleet, before)
    fleet.assert_all_deferred()


@pytest.fixture
def newer_again(jobmon: JobmonSandbox) -> Iterator[None]:
    yield
    jobmon.stop_server()
    jobmon.start_server()


@pytest.mark.usefixtures("newer_again")
def test_a_server_of_another_version(fleet: Fleet, jobmon: JobmonSandbox, production: AirflowStack) -> None:
    """Routes and keys of the newer version vanish and come back below waiting gates."""
    run = fleet.runs[-1]
    dag_run = production.trigger("gates", {"workflow_id": run.workflow_id})
    for gate in ("gate", "cleaning_gate"):
        production.wait_for_task("gates", dag_run, gate, ["deferred"])
    route = f"/api/v3/workflow/{run.workflow_id}/is_resumable"

    def asked(keys: set[str]) -> bool:
        return any(set(request.reply) == keys for request in jobmon.requests(route)[-4:])

    wait_until(lambda: asked({"workflow_is_resumable", "pending_kill_self"}), 60, "the gates to ask")
    jobmon.stop_server()
    restarted = time.time()
    jobmon.start_server(newer=False)
    wait_until(lambda: asked({"workflow_is_resumable"}), 60, "the gates to ask the older version")
    production.wait_for_task("gates", dag_run, "cleaning_gate", ["failed"])
    assert "cannot force a clean-up; needs a newer one" in production.task_log(
        "gates", dag_run, "cleaning_gate"
    )
    fleet.wait_for_beats(restarted)
    fleet.assert_all_deferred()
    jobmon.stop_server()
    restarted = time.time()
    jobmon.start_server()
    fleet.wait_for_beats(restarted)
    fleet.assert_all_deferred()
    assert production.task_states("gates", dag_run)["gate"] == "deferred"
    wait_until(lambda: asked({"workflow_is_resumable", "pending_kill_self"}), 60, "the gate to ask on")
    production.set_task_state("gates", dag_run, "gate", "success")


def test_five_minutes_without_a_server(
    fleet: Fleet, jobmon: JobmonSandbox, production: AirflowStack, report: Callable[[str], None]
) -> None:
    before = calm(fleet)
    reaped = [run for run in fleet.runs if run.task == "run"][:5]
    jobmon.stop_server()
    try:
        for run in reaped:  # by a reaper that reaches the database
            jobmon.change("UPDATE workflow_run SET status = 'A' WHERE id = ?", run.workflow_run_id)

        def nobody_ended() -> None:
            assert Counter(fleet.states().values()) == {"deferred": len(fleet.runs)}

        lasts(DOWN, nobody_ended)
        assert warnings(fleet) == {run: (starts + 1, ends) for run, (starts, ends) in before.items()}
    finally:
        restarted = time.time()
        jobmon.start_server()
    assert_warned_once_more(fleet, before)
    # Those whose window was over are reaped, unless their next heartbeat comes first.
    lost = {run for run, status in fleet.statuses().items() if status == "A"}
    assert lost >= {run.workflow_run_id for run in reaped}
    for run in fleet.runs:
        if run.workflow_run_id in lost:
            assert run.task == "run"
            production.wait_for_task(DAG, fleet.dag_run, run.task, ["failed"], map_index=run.index)
            assert f"workflow run {run.workflow_run_id} ended ABORTED (A): it was given up" in fleet.log(run)
    alive = [run for run in fleet.runs if run.workflow_run_id not in lost]
    rest = Fleet(jobmon, production, fleet.dag_run, alive)
    rest.wait_for_beats(restarted, 2)
    rest.assert_all_deferred()
    report(
        f"{len(fleet.runs)} runs, Jobmon down for {DOWN:.0f} s: {len(alive)} went on, {len(lost)} whose"
        " window was over ended as reaped, 1 warning each at start and end"
    )
    rest.finish(alive)
    wait_until(lambda: set(rest.states().values()) == {"success"}, 300, "the end of the others")
    assert {jobmon.workflow_status(run.workflow_id) for run in alive} == {"D"}

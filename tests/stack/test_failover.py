"""Two hundred deferred runs, while triggerers, scheduler and API server die, stop and come back."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

from dev.airflow_stack import AirflowStack
from dev.jobmon_sandbox import JobmonSandbox, wait_until
from tests.end_to_end.dag_runs import assert_ended
from tests.stack.conftest import FAILOVER, INTERVAL, WINDOW
from tests.stack.fleet import DAG, Fleet, launch

COUNT = 200

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def fleet(jobmon: JobmonSandbox, production: AirflowStack) -> Fleet:
    return launch(jobmon, production, run=COUNT)


def beaten_twice(fleet: Fleet) -> int:
    """How many runs have had more heartbeats lately than one triggerer sends."""
    now = time.time()
    return sum(sum(t > now - 2 * INTERVAL for t in seen) > 3 for seen in fleet.beats().values())


def test_a_triggerer_is_killed_and_the_other_takes_over_in_time(
    fleet: Fleet, production: AirflowStack, report: Callable[[str], None]
) -> None:
    fleet.assert_all_deferred()
    killed = time.time()
    production.kill("triggerer-2")
    fleet.wait_for_beats(killed + FAILOVER, 2, timeout=180)
    fleet.assert_all_deferred()
    gap = fleet.largest_gap()
    report(
        f"{COUNT} runs, a triggerer killed: longest time between two heartbeats {gap:.0f} s, {WINDOW:.0f} s"
        " allowed; 0 runs lost"
    )
    assert INTERVAL < gap < WINDOW
    production.restart("triggerer-2")


def test_two_triggerers_may_beat_for_the_same_run(fleet: Fleet, production: AirflowStack) -> None:
    """One that hangs loses its triggers while its event loop, a process of its own, goes on with them."""
    production.kill("triggerer", signal.SIGSTOP)
    try:
        wait_until(lambda: beaten_twice(fleet) > 0, 180, "a run that both beat for")
        fleet.assert_all_deferred()
    finally:
        production.kill("triggerer", signal.SIGCONT)
    wait_until(lambda: beaten_twice(fleet) == 0, 180, "an end of that")
    fleet.assert_all_deferred()


def test_scheduler_and_api_server_come_back_and_nothing_is_lost(
    fleet: Fleet, production: AirflowStack
) -> None:
    for component in ("scheduler", "api-server"):
        production.kill(component)
    for component in ("api-server", "scheduler"):
        production.restart(component, timeout=120)
    fleet.wait_for_beats(time.time())
    fleet.assert_all_deferred()


def test_then_each_run_ends_exactly_once(
    fleet: Fleet, jobmon: JobmonSandbox, production: AirflowStack, report: Callable[[str], None]
) -> None:
    moved = [r for run in fleet.runs for r in jobmon.requests(f"/{run.workflow_run_id}/update_status")]
    assert not moved
    fleet.finish(fleet.runs)
    wait_until(lambda: production.run_state(DAG, fleet.dag_run) != "running", 600, "the end of all")
    assert_ended(production, DAG, fleet.dag_run, "success")
    for run in fleet.runs:
        assert jobmon.runs(run.workflow_id) == [(run.workflow_run_id, "D")]
        log = fleet.log(run)
        assert log.count(f"workflow run {run.workflow_run_id} ended DONE (D)") == 1
    assert fleet.largest_gap() < WINDOW
    report(f"{COUNT} runs through failover, a triggerer that hung, and restarts: {COUNT} DONE, 0 lost")

"""Giving up a run that an executor has, or that its server has not committed yet, in simulated time."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from airflow_jobmon_provider.client.conversations import create_run, give_up_run
from airflow_jobmon_provider.client.exceptions import ServerUnreachable, WorkflowBusy, WorkflowRunNotFound
from airflow_jobmon_provider.client.lifecycle import RunStatus
from airflow_jobmon_provider.client.protocol import Call
from tests.client.simulation import SILENT, RunOnServer, Simulation


def give_up(sim: Simulation, *, stop_workflow: int | None = 7, timeout: float = 20) -> RunStatus | None:
    return sim.run(give_up_run(5, stop_workflow=stop_workflow, timeout=timeout, clock=sim.clock))


# --- Stopping a run -----------------------------------------------------------------------------------------


def test_a_run_is_stopped_through_all_that_its_executor_does_before_it_begins() -> None:
    run = RunOnServer("I", ((5, "O"), (12, "R")))
    sim = Simulation(run)
    assert give_up(sim) is RunStatus.COLD_RESUME
    assert run.signals == 1
    assert not sim.warnings


def test_a_signal_that_comes_a_moment_too_late_for_b_is_sent_again_in_r() -> None:
    run = RunOnServer("B")

    def server(call: Call[Any], now: float) -> Any:
        if run.signals == 0 and call.route == "/workflow/7/set_resume":
            run.status, run.story = "I", ((now - 1000 + 3, "O"), (now - 1000 + 6, "R"))
        return run(call, now)

    assert give_up(Simulation(server)) is RunStatus.COLD_RESUME
    assert run.signals == 2


@pytest.mark.parametrize(
    ("status", "says"),
    [
        ("I", "it is INSTANTIATED (I), where it cannot be told to stop. End its executor on the cluster, or"),
        (
            "O",
            "it is LAUNCHED (O), where it cannot be told to stop. End its executor on the cluster, or resume",
        ),
        ("X", "it is UNKNOWN (X). To stop it, resume workflow 7, or end its executor on the cluster"),
    ],
)
def test_what_could_not_be_stopped_is_warned_of_with_what_to_do(status: str, says: str) -> None:
    run = RunOnServer(status)
    sim = Simulation(run)
    assert give_up(sim) == status
    (warning,) = sim.warnings
    assert warning.startswith(f"workflow run 5 was not stopped in 20 s: {says}")
    assert run.signals == 0  # only B and R are moved by one: it could only reach another's run


def test_a_run_that_obeys_no_signal_is_warned_of_too() -> None:
    sim = Simulation(lambda call, now: {"status": "R"} if call.verb == "put" else {})
    assert give_up(sim) is RunStatus.RUNNING
    assert "it is RUNNING (R). To stop it, resume workflow 7" in sim.warnings[-1]


def test_a_server_that_is_silent_ends_the_try_in_time_and_says_that_nothing_is_known() -> None:
    sim = Simulation(lambda call, now: SILENT, request_timeout=600)
    assert give_up(sim) is None
    assert sim.now - 1000 <= 21
    assert len(sim.asked) >= 3  # one reply that hangs is not the end
    assert "it was not asked about, and no reply within" in sim.warnings[-1]


def test_a_run_in_linking_that_cannot_be_aborted_runs_out_by_itself() -> None:
    sim = Simulation(lambda call, now: {"status": "L"})
    assert give_up(sim, stop_workflow=None) is RunStatus.LINKING
    assert sim.warnings[-1].endswith("If no executor takes it, its heartbeat runs out by itself")


# --- The signal reaches nobody else's run -------------------------------------------------------------------


class TwoRuns(RunOnServer):
    """Run 5 ends by the first signal, whose reply is lost; then the workflow has another's run."""

    others = "none"

    def __call__(self, call: Call[Any], now: float) -> Any:
        if call.route == "/workflow/7/set_resume":
            if self.others == "R":
                self.others = "stopped by us"
                return {}
            self.signals += 1
            self.status, self.others = "T", "R"
            return ServerUnreachable("reply lost")
        return super().__call__(call, now)


def test_a_lost_reply_to_a_signal_is_not_followed_by_another_before_the_run_was_looked_at() -> None:
    runs = TwoRuns("R")
    assert give_up(Simulation(runs)) is RunStatus.TERMINATED
    assert (runs.others, runs.signals) == ("R", 1)


@pytest.mark.parametrize("status", ["D", "E", "S", "A", "T", "C", "H"])
def test_a_run_that_is_over_or_stopping_gets_no_signal(status: str) -> None:
    run = RunOnServer(status)
    give_up(Simulation(run))
    assert run.signals == 0


# --- A reply before the commit ------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_workflow", [7, None])
def test_a_run_that_is_not_found_yet_is_aborted_once_it_is(stop_workflow: int | None) -> None:
    run = RunOnServer("L", born=0.3)
    assert give_up(Simulation(run), stop_workflow=stop_workflow) is RunStatus.ABORTED
    assert run.status == "A"


def test_a_run_that_is_never_found_is_said_to_be_none() -> None:
    sim = Simulation(lambda call, now: WorkflowRunNotFound("none"))
    with pytest.raises(WorkflowRunNotFound):
        give_up(sim)
    assert 10 <= sim.now - 1000 <= 11


def test_a_run_that_is_not_found_until_the_time_is_over_is_none() -> None:
    sim = Simulation(lambda call, now: WorkflowRunNotFound("workflow run 5 does not exist"))
    assert give_up(sim, timeout=5) is None
    assert "does not exist" in sim.warnings[-1]


# --- Creating a run -----------------------------------------------------------------------------------------


def create(sim: Simulation, *, timeout: float, perhaps_lost: bool = False) -> Any:
    return sim.run(
        create_run(7, user="alice", good_for=93, timeout=timeout, perhaps_lost=perhaps_lost, clock=sim.clock)
    )


@pytest.mark.parametrize("timeout", [0, 3, 30])
def test_creating_a_run_ends_in_time_on_a_silent_server(timeout: float) -> None:
    sim = Simulation(lambda call, now: SILENT)
    with pytest.raises(ServerUnreachable):
        create(sim, timeout=timeout)
    assert timeout <= sim.now - 1000 <= timeout + 1


def test_so_it_does_where_the_server_falls_silent_after_it_has_refused() -> None:
    busy = {"workflow_run_id": None, "err_msg": "WorkflowRun 3 is currentlylinking, WorkflowRun 4 will be …"}
    sim = Simulation(lambda call, now: busy if call.route == "/workflow_run" else SILENT)
    with pytest.raises(WorkflowBusy):
        create(sim, timeout=30, perhaps_lost=True)
    assert sim.now - 1000 <= 32


def test_a_create_whose_reply_is_late_is_followed_by_a_wait_for_the_run_that_it_may_have_made() -> None:
    silent = [SILENT]
    lost = {"workflow_run_id": None, "err_msg": "WorkflowRun 3 is currentlylinking, WorkflowRun 4 will be …"}

    def server(call: Call[Any], now: float) -> Any:
        if call.route != "/workflow_run":
            return {"workflow_runs": []}
        if silent:
            return silent.pop()
        return {"workflow_run_id": 6, "status": "L"} if now >= 1093 else lost

    sim = Simulation(server)
    assert create(sim, timeout=600).workflow_run_id == 6
    assert "one whose reply was lost" in sim.warnings[1]


def test_notes_of_giving_up_are_logged_at_their_level() -> None:
    sim = Simulation(RunOnServer("O"))
    give_up(sim)
    assert [level for level, _ in sim.notes] == [logging.WARNING]

"""Creating exactly one run and leaving none behind, in simulated time (docs/rules.md, rule 2)."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from airflow_jobmon_provider.client.conversations import create_run, end_without_executor, give_up_run
from airflow_jobmon_provider.client.exceptions import (
    InvalidRequest,
    ServerFailure,
    ServerUnreachable,
    WorkflowBusy,
    WorkflowNotResumable,
)
from airflow_jobmon_provider.client.lifecycle import RunStatus
from airflow_jobmon_provider.client.protocol import Call, CreatedRun
from tests.client.simulation import RunOfADeadExecutor, Simulation

REFUSED = ServerUnreachable("POST http://jobmon: Connection refused", processed=False)
NO_REPLY = ServerUnreachable("POST http://jobmon: no reply within 20 s")
LINKING = {
    "workflow_run_id": None,
    "err_msg": "WorkflowRun 3 is currentlylinking, WorkflowRun 4 will be aborted.",
}


class Workflow:
    """A workflow on a simulated server: at most one run links, and a lost one is reaped when it is due.

    :param faults: what happens to the first requests for a run, in turn; a reply that is lost has made a run.
    :param lists_lost: whether the server lets its lost runs be found.
    :param reaper: seconds after the start at which Jobmon's own reaper comes by.
    """

    def __init__(self, *faults: Any, lists_lost: bool = False, reaper: float = 1e9) -> None:
        self.faults = list(faults)
        self.lists_lost = lists_lost
        self.reaper = 1000 + reaper
        self.made: list[int] = []
        self.alive: int | None = None
        self.good_until = 0.0
        self.details: Any = []

    def __call__(self, call: Call[Any], now: float) -> Any:
        if self.alive and now >= max(self.reaper, self.good_until):
            self.alive = None
        if call.route == "/lost_workflow_run":
            if not self.lists_lost:
                return InvalidRequest("GET http://jobmon: 404", 404)
            others = [[99, 98]]  # of another workflow
            return {"workflow_runs": others + ([[self.alive, 7]] if now >= self.good_until else [])}
        if call.route.endswith("/reap"):
            assert call.route == f"/workflow_run/{self.alive}/reap"
            self.alive = None
            return {"status": "A"}
        if call.route == "/workflow_details_viz/7":
            return self.details
        fault = self.faults.pop(0) if self.faults else None
        if fault is REFUSED:
            return fault
        if self.alive:
            return LINKING
        self.alive = len(self.made) + 1
        self.made.append(self.alive)
        self.good_until = now + 93
        return fault or {"workflow_run_id": self.alive, "status": "L"}


def create(server: Any, *, perhaps_lost: bool = False, timeout: float = 600) -> tuple[Simulation, CreatedRun]:
    sim = Simulation(server)
    run = sim.run(
        create_run(7, user="alice", good_for=93, timeout=timeout, perhaps_lost=perhaps_lost, clock=sim.clock)
    )
    return sim, run


def test_a_run_is_created_with_one_request() -> None:
    sim, run = create(Workflow())
    assert run == CreatedRun(1, RunStatus.LINKING)
    assert len(sim.asked) == 1
    assert not sim.notes


def test_a_server_that_was_not_reached_is_asked_again() -> None:
    server = Workflow(REFUSED, REFUSED)
    sim, _ = create(server)
    assert server.made == [1]
    assert len(sim.warnings) == 1


@pytest.mark.parametrize("server", [Workflow(NO_REPLY, lists_lost=True), Workflow(NO_REPLY, reaper=200)])
def test_a_lost_reply_ends_in_one_live_run(server: Workflow) -> None:
    sim, run = create(server)
    assert server.made == [1, 2]
    assert server.alive == run.workflow_run_id == 2
    assert 93 <= sim.now - 1000 <= 215
    assert "cannot be created yet; will keep trying" in sim.warnings[0]
    assert "has a run in the way, which may be one whose reply was lost" in sim.warnings[1]
    assert len(sim.warnings) == 2


def test_a_run_that_is_reaped_is_said() -> None:
    sim, _ = create(Workflow(NO_REPLY, lists_lost=True))
    assert (logging.INFO, "reaped workflow run 1: nobody kept it alive") in sim.notes


def test_without_a_lost_reply_a_busy_workflow_is_another_clients() -> None:
    server = Workflow()
    server.alive, server.good_until = 5, 1e9
    with pytest.raises(WorkflowBusy, match="currentlylinking"):
        create(server)


def details(**fields: Any) -> list[dict[str, Any]]:
    return [{"wf_status": "R", "wf_name": "weekly", **fields}]


@pytest.mark.parametrize("perhaps_lost", [False, True])
def test_who_has_the_workflow_is_named_where_the_server_tells(perhaps_lost: bool) -> None:
    server = Workflow()
    server.alive, server.good_until, server.details = 5, 1e9, details(wfr_user="bob\x1b")
    sim = Simulation(server)
    creating = create_run(7, user="alice", good_for=93, timeout=0, perhaps_lost=perhaps_lost, clock=sim.clock)
    with pytest.raises(WorkflowBusy, match=r"currentlylinking.*\. The latest run is that of user bob$"):
        sim.run(creating)


@pytest.mark.parametrize("answer", [[], details(), details(wfr_user=None), InvalidRequest("GET: 404", 404)])
def test_a_server_that_does_not_tell_who_has_it_hides_no_refusal(answer: Any) -> None:
    server = Workflow()
    server.alive, server.good_until, server.details = 5, 1e9, answer
    with pytest.raises(WorkflowBusy, match=r"will be aborted\.$"):
        create(server)


def test_a_run_that_stays_in_the_way_ends_the_wait_at_the_deadline() -> None:
    server = Workflow()
    server.alive, server.good_until = 5, 1e9
    sim = Simulation(server)
    creating = create_run(7, user="alice", good_for=93, timeout=60, perhaps_lost=True, clock=sim.clock)
    with pytest.raises(WorkflowBusy):
        sim.run(creating)
    assert sim.now - 1000 == pytest.approx(60)
    assert not server.made


def test_a_server_that_stays_down_ends_it_too() -> None:
    sim = Simulation(lambda call, now: REFUSED)
    creating = create_run(7, user="alice", good_for=93, timeout=30, perhaps_lost=False, clock=sim.clock)
    with pytest.raises(ServerUnreachable):
        sim.run(creating)
    assert sim.now - 1000 == pytest.approx(30)


def test_a_refusal_to_create_a_run_is_final() -> None:
    reply = {"workflow_run_id": None, "err_msg": "Workflow 7 is not in a resume-able state"}
    with pytest.raises(WorkflowNotResumable, match="not in a resume-able state"):
        create(lambda call, now: reply, perhaps_lost=True)


class Run:
    """A run on a simulated server, which obeys a resume signal in B and R only."""

    def __init__(self, status: str, *, then: tuple[float, str] | None = None) -> None:
        self.status = status
        self.then = then
        self.signals = 0

    def __call__(self, call: Call[Any], now: float) -> Any:
        if self.then and now >= 1000 + self.then[0]:
            self.status, self.then = self.then[1], None
        if call.route == "/workflow/7/set_resume":
            assert call.message == {"reset_running_jobs": True}
            self.signals += 1
            if self.status in "BR":
                self.status = "C"
            return {}
        assert call.route == "/workflow_run/5/update_status"
        assert call.message == {"status": "A"}
        if self.status == "L":
            self.status = "A"
        return {"status": self.status}


def give_up(server: Any, *, stop: bool = True, timeout: float = 20) -> tuple[Simulation, RunStatus | None]:
    sim = Simulation(server)
    giving_up = give_up_run(5, stop_workflow=7 if stop else None, timeout=timeout, clock=sim.clock)
    return sim, sim.run(giving_up)


@pytest.mark.parametrize(
    ("status", "stop", "left", "signals"),
    [
        ("L", True, "A", 0),
        ("L", False, "A", 0),
        ("B", True, "C", 1),
        ("R", True, "C", 1),
        ("R", False, "R", 0),
        ("H", True, "H", 0),
        ("D", True, "D", 0),
        ("T", True, "T", 0),
    ],
)
def test_giving_up_aborts_or_stops_a_run_by_its_status(
    status: str, stop: bool, left: str, signals: int
) -> None:
    server = Run(status)
    assert give_up(server, stop=stop)[1] is RunStatus(left)
    assert server.signals == signals


def test_a_run_that_is_just_starting_is_stopped_once_it_runs() -> None:
    server = Run("I", then=(3, "R"))
    sim, status = give_up(server)
    assert status is RunStatus.COLD_RESUME
    assert server.signals == 1
    assert 3 <= sim.now - 1000 < 4.5


def test_giving_up_ends_at_its_deadline() -> None:
    sim, status = give_up(Run("O"))
    assert status is RunStatus.LAUNCHED
    assert sim.now - 1000 == pytest.approx(20)


def test_an_outage_is_outlived_while_there_is_time() -> None:
    run = Run("L")
    server = lambda call, now: ServerFailure("503") if now < 1005 else run(call, now)  # noqa: E731
    sim, status = give_up(server)
    assert status is RunStatus.ABORTED
    assert len(sim.warnings) == 2


def test_a_server_that_stays_down_gives_no_status() -> None:
    assert give_up(lambda call, now: REFUSED)[1] is None


# --- end_without_executor -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [("L", "A"), ("B", "E"), ("I", "E"), ("O", "E"), *((s, s) for s in "RCHDESAT")],
)
def test_a_run_without_its_executor_is_ended_where_the_reaper_does_not(before: str, after: str) -> None:
    sim = Simulation(RunOfADeadExecutor(before))
    assert sim.run(end_without_executor(5, clock=sim.clock)) == RunStatus(after)
    assert sim.now == 1000


@pytest.mark.parametrize("faults", [[REFUSED], [REFUSED] * 9, [None, REFUSED], [None, NO_REPLY]])
def test_creating_a_run_outlives_an_outage(faults: list[Any]) -> None:
    sim = Simulation(RunOfADeadExecutor("B", *faults))
    assert sim.run(end_without_executor(5, clock=sim.clock)) is RunStatus.ERROR
    assert len(sim.warnings) == 2

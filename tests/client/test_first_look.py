"""What is asked first about a run, of which nothing is known or which was made a moment ago (issue 9)."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from airflow_jobmon_provider.client.conversations import Outage, RunEnd, RunOutcome, look_at_run, watch_run
from airflow_jobmon_provider.client.exceptions import WorkflowRunNotFound
from airflow_jobmon_provider.client.heartbeat import Heartbeat, KeepAlive
from airflow_jobmon_provider.client.lifecycle import RunStatus, read_status
from airflow_jobmon_provider.client.protocol import Call
from airflow_jobmon_provider.client.protocol.routes import peek_status
from tests.client.simulation import RunOnServer, Simulation


def watch(sim: Simulation, **options: Any) -> RunEnd:
    defaults: dict[str, Any] = {
        "keep_alive": KeepAlive.UNTIL_BOUND,
        "heartbeat": Heartbeat(),
        "poll_interval": 60,
        "clock": sim.clock,
    }
    return sim.run(watch_run(5, **{**defaults, **options}))


def look(sim: Simulation, keep_alive: KeepAlive = KeepAlive.UNTIL_BOUND, **options: Any) -> RunStatus:
    return sim.run(look_at_run(5, keep_alive=keep_alive, heartbeat=Heartbeat(), **options))


def said(sim: Simulation) -> list[str]:
    return [call.message["status"] for _, call in sim.asked]


TO_DONE = ((100.0, "B"), (101.0, "I"), (102.0, "O"), (103.0, "R"), (200.0, "D"))


# --- Read it first ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("owned", [True, False])
@pytest.mark.parametrize("keep_alive", KeepAlive)
def test_a_run_in_g_is_never_moved_by_watching_it(keep_alive: KeepAlive, owned: bool) -> None:
    """A refused create leaves one there: a heartbeat that says LINKING would make a second live run of it."""
    run = RunOnServer("G")
    watch(Simulation(run), keep_alive=keep_alive, owned=owned, timeout=600)
    assert run.status == "G"
    assert {status for _, status in run.said} == {"G"}


@pytest.mark.parametrize("keep_alive", KeepAlive)
def test_a_run_in_g_is_never_moved_by_a_look(keep_alive: KeepAlive) -> None:
    run = RunOnServer("G")
    assert look(Simulation(run), keep_alive) is RunStatus.REGISTERED
    assert run.status == "G"


def test_a_run_that_turns_out_to_be_linking_is_kept_alive_at_once() -> None:
    """After a triggerer's failover the heartbeat may be about to run out."""
    run = RunOnServer("L", TO_DONE)
    watch(Simulation(run), age=86_400)
    assert run.said[:2] == [(0.0, "G"), (0.0, "L")]


def test_so_is_one_that_turns_out_to_be_running_where_its_executor_does_not_beat() -> None:
    run = RunOnServer("R", ((50.0, "D"),))
    watch(Simulation(run), keep_alive=KeepAlive.UNTIL_DONE)
    assert run.said[:2] == [(0.0, "G"), (0.0, "R")]


def test_one_that_was_linking_a_moment_ago_costs_no_request_more() -> None:
    run = RunOnServer("L", TO_DONE)
    sim = Simulation(run)
    watch(sim, status=RunStatus.LINKING)
    assert run.said[0] == (0.0, "L")
    assert "G" not in [status for at, status in run.said if at < 100]
    assert (logging.INFO, "workflow run 5 is LINKING (L): created, waiting for an executor") in sim.notes


def test_a_status_that_was_known_before_an_outage_is_not_read_again() -> None:
    run = RunOnServer("L", ((200.0, "B"), (201.0, "R"), (300.0, "D")), refusing=(40, 60))
    watch(Simulation(run))
    assert [status for at, status in run.said if 0 < at < 200] == ["L"] * len(
        [at for at, _ in run.said if 0 < at < 200]
    )


@pytest.mark.parametrize(
    ("last", "status", "sent"),
    [
        (None, "L", ["G", "L"]),
        ("L", "L", ["L"]),
        ("L", "B", ["L"]),
        ("B", "R", ["G"]),
        ("X", "L", ["G", "L"]),
    ],
)
def test_a_caller_that_looks_again_says_what_it_saw(last: str | None, status: str, sent: list[str]) -> None:
    sim = Simulation(RunOnServer(status))
    assert look(sim, last=last and read_status(last)) is RunStatus(status)
    assert said(sim) == sent


# --- A status that this version does not know ---------------------------------------------------------------


@pytest.mark.parametrize("keep_alive", KeepAlive)
def test_a_run_in_a_status_that_is_not_known_is_watched_on_and_that_is_said_once(
    keep_alive: KeepAlive,
) -> None:
    story = ((10.0, "B"), (11.0, "R"), (100.0, "X"), (700.0, "R"), (900.0, "X"), (1500.0, "D"))
    run = RunOnServer("L", story)
    sim = Simulation(run)
    assert watch(sim, keep_alive=keep_alive).outcome is RunOutcome.DONE
    assert sim.warnings == [
        "workflow run 5 is UNKNOWN (X): a status that this version of the provider does not know;"
        " will keep watching"
    ]
    assert {status for at, status in run.said if 100 <= at < 700} <= {"G", "R"}
    assert "X" not in {status for _, status in run.said}
    assert [status for at, status in run.said if 200 <= at < 700] == ["G"] * len(
        [at for at, _ in run.said if 200 <= at < 700]
    )


def test_each_of_two_unknown_statuses_is_logged() -> None:
    run = RunOnServer("X", ((100.0, "Y"), (300.0, "D")))
    sim = Simulation(run)
    watch(sim)
    assert ["(X)" in line or "(Y)" in line for line in sim.warnings] == [True, True]


def test_such_a_run_is_not_aborted_at_the_hand_off_limit() -> None:
    run = RunOnServer("X", ((600.0, "R"), (700.0, "D")))
    assert watch(Simulation(run), handoff_timeout=100, owned=True).outcome is RunOutcome.DONE


def test_at_the_end_of_its_time_it_is_said_how_it_was() -> None:
    end = watch(Simulation(RunOnServer("X")), timeout=100, owned=True)
    assert (end.outcome, end.status and end.status.value) == (RunOutcome.TIMEOUT, "X")
    assert "is still UNKNOWN (X)" in end.message


@pytest.mark.parametrize("keep_alive", KeepAlive)
def test_a_look_at_such_a_run_only_reads_it_and_warns_once(keep_alive: KeepAlive) -> None:
    sim = Simulation(RunOnServer("X"))
    status = look(sim, keep_alive)
    assert not status.is_terminal
    assert look(sim, keep_alive, last=status) == status
    assert said(sim) == ["G", "G"]
    assert len(sim.warnings) == 1


# --- A reply before the commit ------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"owned": True}, {"handoff_timeout": 3600}])
@pytest.mark.parametrize("status", [None, RunStatus.LINKING])
def test_a_run_of_ours_that_is_not_found_yet_is_asked_for_again(
    options: dict[str, Any], status: RunStatus | None
) -> None:
    run = RunOnServer("L", TO_DONE, born=0.3)
    sim = Simulation(run, latency=0.01)
    assert watch(sim, status=status, **options).outcome is RunOutcome.DONE
    assert run.said[0][0] < 2
    assert not sim.warnings


def test_one_that_is_not_found_for_ten_seconds_does_not_exist() -> None:
    sim = Simulation(lambda call, now: WorkflowRunNotFound("none"))
    with pytest.raises(WorkflowRunNotFound):
        watch(sim, owned=True)
    assert 10 <= sim.now - 1000 <= 20
    assert len(sim.asked) > 3


@pytest.mark.parametrize("options", [{"owned": True, "age": 60}, {"owned": False}])
def test_an_old_run_or_anothers_does_not_exist_at_once(options: dict[str, Any]) -> None:
    sim = Simulation(lambda call, now: WorkflowRunNotFound("none"))
    with pytest.raises(WorkflowRunNotFound):
        watch(sim, **options)
    assert len(sim.asked) == 1


def test_the_hand_off_limit_holds_for_a_run_that_is_not_found_yet() -> None:
    sim = Simulation(lambda call, now: WorkflowRunNotFound("none"))
    assert watch(sim, handoff_timeout=2).outcome is RunOutcome.HANDOFF_TIMEOUT
    assert sim.now - 1000 == pytest.approx(2, abs=0.01)


def test_a_look_right_after_the_create_waits_for_the_commit() -> None:
    assert look(Simulation(RunOnServer("L", born=1.0))) is RunStatus.LINKING


def test_a_look_at_no_run_at_all_takes_two_seconds() -> None:
    sim = Simulation(lambda call, now: WorkflowRunNotFound("none"))
    with pytest.raises(WorkflowRunNotFound):
        look(sim)
    assert sim.now - 1000 < 2


def test_a_run_that_was_there_before_and_is_gone_does_not_exist() -> None:
    sim = Simulation(lambda call, now: WorkflowRunNotFound("none"))
    with pytest.raises(WorkflowRunNotFound):
        look(sim, last=RunStatus.RUNNING)
    assert len(sim.asked) == 1


def test_a_server_that_fails_and_then_does_not_find_it_is_one_outage() -> None:
    run = RunOnServer("L", refusing=(0, 1), born=2)
    sim = Simulation(run)
    outage = Outage("workflow run 5", sim.clock, not_found_until=sim.now + 10)

    def asking() -> Any:
        call: Call[RunStatus] = peek_status(5)
        for _ in range(3):
            yield from outage.ask(call)
            sim.now += 1

    sim.run(asking())
    assert [line.partition("Jobmon ")[2][:19] for line in sim.warnings] == [
        "is not answering; w",
        "is answering again ",
    ]
    assert (outage.error, outage.failures) == (None, 0)

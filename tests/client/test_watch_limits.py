"""Every limit of a watched run holds to the second, whatever the server does, in simulated time (issue 9)."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import pytest

from airflow_jobmon_provider.client.conversations import (
    Ask,
    Conversation,
    RunEnd,
    RunOutcome,
    give_up_overdue_run,
    pacing,
    watch_run,
)
from airflow_jobmon_provider.client.exceptions import JobmonError, ServerFailure
from airflow_jobmon_provider.client.heartbeat import Heartbeat, KeepAlive
from airflow_jobmon_provider.client.lifecycle import RunStatus
from airflow_jobmon_provider.client.protocol import Call
from airflow_jobmon_provider.client.protocol.routes import task_counts
from tests.client.simulation import SILENT, RunOnServer, Simulation

FOR_EVER = (0.0, 1e9)


def watch(sim: Simulation, **options: Any) -> RunEnd:
    defaults: dict[str, Any] = {
        "keep_alive": KeepAlive.UNTIL_BOUND,
        "heartbeat": Heartbeat(),
        "poll_interval": 60,
        "clock": sim.clock,
        "owned": True,
    }
    return sim.run(watch_run(5, **{**defaults, **options}))


def elapsed(sim: Simulation) -> float:
    return sim.now - 1000


# --- The hand-off -------------------------------------------------------------------------------------------

DEAD_SERVERS = {
    "silent": {"silent": FOR_EVER},
    "refusing": {"refusing": FOR_EVER},
    "silent after a while": {"silent": (1.5, 1e9)},
    "refusing after a while": {"refusing": (1.5, 1e9)},
}


@pytest.mark.parametrize("dead", DEAD_SERVERS.values(), ids=DEAD_SERVERS)
def test_the_hand_off_limit_is_on_time_on_a_server_that_is_dead(dead: dict[str, Any]) -> None:
    sim = Simulation(RunOnServer(**dead))
    end = watch(sim, handoff_timeout=3)
    assert end.outcome is RunOutcome.HANDOFF_TIMEOUT
    assert end.status in (None, RunStatus.LINKING)
    assert not end.answered
    assert 3 <= elapsed(sim) <= 4
    assert "could not be aborted" in end.message
    assert "heartbeat runs out by itself within 93 s" in end.message


class UntilThen:
    """A queue in which an executor waits until some time."""

    def __init__(self, sim: Simulation, then: float, queue_timeout: float | None = None) -> None:
        self._sim, self._then = sim, then
        self.handoff_timeout = 60.0
        self.queue_timeout = queue_timeout

    @property
    def is_waiting(self) -> bool:
        return elapsed(self._sim) < self._then


def test_the_hand_off_limit_does_not_pass_in_a_queue() -> None:
    sim = Simulation(RunOnServer())
    end = watch(sim, handoff_timeout=60, queue=UntilThen(sim, 7200))
    assert (end.outcome, end.status) == (RunOutcome.HANDOFF_TIMEOUT, RunStatus.ABORTED)
    assert 7200 + 60 - 30 <= elapsed(sim) <= 7200 + 60  # as far as was known: it looks each 30 s
    assert "within 60 s after it had left the queue (handoff_timeout)" in end.message
    assert "See what its executor waits for" in end.message


def test_an_executor_that_waits_in_no_queue_has_the_limit_as_ever() -> None:
    sim = Simulation(RunOnServer())
    end = watch(sim, handoff_timeout=50, queue=UntilThen(sim, 0))
    assert end.outcome is RunOutcome.HANDOFF_TIMEOUT
    assert elapsed(sim) == pytest.approx(50)
    assert "within 50 s (handoff_timeout)" in end.message


@pytest.mark.parametrize("age", [0.0, 400.0])
def test_the_limit_for_a_queue_counts_from_the_runs_creation(age: float) -> None:
    sim = Simulation(RunOnServer())
    end = watch(sim, handoff_timeout=60, age=age, queue=UntilThen(sim, 1e9, queue_timeout=1000))
    assert (end.outcome, end.status) == (RunOutcome.HANDOFF_TIMEOUT, RunStatus.ABORTED)
    assert elapsed(sim) == pytest.approx(1000 - age)
    assert "within 1000 s, as it waited in the queue (queue_timeout)" in end.message


def test_a_server_that_fails_with_a_status_does_not_hold_the_limit_up_either() -> None:
    sim = Simulation(lambda call, now: ServerFailure("503", retry_after=3600))
    assert watch(sim, handoff_timeout=3).outcome is RunOutcome.HANDOFF_TIMEOUT
    assert elapsed(sim) == pytest.approx(3, abs=0.1)


def test_a_server_that_falls_silent_at_the_limit_costs_three_seconds() -> None:
    run = RunOnServer(silent=(3599.9, 1e9))
    sim = Simulation(run)
    assert watch(sim, handoff_timeout=3600).outcome is RunOutcome.HANDOFF_TIMEOUT
    assert elapsed(sim) == pytest.approx(3603)


def test_a_server_that_falls_silent_before_the_abort_costs_three_seconds_too() -> None:
    def server(call: Call[Any], now: float) -> Any:
        return SILENT if call.route.endswith("update_status") else {"status": "L"}

    sim = Simulation(server)
    end = watch(sim, handoff_timeout=3600)
    assert (end.outcome, end.status) == (RunOutcome.HANDOFF_TIMEOUT, RunStatus.LINKING)
    assert elapsed(sim) == pytest.approx(3603)


def test_one_failure_at_the_limit_is_asked_again_at_once() -> None:
    run = RunOnServer()
    failures = [ServerFailure("423", processed=False)]
    sim = Simulation(lambda call, now: failures.pop() if now >= 1100 and failures else run(call, now))
    end = watch(sim, handoff_timeout=100)
    assert (end.outcome, end.status, run.status) == (RunOutcome.HANDOFF_TIMEOUT, RunStatus.ABORTED, "A")
    assert elapsed(sim) == pytest.approx(100, abs=0.1)


def test_an_abort_that_is_refused_while_the_run_stays_as_it_is_ends_the_watch_too() -> None:
    sim = Simulation(lambda call, now: {"status": "L"})
    end = watch(sim, handoff_timeout=100)
    assert (end.outcome, end.status) == (RunOutcome.HANDOFF_TIMEOUT, RunStatus.LINKING)
    assert "could not be aborted: refused" in end.message


def test_a_run_that_ends_otherwise_at_the_very_limit_has_ended_so() -> None:
    def server(call: Call[Any], now: float) -> Any:
        return {"status": "T" if call.route.endswith("update_status") else "L"}

    end = watch(Simulation(server), handoff_timeout=100)
    assert (end.outcome, end.status) == (RunOutcome.FAILED, RunStatus.TERMINATED)


def test_a_run_that_was_never_linked_is_not_waited_for_longer_than_the_hand_off() -> None:
    run = RunOnServer("G")
    sim = Simulation(run)
    end = watch(sim, handoff_timeout=100)
    assert (end.outcome, end.status) == (RunOutcome.HANDOFF_TIMEOUT, RunStatus.REGISTERED)
    assert elapsed(sim) == pytest.approx(100)


# --- The time for the whole run -----------------------------------------------------------------------------


@pytest.mark.parametrize("owned", [True, False])
@pytest.mark.parametrize("dead", DEAD_SERVERS.values(), ids=DEAD_SERVERS)
def test_the_time_out_is_on_time_on_a_server_that_is_dead(dead: dict[str, Any], owned: bool) -> None:
    sim = Simulation(RunOnServer(**dead))
    end = watch(sim, timeout=3, owned=owned)
    assert end.outcome is RunOutcome.TIMEOUT
    assert not end.answered
    assert 3 <= elapsed(sim) <= 4


def test_a_time_out_in_an_outage_says_how_the_run_was_seen_last_and_why_no_more_is_known() -> None:
    sim = Simulation(RunOnServer("R", silent=(50, 1e9)))
    end = watch(sim, timeout=100)
    assert (end.outcome, end.status) == (RunOutcome.TIMEOUT, RunStatus.RUNNING)
    assert end.message.startswith(
        "workflow run 5 was RUNNING (R) when Jobmon last answered, and its time is over after 10"
    )
    assert "no reply within" in end.message


def test_a_count_that_hangs_delays_no_limit() -> None:
    class HangingCounts:
        def is_due(self) -> bool:
            return True

        def look(self) -> Conversation[bool]:
            with contextlib.suppress(JobmonError):
                yield Ask(task_counts(7))
            return False

    run = RunOnServer("R")
    server = lambda call, now: SILENT if "viz" in call.route else run(call, now)  # noqa: E731
    for limit in (7, 100, 601):
        sim = Simulation(server, request_timeout=300)
        assert watch(sim, timeout=limit, progress=HangingCounts()).outcome is RunOutcome.TIMEOUT
        assert limit <= elapsed(sim) <= limit + 0.1


# --- Heartbeats ---------------------------------------------------------------------------------------------


def test_replies_that_hang_do_not_cost_the_run_whatever_the_connection_allows_for_one() -> None:
    for hangs_at in range(30, 130, 7):
        run = RunOnServer(story=((400, "B"), (401, "R"), (500, "D")))
        hangs = iter([True])  # the first request from then on, and no other

        def server(
            call: Call[Any], now: float, at: float = hangs_at, hangs: Any = hangs, run: Any = run
        ) -> Any:
            if now >= 1000 + at and call.message.get("status") == "L" and next(hangs, False):
                return SILENT
            return run(call, now)

        sim = Simulation(server, request_timeout=600)
        assert watch(sim).outcome is RunOutcome.DONE
        assert not run.deaths


def test_several_that_hang_in_a_row_leave_time_for_the_next() -> None:
    run = RunOnServer(silent=(60, 125), story=((400, "B"), (401, "R"), (500, "D")))
    sim = Simulation(run, request_timeout=600)
    assert watch(sim).outcome is RunOutcome.DONE
    assert not run.deaths


def test_a_heartbeat_that_is_nearly_out_still_gets_a_second() -> None:
    assert pacing.beat_timeout(90, 93) == 30
    assert pacing.beat_timeout(0.3, 93) == 1
    assert pacing.beat_timeout(-5, 93) == 31
    assert pacing.beat_timeout(None, 93) == pytest.approx(9.3)
    assert pacing.beat_timeout(None, 3) == 1


# --- A run that an executor has taken and not begun ---------------------------------------------------------

STUCK = {"B": ((10.0, "B"),), "I": ((10.0, "B"), (20.0, "I")), "O": ((10.0, "B"), (20.0, "I"), (30.0, "O"))}


@pytest.mark.parametrize("status", STUCK)
def test_a_run_whose_executor_does_not_begin_is_moved_to_error_at_the_limit(status: str) -> None:
    run = RunOnServer(story=STUCK[status])
    sim = Simulation(run)
    end = watch(sim, startup_timeout=3600)
    assert (end.outcome, end.status, run.status) == (RunOutcome.FAILED, RunStatus.ERROR, "E")
    assert 3610 <= elapsed(sim) <= 3616  # counted from when it was first seen
    assert "its executor had it for 3600 s and did not start it" in end.message
    assert f"({status})" in end.message
    assert "so it was moved to ERROR" in end.message
    assert "startup_timeout" in end.message


def test_a_warning_comes_once_and_long_before() -> None:
    run = RunOnServer(story=STUCK["O"])
    sim = Simulation(run)
    watch(sim, startup_timeout=3600)
    (warning,) = sim.warnings
    assert "workflow run 5 is LAUNCHED (O): its executor has had it for 3" in warning
    assert "has not begun" in warning
    assert "after 3600 s it is moved to ERROR" in warning


def test_a_short_limit_warns_at_half_of_it() -> None:
    assert pacing.startup_warning(None) == 300
    assert pacing.startup_warning(3600) == 300
    assert pacing.startup_warning(60) == 30


@pytest.mark.parametrize("options", [{"owned": False, "startup_timeout": 600}, {"startup_timeout": None}])
def test_a_run_that_is_not_ours_to_end_is_only_warned_of(options: dict[str, Any]) -> None:
    run = RunOnServer(story=(*STUCK["O"], (7200.0, "R"), (9000.0, "D")))
    sim = Simulation(run)
    assert watch(sim, **options).outcome is RunOutcome.DONE
    (warning,) = sim.warnings
    assert "its owner must have its status set to E" in warning


def test_an_executor_that_begins_in_time_is_left_alone() -> None:
    run = RunOnServer(story=(*STUCK["O"], (3500.0, "R"), (9000.0, "D")))
    assert watch(Simulation(run), startup_timeout=3600).outcome is RunOutcome.DONE


def test_an_executor_that_begins_at_the_very_limit_keeps_the_run_where_the_server_says_so() -> None:
    """A server that refuses the move: Jobmon itself lets a run in R be moved to E."""
    run = RunOnServer("O", story=((9000, "D"),))

    def server(call: Call[Any], now: float) -> Any:
        if call.message.get("status") == "E":
            run.status = "R"
            return {"status": "R"}
        return run(call, now)

    assert watch(Simulation(server), startup_timeout=60).outcome is RunOutcome.DONE


def test_a_run_that_was_stopped_at_the_very_limit_has_ended_so() -> None:
    def server(call: Call[Any], now: float) -> Any:
        return {"status": "T" if call.message["status"] == "E" else "O"}

    end = watch(Simulation(server), startup_timeout=60)
    assert (end.outcome, end.status) == (RunOutcome.FAILED, RunStatus.TERMINATED)
    assert "stopped by a resume" in end.message


@pytest.mark.parametrize("down", ["silent", "refusing"])
def test_the_limit_of_the_start_holds_in_an_outage_too(down: str) -> None:
    outage: dict[str, Any] = {down: (50, 1e9)}
    sim = Simulation(RunOnServer("O", **outage))
    end = watch(sim, startup_timeout=100)
    assert (end.outcome, end.status, end.answered) == (RunOutcome.TIMEOUT, RunStatus.LAUNCHED, False)
    assert 100 <= elapsed(sim) <= 101
    assert "could not be moved to ERROR" in end.message


def test_a_status_that_nobody_knows_between_them_does_not_start_the_time_anew() -> None:
    run = RunOnServer(story=((10, "B"), (20, "X"), (1000, "O")))
    sim = Simulation(run)
    assert watch(sim, startup_timeout=1200).outcome is RunOutcome.FAILED
    assert elapsed(sim) <= 1220


# --- Stopping a run whose time is over ----------------------------------------------------------------------


def stop(sim: Simulation, stop_workflow: int | None = 7, **options: Any) -> RunEnd:
    end = watch(sim, **options)
    return sim.run(give_up_overdue_run(end, 5, stop_workflow=stop_workflow, clock=sim.clock))


@pytest.mark.parametrize("status", ["B", "R"])
def test_a_run_whose_time_is_over_is_stopped(status: str) -> None:
    run = RunOnServer(status)
    sim = Simulation(run)
    end = stop(sim, timeout=100)
    assert (run.status, run.signals) == ("C", 1)
    assert (end.outcome, end.status) == (RunOutcome.TIMEOUT, RunStatus.COLD_RESUME)
    assert end.message.endswith(". Told to stop, it is COLD_RESUME (C)")
    assert elapsed(sim) <= 102


def test_a_run_that_is_left_alone_on_purpose_is_not_stopped() -> None:
    run = RunOnServer("R")
    end = stop(Simulation(run), stop_workflow=None, timeout=100)
    assert (run.status, end.status) == ("R", RunStatus.RUNNING)


def test_one_that_is_done_in_the_very_moment_is_done() -> None:
    run = RunOnServer("R", story=((100.5, "D"),))
    sim = Simulation(run, latency=0.6)
    assert stop(sim, timeout=100).outcome is RunOutcome.DONE


def test_one_that_cannot_be_told_yet_is_said_after_a_few_seconds() -> None:
    run = RunOnServer("O")
    sim = Simulation(run)
    end = stop(sim, timeout=100)
    assert (end.outcome, end.status, run.signals) == (RunOutcome.TIMEOUT, RunStatus.LAUNCHED, 0)
    assert end.message.endswith("It could not be told to stop yet, as it is LAUNCHED (O)")
    assert elapsed(sim) <= 106
    assert len(sim.warnings) == 1


@pytest.mark.parametrize("down", ["silent", "refusing"])
def test_on_a_dead_server_nothing_more_is_tried(down: str) -> None:
    outage: dict[str, Any] = {down: (50, 1e9)}
    sim = Simulation(RunOnServer("R", **outage))
    end = stop(sim, timeout=100)
    assert (end.outcome, end.answered) == (RunOutcome.TIMEOUT, False)
    assert 100 <= elapsed(sim) <= 101


def test_a_server_that_dies_in_the_middle_of_it_costs_seconds() -> None:
    sim = Simulation(RunOnServer("R", silent=(100.001, 1e9)), latency=0.002)
    end = stop(sim, timeout=100)
    assert (end.outcome, end.answered) == (RunOutcome.TIMEOUT, False)
    assert elapsed(sim) <= 107


def test_a_final_answer_to_the_stop_is_said_and_raised_to_nobody() -> None:
    run = RunOnServer("R")
    refusal = JobmonError("401 who?")
    sim = Simulation(lambda call, now: refusal if call.verb == "put" else run(call, now))
    end = stop(sim, timeout=100)
    assert (end.outcome, end.status) == (RunOutcome.TIMEOUT, RunStatus.RUNNING)
    assert (logging.WARNING, "workflow run 5 could not be stopped: 401 who?") in sim.notes


def test_a_run_of_ours_that_nobody_took_in_time_was_aborted_by_the_watch() -> None:
    run = RunOnServer("L")
    sim = Simulation(run)
    end = stop(sim, timeout=100)
    assert (end.outcome, end.status, run.status) == (RunOutcome.TIMEOUT, RunStatus.ABORTED, "A")
    assert len([call for _, call in sim.asked if call.verb == "put"]) == 1

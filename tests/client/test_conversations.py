"""Waiting and watching in simulated time: docs/rules.md, rules 1 to 4, to the second."""

from __future__ import annotations

import itertools
import logging
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_jobmon_provider.client.conversations import (
    Conversation,
    Note,
    Pause,
    RunEnd,
    RunOutcome,
    look_at_run,
    wait_until_resumable,
    watch_run,
)
from airflow_jobmon_provider.client.conversations.pacing import LONGEST_RESUME_PAUSE
from airflow_jobmon_provider.client.exceptions import (
    NotAuthorized,
    ResumeTimeout,
    ServerFailure,
    ServerUnreachable,
    WorkflowNotFound,
    WorkflowRunNotFound,
)
from airflow_jobmon_provider.client.heartbeat import Heartbeat, KeepAlive
from airflow_jobmon_provider.client.lifecycle import RunStatus
from airflow_jobmon_provider.client.protocol import Call
from tests.client.simulation import Answer, Simulation

DOWN = ServerUnreachable("GET http://jobmon: Connection refused", processed=False)


def wait(sim: Simulation, *, timeout: float = 300, force_cleanup: bool = False) -> None:
    sim.run(wait_until_resumable(7, timeout=timeout, force_cleanup=force_cleanup, clock=sim.clock))


def resumable_at(time: float) -> Answer:
    return lambda call, now: {"workflow_is_resumable": now >= 1000 + time, "pending_kill_self": 0}


# --- wait_until_resumable -----------------------------------------------------------------------------------


def test_a_workflow_that_is_resumable_costs_one_request_and_no_time() -> None:
    sim = Simulation(resumable_at(0))
    wait(sim)
    assert len(sim.asked) == 1
    assert sim.now == 1000


@given(st.floats(0, 290), st.floats(0, 0.2))
@settings(deadline=None)
def test_the_wait_ends_with_the_check_that_says_yes(time: float, latency: float) -> None:
    sim = Simulation(resumable_at(time), latency=latency)
    wait(sim)
    assert sim.now == pytest.approx(sim.asked[-1][0] + latency)  # nothing is slept after it
    assert sim.now - 1000 - time <= max(2.0, time / 30) + 2 * latency + 0.01


@given(st.floats(0.5, 60), st.floats(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_no_pause_between_two_checks_is_longer_than_the_longest(longest: float, time: float) -> None:
    sim = Simulation(resumable_at(time))
    sim.run(wait_until_resumable(7, timeout=1e5, force_cleanup=False, clock=sim.clock, longest=longest))
    checks = [when for when, *_ in sim.asked]
    assert (
        max((later - earlier for earlier, later in itertools.pairwise(checks)), default=0) <= longest + 0.01
    )


@given(st.floats(0, 1000), st.floats(0, 0.5))
@settings(deadline=None)
def test_a_deadline_is_a_deadline_to_the_second(timeout: float, latency: float) -> None:
    sim = Simulation(lambda call, now: {"workflow_is_resumable": False}, latency=latency)
    with pytest.raises(ResumeTimeout, match="workflow 7 did not become resumable within"):
        wait(sim, timeout=timeout)
    assert timeout <= sim.now - 1000 <= timeout + 2 * latency + 0.01
    assert sim.asked[-1][0] >= 1000 + timeout - 2 * latency - 0.01  # the last check is at the deadline


def test_a_time_out_of_zero_checks_once() -> None:
    sim = Simulation(lambda call, now: {"workflow_is_resumable": False})
    with pytest.raises(ResumeTimeout):
        wait(sim, timeout=0)
    assert len(sim.asked) == 1


def test_the_time_out_says_what_is_in_the_way_and_what_to_do() -> None:
    sim = Simulation(lambda call, now: {"workflow_is_resumable": False, "pending_kill_self": 3})
    with pytest.raises(ResumeTimeout) as caught:
        wait(sim, timeout=12)
    line = str(caught.value)
    assert "workflow 7" in line
    assert "12.0 s" in line
    assert "3 task instance(s) in KILL_SELF" in line
    assert "force_cleanup=True" in line


def test_a_forced_clean_up_is_followed_by_a_check_at_once() -> None:
    pending = [2]

    def answer(call: Call[Any], now: float) -> Any:
        if call.route.endswith("force_cleanup_kill_self"):
            cleaned, pending[0] = pending[0], 0
            return {"num_cleaned_up": cleaned, "num_workflow_runs_finalized": 1}
        return {"workflow_is_resumable": not pending[0], "pending_kill_self": pending[0]}

    sim = Simulation(answer)
    wait(sim, force_cleanup=True)
    assert [call.route.rsplit("/")[-1] for _, call in sim.asked] == [
        "is_resumable",
        "force_cleanup_kill_self",
        "is_resumable",
    ]
    assert sim.now == 1000
    assert sim.warnings == ["workflow 7: forced the clean-up of 2 KILL_SELF task instance(s)"]


def test_tasks_that_may_be_at_work_are_waited_for_as_long_as_one_of_them_ends() -> None:
    """A run that was alive a moment ago: forced at once, its tasks would go on beside those of the next."""
    cleaned: list[float] = []

    def answer(call: Call[Any], now: float) -> Any:
        if call.route.endswith("force_cleanup_kill_self"):
            cleaned.append(now - 1000)
            return {"num_cleaned_up": 1}
        pending = 3 if now < 1040 else 2 if now < 1080 else 1
        return {"workflow_is_resumable": bool(cleaned), "pending_kill_self": pending}

    sim = Simulation(answer)
    waiting = wait_until_resumable(7, timeout=300, force_cleanup=True, clock=sim.clock, kill_patience=50)
    sim.run(waiting)
    assert len(cleaned) == 1
    assert 1080 + 50 <= cleaned[0] + 1000 <= 1080 + 50 + 2 * LONGEST_RESUME_PAUSE


def test_where_all_of_them_end_in_time_nothing_is_forced() -> None:
    def answer(call: Call[Any], now: float) -> Any:
        left = max(int(1090 - now) // 30, 0)
        return {"workflow_is_resumable": not left, "pending_kill_self": left}

    sim = Simulation(answer)
    waiting = wait_until_resumable(7, timeout=300, force_cleanup=True, clock=sim.clock, kill_patience=50)
    sim.run(waiting)
    assert {call.route.rsplit("/")[-1] for _, call in sim.asked} == {"is_resumable"}


def test_a_clean_up_that_is_not_answered_is_tried_again() -> None:
    tried = []

    def answer(call: Call[Any], now: float) -> Any:
        if call.route.endswith("force_cleanup_kill_self"):
            tried.append(now)
            return DOWN if len(tried) == 1 else {"num_cleaned_up": 1}
        return {"workflow_is_resumable": len(tried) > 1, "pending_kill_self": 1}

    wait(Simulation(answer), force_cleanup=True)
    assert len(tried) == 2


def test_a_clean_up_that_does_not_help_is_no_busy_loop() -> None:
    def answer(call: Call[Any], now: float) -> Any:
        if call.route.endswith("force_cleanup_kill_self"):
            return {"num_cleaned_up": 0}
        return {"workflow_is_resumable": False, "pending_kill_self": 1}

    sim = Simulation(answer)
    with pytest.raises(ResumeTimeout, match="1 task instance"):
        wait(sim, timeout=60, force_cleanup=True)
    assert len(sim.asked) < 150


def test_an_outage_is_waited_out_with_one_warning_at_its_start_and_one_at_its_end() -> None:
    def answer(call: Call[Any], now: float) -> Any:
        if 1001 < now < 1100:
            return DOWN
        return {"workflow_is_resumable": now >= 1110}

    sim = Simulation(answer)
    wait(sim)
    assert len(sim.warnings) == 2
    assert sim.warnings[0] == f"workflow 7: Jobmon is not answering; will keep trying: {DOWN}"
    assert sim.warnings[1].startswith("workflow 7: Jobmon is answering again after")


def test_an_outage_that_outlasts_the_time_out_is_what_the_user_learns() -> None:
    sim = Simulation(lambda call, now: DOWN)
    with pytest.raises(ServerUnreachable):
        wait(sim, timeout=30)
    assert sim.now == pytest.approx(1030)


def test_a_single_check_says_what_came_back_without_promising_more() -> None:
    sim = Simulation(lambda call, now: DOWN)
    with pytest.raises(ServerUnreachable):
        wait(sim, timeout=0)
    assert not sim.notes


def test_retry_after_is_honoured_up_to_ten_seconds() -> None:
    failure = ServerFailure("503", retry_after=60)
    sim = Simulation(lambda call, now: failure if now < 1001 else {"workflow_is_resumable": True})
    wait(sim)
    assert sim.now == pytest.approx(1010)


@pytest.mark.parametrize("error", [WorkflowNotFound("none"), NotAuthorized("401", 401)])
def test_a_final_answer_ends_the_wait_at_once(error: Exception) -> None:
    sim = Simulation(lambda call, now: error)
    with pytest.raises(type(error)):
        wait(sim)
    assert sim.now == 1000


# --- watch_run ----------------------------------------------------------------------------------------------


class Run:
    """A run on a simulated server, which follows Jobmon's rules for heartbeats and transitions.

    :param story: pairs of seconds after the start and the status that an executor (or the reaper) gives the
        run then.
    """

    def __init__(self, *story: tuple[float, str], down: tuple[float, float] = (0, 0)) -> None:
        self.status = "L"
        self.story = list(story)
        self.down = down
        self.beats: list[float] = [0.0]  # creating it counts as a heartbeat
        self.looks: list[float] = []
        self.touched_after_bound = False

    def __call__(self, call: Call[Any], now: float) -> Any:
        now -= 1000
        while self.story and self.story[0][0] <= now:
            self.status = self.story.pop(0)[1]
        if self.down[0] <= now < self.down[1]:
            return DOWN
        said = call.message["status"]
        if call.route.endswith("update_status"):
            if (self.status, said) == ("L", "A"):
                self.status = "A"
            return {"status": self.status}
        self.looks.append(now)
        if said == self.status and said in "LR":
            self.beats.append(now)
        if self.status not in "L" and (said == self.status):
            self.touched_after_bound = True
        return {"status": self.status}

    @property
    def largest_gap(self) -> float:
        return max(b - a for a, b in zip(self.beats, self.beats[1:], strict=False))


def watch(sim: Simulation, **options: Any) -> RunEnd:
    defaults: dict[str, Any] = {
        "keep_alive": KeepAlive.UNTIL_BOUND,
        "heartbeat": Heartbeat(),
        "poll_interval": 60,
        "clock": sim.clock,
    }
    return sim.run(watch_run(5, **{**defaults, **options}))


BOUND_AT = 4000.0
TO_DONE = ((BOUND_AT, "B"), (BOUND_AT + 1, "I"), (BOUND_AT + 2, "O"), (BOUND_AT + 3, "R"), (9000.0, "D"))


def test_a_run_is_kept_alive_while_linking_and_only_watched_from_then_on() -> None:
    run = Run(*TO_DONE)
    sim = Simulation(run, latency=0.05)
    end = watch(sim)
    assert end.outcome is RunOutcome.DONE
    assert end.status is RunStatus.DONE
    assert end.message == "workflow run 5 ended DONE (D): every task is done"
    assert run.largest_gap <= 30.2
    assert max(run.beats) < BOUND_AT
    assert not run.touched_after_bound
    assert not sim.warnings


def test_a_watch_keeps_the_call_object_so_that_a_transport_prepares_each_heartbeat_once() -> None:
    sim = Simulation(Run(*TO_DONE))
    watch(sim)
    calls = {id(call): call for _, call in sim.asked}
    assert len(sim.asked) > 100
    assert len(calls) <= 3  # a first look, heartbeats while LINKING, looks from BOUND on
    assert all(call.frequent for call in calls.values())


def test_each_change_of_status_is_logged_once() -> None:
    sim = Simulation(Run((10, "B"), (200, "R"), (400, "D")))
    watch(sim)
    assert [text.split(":")[0] for _, text in sim.notes] == [
        "workflow run 5 is LINKING (L)",
        "workflow run 5 is BOUND (B)",
        "workflow run 5 is RUNNING (R)",
    ]  # the end is what the watch returns


def test_a_long_run_costs_two_requests_a_minute_in_linking_and_one_after() -> None:
    run = Run((7200, "B"), (7201, "R"), (20_000, "D"))
    watch(Simulation(run))
    linking = [look for look in run.looks if 3600 <= look < 7200]
    watching = [look for look in run.looks if 10_000 <= look < 13_600]
    assert len(linking) <= 2 * 60 + 1
    assert len(watching) <= 60 + 1


@given(st.floats(5, 60), st.floats(1.2, 5), st.floats(0, 1), st.integers(0, 2**32))
@settings(deadline=None, max_examples=50)
def test_no_gap_between_heartbeats_exceeds_what_they_are_good_for(
    interval: float, buffer: float, latency: float, seed: int
) -> None:
    run = Run((3000, "B"), (3001, "R"), (4000, "D"))
    sim = Simulation(run, latency=latency)
    watch(sim, heartbeat=Heartbeat(interval, buffer), uniform=random.Random(seed).uniform)
    assert run.largest_gap < interval * buffer


def test_a_short_outage_loses_no_heartbeat() -> None:
    run = Run((600, "B"), (601, "R"), (700, "D"), down=(100, 160))
    sim = Simulation(run)
    assert watch(sim).outcome is RunOutcome.DONE
    assert run.largest_gap < 93
    assert len(sim.warnings) == 2


@pytest.mark.parametrize(("status", "says"), [("E", "tasks failed"), ("S", "interrupted"), ("T", "resume")])
def test_any_other_end_is_a_failure_that_says_what_it_means(status: str, says: str) -> None:
    end = watch(Simulation(Run((10, "B"), (11, "R"), (500, status))))
    assert end.outcome is RunOutcome.FAILED
    assert end.status is RunStatus(status)
    assert says in end.message


def test_a_run_that_was_reaped_before_we_came_is_a_failure_at_the_first_look() -> None:
    run = Run((0, "A"))
    end = watch(Simulation(run))
    assert end.outcome is RunOutcome.FAILED
    assert len(run.looks) == 1


def test_a_run_that_nobody_takes_is_aborted_to_the_second() -> None:
    run = Run()
    sim = Simulation(run)
    end = watch(sim, handoff_timeout=3600)
    assert end.outcome is RunOutcome.HANDOFF_TIMEOUT
    assert end.status is RunStatus.ABORTED
    assert run.status == "A"
    assert sim.now - 1000 == pytest.approx(3600)
    assert "no executor took workflow run 5 within 3600 s (handoff_timeout)" in end.message


def test_an_executor_that_comes_at_the_last_moment_keeps_the_run() -> None:
    run = Run((3600.05, "B"), (3601, "R"), (4000, "D"))
    sim = Simulation(run, latency=0.1)  # the look says LINKING, the abort comes when it is BOUND
    assert watch(sim, handoff_timeout=3600).outcome is RunOutcome.DONE


def test_the_hand_off_limit_holds_in_an_outage_too_and_says_that_the_run_could_not_be_aborted() -> None:
    run = Run(down=(3590, 3660))
    sim = Simulation(run)
    end = watch(sim, handoff_timeout=3600)
    assert end.outcome is RunOutcome.HANDOFF_TIMEOUT
    assert end.status is RunStatus.LINKING
    assert sim.now - 1000 == pytest.approx(3600)
    assert "could not be aborted" in end.message
    assert "its heartbeat runs out by itself within 93 s" in end.message


def test_a_watch_ends_when_the_time_for_the_whole_run_is_over() -> None:
    sim = Simulation(Run((10, "B"), (11, "R")))
    end = watch(sim, timeout=500)
    assert end.outcome is RunOutcome.TIMEOUT
    assert end.status is RunStatus.RUNNING
    assert sim.now - 1000 == pytest.approx(500)
    assert "its time is over after 500 s" in end.message


@pytest.mark.parametrize(("ours", "left"), [(True, "A"), (False, "L")])
def test_at_the_time_out_only_a_run_of_ours_is_aborted(ours: bool, left: str) -> None:
    run = Run()
    end = watch(Simulation(run), timeout=100, owned=ours)
    assert end.outcome is RunOutcome.TIMEOUT
    assert run.status == left


def test_a_time_out_during_an_outage_says_that_the_run_could_not_be_asked_about() -> None:
    sim = Simulation(Run(down=(0, 1e9)))
    end = watch(sim, timeout=100)
    assert end.outcome is RunOutcome.TIMEOUT
    assert end.status is None
    assert "could not be asked about" in end.message
    assert sim.now - 1000 == pytest.approx(100)


def test_a_bystander_never_beats() -> None:
    run = Run((100, "B"), (101, "R"), (500, "D"))
    watch(Simulation(run), keep_alive=KeepAlive.NEVER)
    assert run.beats == [0.0]
    assert not run.touched_after_bound


def test_keep_alive_until_done_beats_while_running_too() -> None:
    run = Run((100, "B"), (101, "R"), (5000, "D"))
    assert watch(Simulation(run), keep_alive=KeepAlive.UNTIL_DONE).outcome is RunOutcome.DONE
    assert max(run.beats) > 4900
    assert run.largest_gap <= 31


def test_while_we_beat_for_a_running_run_nothing_else_is_asked() -> None:
    class Counting:
        looks = 0

        def is_due(self) -> bool:
            return True

        def look(self) -> Conversation[bool]:
            self.looks += 1
            yield Pause(20)
            return False

    for keep_alive, counted in ((KeepAlive.UNTIL_BOUND, True), (KeepAlive.UNTIL_DONE, False)):
        progress = Counting()
        watch(Simulation(Run((10, "B"), (11, "R"), (900, "D"))), keep_alive=keep_alive, progress=progress)
        assert bool(progress.looks) is counted


class Counts:
    """Says at which times the tasks were looked at; from a given time on, none is left to run."""

    def __init__(self, sim: Simulation, settled_at: float = 1e9) -> None:
        self.sim = sim
        self.settled_at = 1000 + settled_at
        self.times: list[float] = []

    def is_due(self) -> bool:
        return True

    def look(self) -> Conversation[bool]:
        self.times.append(self.sim.now - 1000)
        yield Note(logging.INFO, "counted")
        return self.sim.now >= self.settled_at


def test_a_count_takes_the_place_of_every_other_look() -> None:
    run = Run((10, "B"), (11, "R"), (7200, "D"))
    sim = Simulation(run)
    counts = Counts(sim)
    watch(sim, poll_interval=60, progress=counts)
    late = [look for look in run.looks if 1800 < look < 7000]
    counted = [time for time in counts.times if 1800 < time < 7000]
    assert abs(len(late) - len(counted)) <= 1
    assert len(late) + len(counted) == pytest.approx(5200 / 60, abs=3)


def test_when_no_task_is_left_to_run_the_look_follows_at_once() -> None:
    run = Run((10, "B"), (11, "R"), (7200, "D"))
    sim = Simulation(run)
    counts = Counts(sim, settled_at=7200)
    watch(sim, poll_interval=60, progress=counts)
    assert sim.now - 1000 <= 7260
    assert len([time for time in counts.times if time >= 7200]) <= 1


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("took", [0, 7])
def test_a_count_does_not_delay_the_deadline(seed: int, took: float) -> None:
    class SlowCounts(Counts):
        def look(self) -> Conversation[bool]:
            yield Pause(took)
            return (yield from super().look())

    sim = Simulation(Run((10, "B"), (11, "R")))
    chance = random.Random(seed).uniform
    end = watch(sim, poll_interval=60, timeout=600, progress=SlowCounts(sim), uniform=chance)
    assert end.outcome is RunOutcome.TIMEOUT
    assert sim.now - 1000 <= 600 + took + 0.01


def test_watches_that_start_at_the_same_moment_drift_apart_at_once() -> None:
    second_beats = []
    for seed in range(200):
        run = Run()
        sim = Simulation(run)
        watch(sim, age=86_400, timeout=120, uniform=random.Random(seed).uniform)
        second_beats.append(
            run.looks[2]
        )  # the first look reads the status, and the first beat follows at once
    assert max(second_beats) <= 30
    for start in range(0, 30, 3):  # each tenth of the interval gets its share
        assert 5 <= len([beat for beat in second_beats if start <= beat < start + 3]) <= 40


def test_a_triggerer_that_takes_over_an_old_run_does_not_poll_it_as_if_it_were_new() -> None:
    run = Run((300, "B"), (301, "R"), (400, "D"))
    watch(Simulation(run), age=86_400)
    assert len([look for look in run.looks if look < 300]) <= 12  # of which the first only reads the status


def test_an_unknown_run_ends_the_watch() -> None:
    sim = Simulation(lambda call, now: WorkflowRunNotFound("none"))
    with pytest.raises(WorkflowRunNotFound):
        watch(sim)


# --- look_at_run --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep_alive", "status", "sent"),
    [
        (KeepAlive.NEVER, "L", ["G"]),
        (KeepAlive.NEVER, "R", ["G"]),
        (KeepAlive.UNTIL_BOUND, "G", ["G"]),
        (KeepAlive.UNTIL_BOUND, "L", ["G", "L"]),
        (KeepAlive.UNTIL_BOUND, "R", ["G"]),
        (KeepAlive.UNTIL_DONE, "L", ["G", "L"]),
        (KeepAlive.UNTIL_DONE, "R", ["G", "R"]),
        (KeepAlive.UNTIL_DONE, "D", ["G"]),
    ],
)
def test_a_look_beats_only_for_a_run_that_is_ours(
    keep_alive: KeepAlive, status: str, sent: list[str]
) -> None:
    sim = Simulation(lambda call, now: {"status": status})
    look = look_at_run(5, keep_alive=keep_alive, heartbeat=Heartbeat())
    assert sim.run(look) is RunStatus(status)
    assert [call.message["status"] for _, call in sim.asked] == sent

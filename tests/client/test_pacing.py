"""When to ask next, as properties."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_jobmon_provider.client.conversations import pacing
from airflow_jobmon_provider.client.conversations.pacing import ResumeStep
from airflow_jobmon_provider.client.heartbeat import KeepAlive
from airflow_jobmon_provider.client.lifecycle import RunStatus
from airflow_jobmon_provider.client.protocol import Resumability

elapsed = st.floats(0, 1e6)
chances = st.floats(0, 1).map(lambda part: lambda low, high: low + part * (high - low))


@given(elapsed, chances)
def test_the_pause_before_asking_again_grows_from_well_under_a_second_to_ten(
    seconds: float, uniform: pacing.Uniform
) -> None:
    pause = pacing.resume_pause(seconds, uniform)
    assert 0.25 <= pause <= 10
    if seconds < 0.5:
        assert pause <= 0.5
    if seconds > 300:
        assert pause >= 9.5


@given(elapsed, st.floats(0.1, 3600), chances)
def test_the_pause_before_asking_again_grows_to_the_longest_that_is_wanted(
    seconds: float, longest: float, uniform: pacing.Uniform
) -> None:
    pause = pacing.resume_pause(seconds, uniform, longest)
    assert 0 < pause <= longest
    assert pause >= 0.98 * min(longest, 0.3)
    if seconds >= 30 * longest:
        assert pause >= 0.98 * min(longest, 1.96)


def test_resumability_is_seen_soon_with_few_requests() -> None:
    chance = random.Random(7)
    delays, requests = [], []
    for _ in range(500):
        resumable_at = chance.uniform(1, 60)
        now, asked = 0.0, 1
        while now < resumable_at:
            now += pacing.resume_pause(now, chance.uniform)
            asked += 1
        delays.append(now - resumable_at)
        requests.append(asked)
    assert statistics.median(delays) <= 1
    assert max(delays) <= 2.5
    assert max(requests) <= 35


@given(elapsed, st.floats(0.1, 3600), chances)
def test_a_run_is_looked_at_within_the_longest_pause(
    since: float, longest: float, uniform: pacing.Uniform
) -> None:
    pause = pacing.run_pause(since, longest, uniform)
    assert 0 < pause <= longest
    # seen with a delay that is small beside how long it took
    assert pause <= max(since / 4, 1)


@given(elapsed, chances)
def test_a_run_that_is_silent_for_long_costs_one_request_an_interval(
    since: float, uniform: pacing.Uniform
) -> None:
    if since >= 240:
        assert pacing.run_pause(since, 60, uniform) == 60


@given(st.integers(1, 10_000), st.none() | st.floats(0, 1e6), st.floats(0.1, 100), chances)
def test_an_outage_is_asked_about_again_within_ten_seconds(
    failures: int, retry_after: float | None, longest: float, uniform: pacing.Uniform
) -> None:
    pause = pacing.outage_pause(failures, retry_after, longest, uniform)
    assert 0 < pause <= min(longest, 10)
    if retry_after is not None:
        assert pause >= min(retry_after, longest, 10)


def test_the_first_try_after_a_failure_is_within_a_second() -> None:
    assert pacing.outage_pause(1, None, 10, lambda low, high: high) <= 1


@pytest.mark.parametrize("status", list(RunStatus))
def test_only_the_run_that_is_ours_is_beaten_for(status: RunStatus) -> None:
    assert not pacing.beats(KeepAlive.NEVER, status)
    assert pacing.beats(KeepAlive.UNTIL_BOUND, status) == (status is RunStatus.LINKING)
    assert pacing.beats(KeepAlive.UNTIL_DONE, status) == (status in (RunStatus.LINKING, RunStatus.RUNNING))


@pytest.mark.parametrize(
    ("resumable", "pending", "force", "step"),
    [
        (True, None, False, ResumeStep.RESUMABLE),
        (True, 3, True, ResumeStep.RESUMABLE),
        (False, None, False, ResumeStep.WAIT),
        (False, 3, False, ResumeStep.WAIT),
        (False, 0, True, ResumeStep.WAIT),
        (False, 3, True, ResumeStep.CLEAN_UP),
        (False, None, True, ResumeStep.CLEAN_UP),  # the server's 404 tells the user that it cannot
    ],
)
def test_the_next_step_follows_from_the_reply_of_is_resumable(
    resumable: bool, pending: int | None, force: bool, step: ResumeStep
) -> None:
    assert pacing.resume_step(Resumability(resumable, pending), force) is step


def test_terminal_statuses_are_those_of_the_protocol_page() -> None:
    assert {status.value for status in RunStatus if status.is_terminal} == set("DESAT")


def test_every_status_tells_the_user_its_name_code_and_meaning() -> None:
    assert str(RunStatus.RUNNING) == "RUNNING (R)"
    assert all(status.meaning for status in RunStatus)

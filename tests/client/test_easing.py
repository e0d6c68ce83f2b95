"""A run that waits long for its executor is beaten for less often, and lives, in simulated time."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from airflow_jobmon_provider.client.conversations import RunOutcome, watch_run
from airflow_jobmon_provider.client.heartbeat import EASED, WAITS_LONG, Heartbeat, KeepAlive, heartbeat_of
from tests.client.simulation import RunOnServer, Simulation

BY_DEFAULT = Heartbeat(eases=True)
DAY = 86_400.0


def beats_of(heartbeat: Heartbeat, server: RunOnServer, *, age: float = 0.0, seed: int = 0) -> list[float]:
    """Watch a run until an executor has completed it; return when its heartbeats came."""
    sim = Simulation(server)
    end = sim.run(
        watch_run(
            5,
            keep_alive=KeepAlive.UNTIL_BOUND,
            heartbeat=heartbeat,
            poll_interval=60,
            clock=sim.clock,
            owned=True,
            age=age,
            uniform=random.Random(seed).uniform,
        )
    )
    assert end.outcome is RunOutcome.DONE
    assert not server.deaths
    return [when for when, says in server.said if says == "L"]


def waits(seconds: float = DAY) -> RunOnServer:
    return RunOnServer(story=((seconds, "R"), (seconds + 300, "D")))


def test_after_ten_minutes_it_is_beaten_for_four_times_less_often() -> None:
    beats = beats_of(BY_DEFAULT, waits())
    pauses = [later - earlier for earlier, later in itertools.pairwise(beats)]
    early = [pause for when, pause in zip(beats, pauses, strict=False) if when < WAITS_LONG]
    late = [pause for when, pause in zip(beats, pauses, strict=False) if when >= WAITS_LONG + 120]
    assert max(early) <= 30
    assert late == pytest.approx([30 * EASED] * len(late))


def test_each_beat_promises_four_times_as_much() -> None:
    server = waits()
    beats = beats_of(BY_DEFAULT, server)
    assert server.good_until == pytest.approx(beats[-2] + 4 * 93)  # the last one meets a run that has begun


@pytest.mark.parametrize("outage", [(WAITS_LONG - 10, WAITS_LONG + 30), (5000.0, 5200.0)])
@pytest.mark.parametrize("kind", ["silent", "refusing"])
def test_it_lives_through_an_outage_that_its_last_beat_has_promised(
    outage: tuple[float, float], kind: str
) -> None:
    for seed in range(20):
        server = waits()
        setattr(server, kind, outage)
        beats_of(BY_DEFAULT, server, seed=seed)


def test_a_triggerer_that_takes_over_an_old_run_goes_on_so() -> None:
    beats = beats_of(BY_DEFAULT, waits(3600), age=DAY)
    assert len(beats) <= 3600 / 120 + 2


def test_thousands_of_runs_that_began_together_are_beaten_for_at_different_times() -> None:
    seconds: Counter[int] = Counter()
    for seed in range(400):
        beats = beats_of(BY_DEFAULT, waits(2000), seed=seed)
        seconds.update(int(when) // 10 for when in beats if 900 <= when < 1860)
    mean = sum(seconds.values()) / 96
    assert mean == pytest.approx(400 / 12, rel=0.1)
    assert max(seconds.values()) < 2 * mean


@pytest.mark.parametrize(("interval", "eases"), [(None, True), (30.0, False), (10.0, False)])
def test_an_interval_that_was_given_stays(interval: float | None, eases: bool) -> None:
    heartbeat = heartbeat_of(BY_DEFAULT, interval, None)
    assert heartbeat.eases is eases
    beats = beats_of(heartbeat, waits(7200))
    longest = max(later - earlier for earlier, later in itertools.pairwise(beats))
    assert longest == pytest.approx((interval or 30) * (EASED if eases else 1))

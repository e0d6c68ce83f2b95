"""How soon something is seen, and after how many requests, on a simulated clock: hours in milliseconds."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from statistics import median
from typing import Any, TypeVar

from airflow_jobmon_provider.client.conversations import (
    Ask,
    Conversation,
    ProgressWatch,
    carry,
    wait_until_resumable,
    watch_run,
)
from airflow_jobmon_provider.client.heartbeat import Heartbeat, KeepAlive
from airflow_jobmon_provider.client.protocol import Call
from benchmarks.figures import Figures

T = TypeVar("T")

SEED = 20261123
INTERVAL, BUFFER, POLL = 30.0, 3.1, 60.0  # the defaults
JOBMONS_SLEEP = 30.0  # a tenth of its default time-out, after every check


class Clock:
    """Carries a conversation through time that passes only while it waits.

    :param latency: seconds that the server takes for a reply.
    """

    def __init__(self, answer: Callable[[Call[Any], float], Any], latency: float = 0.02) -> None:
        self.answer = answer
        self.latency = latency
        self.now = 0.0
        self.asked: list[tuple[float, str]] = []

    def time(self) -> float:
        return self.now

    def run(self, conversation: Conversation[T]) -> T:
        """Return the conversation's result."""
        return carry(conversation, self._reply_to, self._wait, self)

    def log(self, level: int, line: str, /, *args: object) -> None:
        pass

    def _reply_to(self, ask: Ask) -> Any:
        self.asked.append((self.now, ask.call.route))
        self.now += self.latency
        return ask.call.read(self.answer(ask.call, self.now))

    def _wait(self, seconds: float) -> None:
        self.now += seconds


def _resumable(due: float, call: Call[Any], now: float) -> Any:
    return {"workflow_is_resumable": now >= due, "pending_kill_self": 0}


def detection(figures: Figures, *, quick: bool) -> None:
    """200 workflows become resumable after a random 1 to 60 s: how late that is seen."""
    chance = random.Random(SEED)
    delays, requests, jobmons = [], [], []
    for _ in range(200):
        due = chance.uniform(1, 60)
        clock = Clock(functools.partial(_resumable, due))
        waiting = wait_until_resumable(
            1, timeout=300, force_cleanup=False, clock=clock.time, uniform=chance.uniform
        )
        clock.run(waiting)
        delays.append(clock.now - due)
        requests.append(len(clock.asked))
        seen = 0.0
        while seen < due:
            seen += JOBMONS_SLEEP
        jobmons.append(seen + JOBMONS_SLEEP - due)  # it sleeps once more after the check that said yes
    figures.add("detection_median_s", median(delays), "s", at_most=1)
    figures.add("detection_p95_s", sorted(delays)[int(0.95 * len(delays))], "s", at_most=2.5)
    figures.add("detection_requests_max", max(requests), "requests", at_most=35)
    figures.add("detection_jobmon_median_s", median(jobmons), "s")


class Run:
    """A run on the simulated server.

    :param story: when it gets which status.
    """

    def __init__(self, *story: tuple[float, str]) -> None:
        self.story = story

    def __call__(self, call: Call[Any], now: float) -> Any:
        if "workflow_status_viz" in call.route:
            done = 50_000 if now >= self.story[-1][0] else int(now)
            counts = {"tasks": 50_000, "PENDING": 50_000 - done, "SCHEDULED": 0, "RUNNING": 0}
            return {"1": {**counts, "DONE": done, "FATAL": 0}}
        return {"status": next((status for at, status in reversed(self.story) if now >= at), "L")}


def watch(clock: Clock, **options: Any) -> None:
    """Watch a run to its end, at the default settings."""
    conversation = watch_run(
        1,
        keep_alive=KeepAlive.UNTIL_BOUND,
        heartbeat=Heartbeat(INTERVAL, BUFFER),
        poll_interval=POLL,
        clock=clock.time,
        progress=ProgressWatch(1, clock.time),
        **options,
    )
    clock.run(conversation)


def completion(figures: Figures, *, quick: bool) -> None:
    """A run of hours reaches DONE: how much later the watch ends, as a share of the interval.

    Ends at evenly spread moments of the interval, a server that replies at once, and chance always in the
    middle: so the figure is what the rule says, not what the dice say.
    """
    shares, rates = [], []
    for number in range(200):
        done = 7200 + number * POLL / 200
        clock = Clock(Run((600, "R"), (done, "D")), latency=0)
        watch(clock, uniform=lambda low, high: (low + high) / 2)
        shares.append((clock.now - done) / POLL)
        late = [at for at, _ in clock.asked if 1800 <= at < done]
        rates.append(len(late) / ((done - 1800) / POLL))
    figures.add(
        "completion_delay_vs_interval", round(median(shares), 2), at_most=0.5
    )  # samples are 1/200 apart
    figures.add("completion_requests_per_interval", median(rates), at_most=1.05)


def requests(figures: Figures, *, quick: bool) -> None:
    """What one waiting run costs the server: an hour in LINKING, then ten hours RUNNING, counts included."""
    chance = random.Random(SEED)
    clock = Clock(Run((3600, "R"), (39_600, "D")))
    watch(clock, uniform=chance.uniform)
    linking = [at for at, _ in clock.asked if 600 <= at < 3600]
    running = [at for at, _ in clock.asked if 5400 <= at < 39_600]
    figures.add("linking_requests_per_min", len(linking) / 50, "1/min", at_most=2.02)
    figures.add("watching_requests_per_min", len(running) / 570, "1/min", at_most=1.01)
    young = [at for at, _ in clock.asked if at < 600]
    figures.add("linking_requests_first_10_min", len(young), "requests")

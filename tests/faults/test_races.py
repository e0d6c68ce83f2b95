"""Races that real triggers and operators run against Jobmon's reaper, executors and each other."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from dev.jobmon_sandbox import JobmonSandbox, SandboxError
from tests.airflow_task import fire
from tests.faults.runs import linking_runs
from tests.triggers.runs import beats, trigger, until

BOUND = 60  # seconds in which a trigger must learn that its run has ended, on a busy machine

pytestmark = [pytest.mark.usefixtures("connection"), pytest.mark.timeout(180)]


def move(sandbox: JobmonSandbox, run: int, status: str) -> str:
    """Ask for a transition as an executor does, and return what the status is now."""
    reply = sandbox.put(f"/api/v2/workflow_run/{run}/update_status", {"status": status})
    return str(reply["status"])


def reap_lost(sandbox: JobmonSandbox, runs: list[int]) -> None:
    """Do what Jobmon's reaper does in one pass, by its own requests.

    Not the reaper itself: for a run that is bound after it was listed, the server's route fails (3.4.8: 500,
    "cannot access local variable"), and the reaper asks again for five minutes.
    """
    listed = sandbox.get("/api/v3/lost_workflow_run?status=L&version=any")["workflow_runs"]
    for run, _ in listed:
        if run in runs:
            with contextlib.suppress(SandboxError):
                sandbox.put(f"/api/v2/workflow_run/{run}/reap", {})


async def race(
    sandbox: JobmonSandbox, runs: list[int], bind: Callable[[int, threading.Barrier], str]
) -> dict[int, str]:
    """Let a pass of the reaper, an executor and a trigger of each run meet; check how each run ended.

    :param bind: the executor of a run: takes it, and returns what the server replied.
    :returns: the status in which each run ended.
    """
    barrier = threading.Barrier(len(runs) + 2)
    loop = asyncio.get_running_loop()

    def reap() -> None:
        barrier.wait(BOUND)
        reap_lost(sandbox, runs)

    with ThreadPoolExecutor(len(runs) + 2) as threads:
        reaping = loop.run_in_executor(threads, reap)
        binding = {run: loop.run_in_executor(threads, bind, run, barrier) for run in runs}
        await loop.run_in_executor(threads, barrier.wait, BOUND)
        firing = {run: asyncio.create_task(fire(trigger(run))) for run in runs}
        await reaping
        told = {run: await bound for run, bound in binding.items()}
        for run, status in told.items():
            if status == "B":
                moved = [await loop.run_in_executor(threads, move, sandbox, run, to) for to in "IORD"]
                # 3.4.8 reads a run and writes it without a lock: the reaper may still undo a hand-off, and
                # then the executor is refused. Nothing else may keep it from going on.
                assert moved in (["I", "O", "R", "D"], ["A"] * 4)
    ended = {run: sandbox.run_status(run) for run in runs}
    for run, status in ended.items():
        assert (told[run], status) in {("B", "D"), ("B", "A"), ("A", "A")}, "neither handed over nor aborted"
        event = await asyncio.wait_for(firing[run], BOUND)
        assert event["workflow_run_status"] == status
        assert event["status"] == {"D": "success", "A": "failed"}[status]
        heard = [r for r in beats(sandbox, run) if r.status_code == 200]  # a busy SQLite may fail one
        said = {r.body["status"] for r in heard if r.reply["status"] not in ("L", status)}
        assert said <= {"L", "G"}
    return ended


def about_to_be_lost(sandbox: JobmonSandbox, margins: list[float]) -> list[int]:
    """Make runs that wait for an executor and are lost in so many seconds."""
    runs = linking_runs(sandbox, len(margins))
    for run, margin in zip(runs, margins, strict=True):
        sandbox.age_heartbeat(run, 3600 - margin)
    return runs


@pytest.mark.parametrize("margin", [-1.0, 0.0, 1.0])
async def test_the_reaper_and_the_hand_off_at_once(sandbox: JobmonSandbox, margin: float) -> None:
    """Ten runs each: whoever comes first, all others learn of it, and no run is left in between."""

    def bind(run: int, barrier: threading.Barrier) -> str:
        barrier.wait(BOUND)
        # Not all before the reaper has looked. There is nothing to wait for: anybody may win.
        time.sleep(random.uniform(0, 0.3))
        return move(sandbox, run, "B")

    await race(sandbox, about_to_be_lost(sandbox, [margin] * 10), bind)


async def test_an_executor_that_comes_before_the_reaper_keeps_the_run(sandbox: JobmonSandbox) -> None:
    def bind(run: int, barrier: threading.Barrier) -> str:
        told = move(sandbox, run, "B")
        barrier.wait(BOUND)
        return told

    ended = await race(sandbox, about_to_be_lost(sandbox, [-60.0] * 3), bind)
    assert set(ended.values()) == {"D"}


async def test_an_executor_that_comes_after_the_reaper_is_refused(sandbox: JobmonSandbox) -> None:
    def bind(run: int, barrier: threading.Barrier) -> str:
        reap_lost(sandbox, [run])
        barrier.wait(BOUND)
        return move(sandbox, run, "B")

    ended = await race(sandbox, about_to_be_lost(sandbox, [-60.0] * 3), bind)
    assert set(ended.values()) == {"A"}


async def test_two_triggerers_at_once_do_what_one_does(sandbox: JobmonSandbox) -> None:
    """A failover may leave two for a moment: the run is kept, nothing moves it, and both say how it ended."""
    run = sandbox.make_workflow_in("L", good_for=3).workflow_run_id or 0
    started = time.time()
    sandbox.start_reaper(0.2)
    try:
        both = [asyncio.create_task(fire(trigger(run))) for _ in range(2)]
        await until(lambda: len(beats(sandbox, run)) >= 12, "heartbeats for longer than one is good for")
        assert sandbox.run_status(run) == "L"
    finally:
        sandbox.stop_reaper()  # nobody beats for the executor
    for status in "BIOR":
        assert await asyncio.to_thread(move, sandbox, run, status) == status
    lost_at = sandbox.heartbeat_date(run)
    taken_at = time.time()
    await until(lambda: len([b for b in beats(sandbox, run) if b.time > taken_at]) >= 6, "looks of both")
    assert (sandbox.run_status(run), sandbox.heartbeat_date(run)) == ("R", lost_at)
    assert await asyncio.to_thread(move, sandbox, run, "D") == "D"
    events = await asyncio.wait_for(asyncio.gather(*both), BOUND)
    assert events[0] == events[1]
    assert (events[0]["status"], events[0]["workflow_run_status"]) == ("success", "D")
    seen = beats(sandbox, run)
    linking = [b for b in seen if b.reply["status"] == "L"]
    assert {b.body["status"] for b in linking} == {"L", "G"}  # the first look of each only reads
    assert max(b.time - a.time for a, b in itertools.pairwise(linking)) < 3
    # One a second each, and for each the first and the one that spreads them over the second.
    assert len([b for b in linking if b.body["status"] == "L"]) <= 2 * (taken_at - started + 2)
    # The first look of each after the hand-off may still be the heartbeat that was right before it.
    assert [b.body["status"] for b in seen if b.reply["status"] != "L"].count("L") <= 2
    assert {b.body["status"] for b in seen} == {"L", "G"}

"""A soak: thousands of triggers against a real Jobmon on SQLite, while a driver makes, binds and ends runs.

``python -m benchmarks.soak --minutes 30 --runs 2000``. It ends with no late beat, no missed or wrong end and
flat memory, or says what went wrong and exits with 1. The driver is a process of its own: it plays executors,
users and the reaper by Jobmon's own routes, with the statuses in Jobmon's order.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from typing import Any

from benchmarks.load import resident_kib
from dev.jobmon_sandbox import JobmonSandbox

INTERVAL, BUFFER = 30.0, 3.1
LATE = 1.1 * INTERVAL
POLL = 30.0
ENDS = {"BIORD": "D", "BIORE": "E", "BIORS": "S", "BE": "E", "A": "A", "BCT": "T"}
STATUS_ROUTE = "/api/v2/workflow_run/{}/update_status"


def create_run(sandbox: JobmonSandbox, workflow_id: int) -> int:
    """Create a run as the operator does."""
    body = {"workflow_id": workflow_id, "user": "soak", "jobmon_version": "soak"}
    reply = sandbox.post("/api/v2/workflow_run", {**body, "next_report_increment": INTERVAL * BUFFER})
    return int(reply["workflow_run_id"])


def drive(sandbox: JobmonSandbox, runs: Any, ends: Any, seconds: float, mean_life: float) -> None:
    """End runs at random moments, each in one of Jobmon's ways; put what became of each into ``ends``."""
    chance = random.Random(1)
    due: list[tuple[float, int]] = []
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        while not runs.empty():
            due.append((time.monotonic() + chance.expovariate(1 / mean_life), runs.get()))
        due.sort()
        while due and due[0][0] <= time.monotonic():
            _, run = due.pop(0)
            way = chance.choice(list(ENDS))
            for status in way:
                reply = sandbox.put(STATUS_ROUTE.format(run), {"status": status})
                assert reply["status"] == status, f"run {run}: {status} → {reply}"
            ends.put((run, ENDS[way], time.time()))
        time.sleep(0.05)


class Soak:
    """Keeps many triggers waiting, each for a run of its own; one that fires is followed by another."""

    def __init__(self, sandbox: JobmonSandbox, workflows: list[int], runs: Any) -> None:
        self.sandbox = sandbox
        self.workflows = workflows
        self.runs = runs
        self.events: dict[int, tuple[str | None, float]] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    async def start_one(self, age: float = 0.0) -> None:
        """Create a run and wait for it, as if it were so many seconds old."""
        run = await asyncio.to_thread(create_run, self.sandbox, self.workflows.pop())
        task = asyncio.create_task(self.wait_for(run, age))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        self.runs.put(run)

    async def wait_for(self, run: int, age: float) -> None:
        """Run the trigger of one run, to its event."""
        from airflow_jobmon_provider.triggers.jobmon import WorkflowRunHeartbeatTrigger

        trigger = WorkflowRunHeartbeatTrigger(
            workflow_run_id=run,
            workflow_run_heartbeat_interval=INTERVAL,
            heartbeat_report_by_buffer=BUFFER,
            poll_interval=POLL,
            created_at=time.time() - age,
        )
        async for event in trigger.run():
            self.events[run] = (event.payload["workflow_run_status"], time.time())
        await self.start_one()

    async def run(self, count: int, seconds: float) -> list[float]:
        """Keep so many triggers for so long; return the memory in KiB, sampled each 20th of the time."""
        for _ in range(count):  # a fleet that has been there: thousands of young runs are another load
            await self.start_one(age=86_400)
        memory = []
        for _ in range(20):
            await asyncio.sleep(seconds / 20)
            memory.append(resident_kib())
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        return memory


def late_beats(sandbox: JobmonSandbox, settled: float) -> list[tuple[str, float]]:
    """Return the gaps between heartbeats that were accepted for runs in LINKING, where too long."""
    last: dict[str, float] = {}
    late = []
    for request in sandbox.requests("/log_heartbeat"):
        if isinstance(request.reply, dict) and request.reply.get("status") == "L":
            gap = request.time - last.get(request.path, request.time)
            if gap > LATE and request.time < settled:
                late.append((request.path, gap))
            last[request.path] = request.time
    return late


def main() -> int:
    """Run the soak; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--runs", type=int, default=2000)
    arguments = parser.parse_args()
    seconds, count = 60 * arguments.minutes, arguments.runs
    mean_life = max(2 * seconds, 60.0)
    logging.disable(logging.INFO)
    with JobmonSandbox(heartbeat_interval=INTERVAL) as sandbox:
        connection = {"conn_type": "jobmon", "host": sandbox.url, "extra": {"route_prefix": "/api/v2"}}
        os.environ["AIRFLOW_CONN_JOBMON_DEFAULT"] = json.dumps(connection)
        sandbox.start_reaper(10)
        workflows = sandbox.copy_workflow(sandbox.make_workflow("new", tasks=1).workflow_id, count * 8)
        processes = multiprocessing.get_context("fork")
        runs, ends = processes.Queue(), processes.Queue()
        # It stops a little earlier, so that every end is seen.
        driver = processes.Process(target=drive, args=(sandbox, runs, ends, seconds - 2 * POLL, mean_life))
        driver.start()
        soak = Soak(sandbox, workflows, runs)
        started = time.time()
        memory = asyncio.run(soak.run(count, seconds))
        driver.join()
        told: dict[int, tuple[str, float]] = {}
        while not ends.empty():
            run, status, at = ends.get()
            told[run] = (status, at)
        late = late_beats(sandbox, time.time())
        beats = len(sandbox.requests("/log_heartbeat"))
    print(f"soak_minutes {(time.time() - started) / 60:.1f}")
    print(f"soak_heartbeats_and_looks {beats}")
    print(f"soak_late_beats {len(late)} {late[:3]}")
    ends_are_right = compare_ends(told, soak.events)
    growth = memory[-1] / memory[len(memory) // 2] - 1
    print(f"soak_memory_growth_second_half {growth:.3f}")
    print("soak_memory_mib " + " ".join(f"{kib / 1024:.0f}" for kib in memory))
    return 0 if ends_are_right and not late and growth <= 0.05 else 1


def compare_ends(told: dict[int, tuple[str, float]], events: dict[int, tuple[str | None, float]]) -> bool:
    """Print how the ends that the driver made compare with the events; return whether they agree."""
    missed = [run for run in told if run not in events]
    wrong = [run for run, (end, _) in told.items() if run in events and events[run][0] != end]
    unasked = {run: event for run, event in events.items() if run not in told}
    print(f"soak_ends {len(told)} {dict(Counter(end for end, _ in told.values()))}")
    print(f"soak_missed_ends {len(missed)}")
    print(f"soak_wrong_ends {len(wrong)}")
    print(f"soak_ends_that_nobody_made {len(unasked)} {list(unasked.items())[:3]}")
    return not (missed or wrong or unasked)


if __name__ == "__main__":
    sys.exit(main())

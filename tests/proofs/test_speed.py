"""A short run of the benchmark, ratios only, with room for noise: notices what costs twice as much."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PARTS = ["heartbeat", "fleet", "burst", "behind_counts", "detection", "completion", "requests", "parse"]

# name: (at least, at most). Twice as bad as what is measured on a quiet machine.
BOUNDS = {
    "heartbeat_vs_aiohttp": (0.5, None),
    "heartbeat_vs_session_per_call": (1.5, None),
    "heartbeat_vs_jobmon_requester": (1.5, None),
    "fleet_late_beats": (None, 0),
    "fleet_connections": (None, 101),
    "burst_missing_runs": (None, 0),
    "burst_peak_requests": (None, 100),
    "burst_second_peak": (None, 4),
    "beat_behind_counts_ms": (None, 200),
    "detection_requests_max": (None, 70),
    "completion_delay_vs_interval": (None, 1),
    "completion_requests_per_interval": (None, 2),
    "linking_requests_per_min": (None, 4),
    "watching_requests_per_min": (None, 2),
    "parse_vs_bash": (None, 2),
}


@pytest.mark.timeout(400)
def test_nothing_costs_twice_as_much() -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", *PARTS]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=390)
    assert "| figure | value |" in done.stdout, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.partition("\n\n")[0].splitlines()]
    figures = {name: float(value) for name, value, *_ in lines}
    assert figures.keys() >= BOUNDS.keys()
    bad = {
        name: figures[name]
        for name, (least, most) in BOUNDS.items()
        if (least is not None and figures[name] < least) or (most is not None and figures[name] > most)
    }
    assert not bad

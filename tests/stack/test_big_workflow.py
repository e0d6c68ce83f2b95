"""The calls that cost the server O(tasks), on MariaDB; `make bench` does the same with a million tasks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(300)
def test_each_costly_call_is_one_request_that_does_not_time_out_and_is_right() -> None:
    # A process of its own, as the benchmark tells Airflow to log next to nothing.
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "big_workflow"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=290,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "big_workflow_requests 1 requests" in lines
    assert "big_workflow_timeouts 0" in lines

"""The part that needs MariaDB: it runs where there is one, and says so where there is none."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path


def test_without_mariadb_it_says_so_and_has_no_figures() -> None:
    # A process of its own, as the benchmark tells Airflow to log next to nothing.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        where = {"TEST_STACK_MARIADB": f"mysql://root@127.0.0.1:{taken.getsockname()[1]}"}
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks", "--quick", "big_workflow"],
            cwd=Path(__file__).parents[2],
            env={**os.environ, **where},
            capture_output=True,
            text=True,
            timeout=100,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("big_workflow: not measured: ")
    assert "big_workflow_requests" not in done.stdout

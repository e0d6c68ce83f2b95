"""A test that fails and leaves something that does not end does not hold up all others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parent.parent

CONFTEST = """
from tests import teardown_limit
from tests.teardown_limit import pytest_runtest_teardown
teardown_limit.LIMIT = 1
"""
TESTS = """
import asyncio

async def test_fails_and_leaves_a_task_that_loses_its_cancellation():
    async def stays():
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                pass
    task = asyncio.create_task(stays())
    await asyncio.sleep(0)
    assert False

def test_after_it():
    pass
"""


def test_a_teardown_that_hangs_ends_the_process_and_says_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_hangs.py").write_text(TESTS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "--asyncio-mode=auto",
        f"--rootdir={tmp_path}",
        str(tmp_path),
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(PROJECT)}, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1
    assert "FAILED" in done.stdout
    assert "test_after_it" not in done.stdout
    assert "Timeout (0:00:01)!" in done.stderr
    assert "in _cancel_all_tasks" in done.stderr

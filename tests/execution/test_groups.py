"""How a worker ends an executor and all that it has started, and only that."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from airflow_jobmon_provider.execution.process import Execution
from airflow_jobmon_provider.execution.watching import ExecutorEnded
from dev.jobmon_sandbox import wait_until
from tests.execution.conftest import group_members
from tests.execution.programs import run

LEAVES_A_CHILD = """
import subprocess, sys
subprocess.Popen(["sleep", "600"])
print("started", flush=True)
"""


def wait_for_end(execution: Execution) -> None:
    with pytest.raises(ExecutorEnded):
        execution.wait(30)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_an_executor_is_not_reaped_before_what_it_has_started_is_killed() -> None:
    started, _ = run(LEAVES_A_CHILD)
    group = started._process.pid
    wait_for_end(started)
    assert started.exit_code == 0
    assert started.exit_code == 0  # asked as often as one likes
    assert state_of(group) == "Z"  # so no other process can get its id
    assert len(group_members(group)) == 1
    started.stop()
    wait_until(lambda: not group_members(group), 10, "what it has started to end")
    assert not Path(f"/proc/{group}").exists()
    assert started.exit_code == 0


def test_no_group_is_killed_whose_leader_is_reaped(monkeypatch: pytest.MonkeyPatch) -> None:
    started, _ = run("pass")
    pid = started._process.pid
    os.waitpid(pid, 0)  # as a library may that reaps all children
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "killpg", lambda *args: killed.append(args))
    wait_for_end(started)
    started.stop()
    assert killed == []


@pytest.mark.parametrize(
    ("program", "code"),
    [("raise SystemExit(8)", 8), ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL)],
)
def test_the_exit_code_is_known_without_reaping(program: str, code: int) -> None:
    started, _ = run(program)
    wait_for_end(started)
    assert started.exit_code == code
    assert state_of(started._process.pid) == "Z"
    started.stop()
    assert started.exit_code == code


def test_stopping_twice_at_the_same_time_kills_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started, log = run("import time; print('up', flush=True); time.sleep(600)")
    while "up" not in log.lines:
        started.wait(0.1)
    killed: list[int] = []
    kill = os.killpg

    def killpg(group: int, number: int) -> None:
        killed.append(group)
        kill(group, number)

    monkeypatch.setattr(os, "killpg", killpg)
    threads = [threading.Thread(target=started.stop) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert killed == [started._process.pid]


# Whether it has taken the run


def test_the_worker_learns_that_the_run_was_taken() -> None:
    tells = "import os, sys; os.read(0, 1); os.write(int(sys.argv[-1]), b'T')"
    started, _ = run(tells)
    wait_for_end(started)
    assert started.has_taken
    started.stop()
    assert started.has_taken  # also when the connection is closed


@pytest.mark.parametrize("let_go", [False, True])
def test_one_that_said_nothing_has_not_taken_it(let_go: bool) -> None:
    started, _ = run("import time; time.sleep(600)")
    assert not started.has_taken
    if let_go:
        started.let_go()
        assert not started.has_taken
    started.stop()
    assert not started.has_taken


def test_a_worker_that_dies_unread_is_noticed_all_the_same(tmp_path: Path) -> None:
    # The worker is killed with a message of the executor's that it has not read yet.
    told = tmp_path / "told"
    child = (
        "import os, sys; lifeline = int(sys.argv[-1]); os.write(lifeline, b'T'); print('said', flush=True)\n"
        "try:\n    os.read(lifeline, 1)\nexcept ConnectionResetError:\n    pass\n"
        f"open({str(told)!r}, 'w').close()"
    )
    started, log = run(child)
    while "said" not in log.lines:
        started.wait(0.1)
    started._lifeline.close()
    wait_until(told.exists, 20, "the executor to notice")
    started.stop()

"""When and how an executor takes its run: as late as can be, and never one that another executor has."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_jobmon_provider.execution.executor import Exit
from dev.jobmon_sandbox import JobmonSandbox, SandboxWorkflow, wait_until
from tests.execution.conftest import MakeRun
from tests.execution.executors import Executor, is_alive, kill_group

pytestmark = pytest.mark.timeout(180)

VERSIONS = pytest.mark.parametrize("newer", [False, True], ids=["3.4", "3.6"])
WHEN_BUILT = """
from jobmon.client.swarm.workflow_run import WorkflowRun
wrap(WorkflowRun, "from_workflow_id", after="built")
"""

Start = Callable[..., Executor]


@pytest.fixture
def start(sandbox: JobmonSandbox, tmp_path: Path) -> Iterator[Start]:
    """Start executors; what is left of them is killed."""
    started: list[Executor] = []

    def begin(workflow: SandboxWorkflow, **options: Any) -> Executor:
        started.append(Executor(sandbox, workflow, tmp_path / f"executor-{len(started)}", **options))
        return started[-1]

    yield begin
    for executor in started:
        kill_group(executor.process.pid)
        executor.process.wait()


def status(sandbox: JobmonSandbox, workflow: SandboxWorkflow) -> str:
    return sandbox.run_status(workflow.workflow_run_id or 0)


def moves(sandbox: JobmonSandbox, workflow: SandboxWorkflow) -> list[tuple[float, str]]:
    """Return when the run got each status."""
    before, moved = "L", []
    for request in sandbox.requests(f"/workflow_run/{workflow.workflow_run_id}/update_status"):
        if request.reply["status"] != before:
            before = request.reply["status"]
            moved.append((request.time, before))
    return moved


def task_instances(sandbox: JobmonSandbox, workflow: SandboxWorkflow) -> int:
    sql = "SELECT count(*) FROM task_instance WHERE workflow_run_id = ?"
    return int(sandbox.query(sql, workflow.workflow_run_id)[0][0])


@VERSIONS
def test_a_run_stays_linking_and_alive_while_the_swarm_reads_the_workflow(
    sandbox: JobmonSandbox, start: Start, newer: bool
) -> None:
    workflow = sandbox.make_workflow_in("L", good_for=sandbox.heartbeat_interval * sandbox.report_by_buffer)
    workflow.release()
    executor = start(workflow, prelude=WHEN_BUILT, closed=("built",), newer=newer)
    executor.wait_at("built")
    run = workflow.workflow_run_id or 0
    first = sandbox.heartbeat_date(run)
    wait_until(lambda: sandbox.heartbeat_date(run) > first, 20, "another heartbeat")
    sandbox.reap()
    assert status(sandbox, workflow) == "L"
    executor.open("built")
    assert executor.end() == Exit.DONE, executor.output
    moved = moves(sandbox, workflow)
    assert "".join(each for _, each in moved) == "BIORD"
    at = {each: time for time, each in moved}
    assert at["R"] - at["B"] < 10  # about half a second, but machines are slow


def test_a_host_that_is_lost_while_the_swarm_reads_leaves_a_run_to_the_reaper(
    sandbox: JobmonSandbox, linking: MakeRun, start: Start
) -> None:
    workflow = linking()
    executor = start(workflow, prelude=WHEN_BUILT, closed=("built",))
    executor.wait_at("built")
    kill_group(executor.process.pid)
    executor.process.wait()
    assert status(sandbox, workflow) == "L"
    sandbox.age_heartbeat(workflow.workflow_run_id or 0, 3600)
    sandbox.reap()
    assert status(sandbox, workflow) == "A"


def test_a_distributor_that_dies_while_the_swarm_reads_aborts_the_run(
    sandbox: JobmonSandbox, linking: MakeRun, start: Start
) -> None:
    workflow = linking()
    executor = start(workflow, prelude=WHEN_BUILT, closed=("built",))
    executor.wait_at("built")
    distributor = executor.distributor()
    os.kill(distributor, signal.SIGKILL)
    wait_until(lambda: not is_alive(distributor), 20, "the distributor to end")
    executor.open("built")
    assert executor.end() == Exit.NO_DISTRIBUTOR, executor.output
    assert "Jobmon's distributor has ended before the run began" in executor.output
    assert status(sandbox, workflow) == "A"


@pytest.mark.parametrize("code", ["G", "I", "O", "C", "X"])
def test_a_run_in_any_other_status_is_not_touched(
    sandbox: JobmonSandbox, linking: MakeRun, start: Start, code: str
) -> None:
    workflow = linking()
    if code == "X":  # one that a later Jobmon may bring
        sandbox.change("INSERT OR IGNORE INTO workflow_run_status (id, label) VALUES ('X', 'NEW')")
    sandbox.change("UPDATE workflow_run SET status = ? WHERE id = ?", code, workflow.workflow_run_id)
    executor = start(workflow)
    assert executor.end() == Exit.NOT_TAKEN, executor.output
    assert f"({code}), not LINKING (L)" in executor.output
    assert status(sandbox, workflow) == code


@VERSIONS
def test_of_two_executors_that_are_ready_at_the_same_time_one_goes_on(
    sandbox: JobmonSandbox, linking: MakeRun, start: Start, newer: bool
) -> None:
    workflow = linking()
    both = [start(workflow, prelude=WHEN_BUILT, closed=("built",), newer=newer) for _ in range(2)]
    for executor in both:
        executor.wait_at("built")
    for executor in both:
        executor.open("built")
    assert sorted(executor.end() for executor in both) == [Exit.DONE, Exit.NOT_TAKEN]
    assert status(sandbox, workflow) == "D"
    assert task_instances(sandbox, workflow) == 2  # one for each task


ELSEWHERE = """
import socket
socket.socket.bind = lambda self, address: None  # as on a host of its own, where no other executor is seen
"""
HOLD_AFTER_PEEK = """
asked(after=lambda route, message, reply: gate("peeked") if is_peek(route, message) and built() else None)
from jobmon.client.swarm.workflow_run import WorkflowRun
wrap(WorkflowRun, "from_workflow_id", after="built")
built = (HERE / "built.reached").exists
"""
HOLD_AFTER_B = """
asked(after=lambda route, message, reply: gate("bound") if is_move(route, message, "B") else None)
"""


def test_an_executor_that_moves_after_another_has_begun_withdraws(
    sandbox: JobmonSandbox, linking: MakeRun, start: Start
) -> None:
    workflow = linking()
    late = start(workflow, prelude=HOLD_AFTER_PEEK + ELSEWHERE, closed=("peeked",), newer=True)
    late.wait_at("peeked")  # it has seen L, and is about to ask for B
    first = start(workflow)
    assert first.end() == Exit.DONE
    late.open("peeked")
    assert late.end() == Exit.NOT_TAKEN
    assert "is DONE (D) by now, so it is not executed here" in late.output
    assert status(sandbox, workflow) == "D"
    assert task_instances(sandbox, workflow) == 2


def test_two_executors_that_both_read_b_find_out_before_running(
    sandbox: JobmonSandbox, linking: MakeRun, start: Start
) -> None:
    workflow = linking()
    late = start(workflow, prelude=HOLD_AFTER_PEEK + ELSEWHERE, closed=("peeked",))
    late.wait_at("peeked")
    slow = start(workflow, prelude=HOLD_AFTER_B, closed=("bound",))
    slow.wait_at("bound")  # the run is BOUND, and both have seen L
    late.open("peeked")  # its B is refused, and the reply is "B" all the same
    assert late.end() == Exit.DONE
    slow.open("bound")
    assert slow.end() == Exit.NOT_TAKEN
    assert (status(sandbox, workflow), task_instances(sandbox, workflow)) == ("D", 2)


def test_on_one_host_the_first_to_be_ready_has_the_run_to_itself(
    sandbox: JobmonSandbox, linking: MakeRun, start: Start
) -> None:
    workflow = linking()
    first = start(workflow, prelude=HOLD_AFTER_PEEK, closed=("peeked",))
    first.wait_at("peeked")
    second = start(workflow)
    assert second.end() == Exit.NOT_TAKEN, second.output
    assert "about to be taken by another executor on this host" in second.output
    assert status(sandbox, workflow) == "L"
    first.open("peeked")
    assert first.end() == Exit.DONE, first.output


def test_a_run_that_is_told_to_stop_before_it_begins_is_terminated(
    sandbox: JobmonSandbox, linking: MakeRun, start: Start
) -> None:
    workflow = linking()
    executor = start(workflow, prelude=HOLD_AFTER_B, closed=("bound",))
    executor.wait_at("bound")
    sandbox.post(f"/api/v2/workflow/{workflow.workflow_id}/set_resume", {"reset_running_jobs": True})
    assert status(sandbox, workflow) == "C"
    executor.open("bound")
    assert executor.end() == Exit.NOT_TAKEN, executor.output
    assert status(sandbox, workflow) == "T"


def test_a_run_that_is_aborted_while_the_swarm_reads_is_left(
    sandbox: JobmonSandbox, linking: MakeRun, start: Start
) -> None:
    workflow = linking()
    executor = start(workflow, prelude=WHEN_BUILT, closed=("built",))
    executor.wait_at("built")
    route = f"/api/v2/workflow_run/{workflow.workflow_run_id}/update_status"
    sandbox.put(route, {"status": "A"})
    executor.open("built")
    assert executor.end() == Exit.NOT_TAKEN, executor.output
    assert "is ABORTED (A) by now" in executor.output
    assert status(sandbox, workflow) == "A"


LATE_COMMITS = """
from jobmon.core.exceptions import InvalidResponse

replies = []


def unknown_at_first(route, message):
    if is_peek(route, message) and len(replies) < 2:
        replies.append(None)
        raise InvalidResponse("Request failed due to status code 500: NoResultFound")


def stale(route, message, reply):
    # What was said last, where a move has just been replied to; twice.
    global last, left
    if is_move(route, message, "O"):
        last, left = "I", 2
    elif is_peek(route, message) and left:
        left -= 1
        return {"status": last}


left = 0
asked(before=unknown_at_first, after=stale)
"""


def test_a_server_that_answers_before_it_commits_is_asked_again(
    sandbox: JobmonSandbox, linking: MakeRun, start: Start
) -> None:
    workflow = linking()
    executor = start(workflow, prelude=LATE_COMMITS)
    assert executor.end() == Exit.DONE, executor.output
    assert status(sandbox, workflow) == "D"


def test_a_server_that_does_not_move_the_run_ends_the_execution(
    sandbox: JobmonSandbox, linking: MakeRun, start: Start
) -> None:
    workflow = linking()
    stuck = """
import time
from jobmon.core import requester  # the client is there
asked(after=lambda route, message, reply: {"status": "B"} if is_move(route, message, "I") else None)
now = time.monotonic
time.monotonic = lambda: now() * 20
"""
    executor = start(workflow, prelude=stuck)
    assert executor.end() == Exit.FAILED, executor.output
    assert "is still BOUND (B): Jobmon does not move it to INSTANTIATED (I)" in executor.output
    assert status(sandbox, workflow) == "E"

"""What an executor leaves behind, however it ends: no run that nobody executes, and no process."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_jobmon_provider.execution.executor import TAKEN, Exit
from dev.jobmon_sandbox import JobmonSandbox, SandboxWorkflow, wait_until
from tests.execution.conftest import MakeRun, group_members
from tests.execution.executors import Executor, is_alive, kill_group

pytestmark = pytest.mark.timeout(180)

VERSIONS = pytest.mark.parametrize("newer", [False, True], ids=["3.4", "3.6"])
WHEN_BUILT = """
from jobmon.client.swarm.workflow_run import WorkflowRun
wrap(WorkflowRun, "from_workflow_id", after="built")
"""
HOLD_AFTER_B = """
asked(after=lambda route, message, reply: gate("bound") if is_move(route, message, "B") else None)
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


@pytest.fixture
def owner() -> Iterator[tuple[socket.socket, int]]:
    """The owner's end of a lifeline, and the executor's."""
    ours, theirs = socket.socketpair()
    ours.settimeout(30)
    with ours, theirs:
        yield ours, theirs.fileno()


def status(sandbox: JobmonSandbox, workflow: SandboxWorkflow) -> str:
    return sandbox.run_status(workflow.workflow_run_id or 0)


def wait_until_running(sandbox: JobmonSandbox, workflow: SandboxWorkflow) -> None:
    wait_until(lambda: "R" in sandbox.task_statuses(workflow.workflow_id), 60, "a task to run")


def tasks_of(workflow: SandboxWorkflow) -> list[int]:
    """Return the processes of the workflow's tasks."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"test -e {workflow.marker}".encode() in file.read_bytes() and is_alive(int(file.parent.name)):
                found.append(int(file.parent.name))
        except OSError:
            continue
    return found


# The process that started it


def test_it_tells_its_owner_when_it_takes_the_run_and_goes_on_without_it(
    sandbox: JobmonSandbox, linking: MakeRun, start: Start, owner: tuple[socket.socket, int]
) -> None:
    workflow = linking()
    ours, theirs = owner
    executor = start(workflow, prelude=HOLD_AFTER_B, closed=("bound",), lifeline=theirs)
    executor.wait_at("bound")
    assert ours.recv(10) == TAKEN
    ours.close()
    executor.open("bound")
    assert executor.end() == Exit.DONE, executor.output
    assert status(sandbox, workflow) == "D"


def test_it_ends_with_its_owner_before_it_has_the_run(
    sandbox: JobmonSandbox, linking: MakeRun, start: Start, owner: tuple[socket.socket, int]
) -> None:
    workflow = linking()
    ours, theirs = owner
    executor = start(workflow, prelude=WHEN_BUILT, closed=("built",), lifeline=theirs)
    executor.wait_at("built")
    ours.shutdown(socket.SHUT_RDWR)
    ours.close()
    assert executor.end() == Exit.STOPPED, executor.output
    assert status(sandbox, workflow) == "L"  # the next try of the task goes on with it
    wait_until(lambda: not group_members(executor.process.pid), 20, "everything to end")


@pytest.mark.parametrize("owned", [False, True], ids=["alone", "owned"])
def test_a_signal_between_the_servers_bound_and_its_own_knowledge_ends_the_run(
    sandbox: JobmonSandbox,
    linking: MakeRun,
    start: Start,
    owner: tuple[socket.socket, int],
    owned: bool,
) -> None:
    workflow = linking()
    executor = start(workflow, prelude=HOLD_AFTER_B, closed=("bound",), lifeline=owner[1] if owned else None)
    executor.wait_at("bound")
    assert status(sandbox, workflow) == "B"
    executor.process.send_signal(signal.SIGTERM)
    assert executor.end() == Exit.STOPPED, executor.output
    assert status(sandbox, workflow) == "E"


def test_a_move_that_takes_effect_after_the_signal_is_undone(
    sandbox: JobmonSandbox, linking: MakeRun, start: Start
) -> None:
    workflow = linking()
    # The request is on its way when the signal comes, and overtaken by what looks for the run's status then.
    late = """
import threading
from jobmon.core.requester import Requester
direct = Requester._send_request


def overtaken(route, message):
    if is_move(route, message, "B"):
        gate("asked")
    elif is_move(route, message, "A"):
        direct(Requester.from_defaults(), route, {"status": "B"}, "put")


asked(before=overtaken)
"""
    executor = start(workflow, prelude=late, closed=("asked",))
    executor.wait_at("asked")
    executor.process.send_signal(signal.SIGTERM)
    assert executor.end() == Exit.STOPPED, executor.output
    assert status(sandbox, workflow) == "E"


# Signals at bad moments


@VERSIONS
def test_a_signal_that_a_library_swallows_is_raised_again(
    sandbox: JobmonSandbox, running: MakeRun, start: Start, newer: bool
) -> None:
    workflow = running()
    swallow = """
from jobmon.client.swarm.workflow_run import WorkflowRun
synchronize = WorkflowRun.synchronize_state


def synchronize_state(self, *args, **kwargs):
    try:
        gate("synchronizing")
    except BaseException as error:
        print("swallowed", type(error).__name__, flush=True)
    synchronize(self, *args, **kwargs)


WorkflowRun.synchronize_state = synchronize_state
"""
    executor = start(workflow, prelude=swallow, closed=("synchronizing",), newer=newer)
    executor.wait_at("synchronizing")
    executor.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "swallowed Stopped" in executor.output, 20, "the first one")
    executor.open("synchronizing")
    assert executor.end() == Exit.STOPPED, executor.output
    assert executor.output.rstrip().endswith("was stopped by SIGTERM")
    assert status(sandbox, workflow) == "S"


def test_a_signal_while_the_run_is_being_ended_changes_nothing(
    sandbox: JobmonSandbox, linking: MakeRun, start: Start
) -> None:
    workflow = linking()
    fails = """
from jobmon.client.swarm.workflow_run import WorkflowRun


def from_workflow_id(self, *args):
    raise ValueError("resource scales")


WorkflowRun.from_workflow_id = from_workflow_id
asked(before=lambda route, message: gate("aborting") if is_move(route, message, "A") else None)
"""
    executor = start(workflow, prelude=fails, closed=("aborting",))
    executor.wait_at("aborting")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        executor.process.send_signal(number)
    executor.open("aborting")
    assert executor.end() == Exit.FAILED, executor.output
    assert "was broken off: ValueError: resource scales" in executor.output
    assert status(sandbox, workflow) == "A"


def test_a_signal_during_the_start_stops_it_once_the_run_can_be_ended(
    sandbox: JobmonSandbox, linking: MakeRun, start: Start
) -> None:
    workflow = linking()
    slow_import = """
import importlib.abc


class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "jobmon.core.requester":
            gate("importing")


sys.meta_path.insert(0, Slow())
"""
    executor = start(workflow, prelude=slow_import, closed=("importing",))
    executor.wait_at("importing")
    executor.process.send_signal(signal.SIGTERM)
    executor.open("importing")
    assert executor.end() == Exit.STOPPED, executor.output
    assert status(sandbox, workflow) == "A"


def test_a_signal_stops_tasks_that_run(sandbox: JobmonSandbox, running: MakeRun, start: Start) -> None:
    workflow = running()
    executor = start(workflow, newer=True)
    wait_until_running(sandbox, workflow)
    executor.process.send_signal(signal.SIGTERM)
    assert executor.end() == Exit.STOPPED, executor.output
    assert status(sandbox, workflow) == "S"
    wait_until(lambda: not tasks_of(workflow), 20, "the tasks to end")
    wait_until(lambda: not group_members(executor.process.pid), 20, "everything to end")


# Its distributor


def test_a_distributor_ends_with_an_executor_that_is_killed_alone(
    sandbox: JobmonSandbox, running: MakeRun, start: Start
) -> None:
    workflow = running()
    executor = start(workflow)
    wait_until_running(sandbox, workflow)
    distributor = executor.distributor()
    executor.kill()
    wait_until(lambda: not is_alive(distributor), 30, "the distributor to end")
    wait_until(lambda: not tasks_of(workflow), 20, "the tasks to end")
    wait_until(lambda: not group_members(executor.process.pid), 20, "everything to end")


def test_a_distributor_that_has_not_started_yet_ends_with_its_executor_too(
    sandbox: JobmonSandbox, linking: MakeRun, start: Start
) -> None:
    workflow = linking()
    executor = start(workflow, prelude=WHEN_BUILT, closed=("built",))
    executor.wait_at("built")
    distributor = executor.distributor()
    executor.kill()
    wait_until(lambda: not is_alive(distributor), 30, "the distributor to end")
    wait_until(lambda: not group_members(executor.process.pid), 20, "everything to end")


def test_a_distributor_starts_no_task_of_a_run_that_another_executor_has(
    sandbox: JobmonSandbox, running: MakeRun, start: Start
) -> None:
    workflow = running()
    late = start(workflow, prelude=WHEN_BUILT, closed=("built",))
    late.wait_at("built")
    first = start(workflow)
    wait_until_running(sandbox, workflow)
    tasks = wait_until(lambda: tasks_of(workflow), 30, "a task's process")
    assert tasks_started_by(first, workflow)[: len(tasks)] == tasks
    workflow.release()
    assert first.end() == Exit.DONE
    late.open("built")
    assert late.end() == Exit.NOT_TAKEN
    assert status(sandbox, workflow) == "D"


def tasks_started_by(executor: Executor, workflow: SandboxWorkflow) -> list[int]:
    return [pid for pid in tasks_of(workflow) if pid in group_members(executor.process.pid)]


# What it writes


def test_an_executor_whose_output_is_not_read_goes_on(
    sandbox: JobmonSandbox, linking: MakeRun, start: Start
) -> None:
    workflow = linking()
    reading, writing = os.pipe()
    executor = start(workflow, output=writing)
    os.close(writing)
    os.close(reading)
    assert executor.end() == Exit.DONE  # not 120, which is Python's for output that it could not write
    assert status(sandbox, workflow) == "D"


# A client of 3.6


def test_an_error_that_the_swarm_keeps_to_itself_is_told(
    sandbox: JobmonSandbox, linking: MakeRun, start: Start
) -> None:
    workflow = linking()
    fails = """
from jobmon.client.swarm.workflow_run import WorkflowRun


def process_commands(self, timeout=-1):
    raise OSError("no file descriptors left")


WorkflowRun.process_commands = process_commands


def lost(route, message):
    if is_move(route, message, "E") and not lost_once:
        lost_once.append(1)
        raise OSError("no file descriptors left")


lost_once = []
asked(before=lost)
"""
    executor = start(workflow, prelude=fails, newer=True)
    assert executor.end() == Exit.FAILED, executor.output
    assert "Jobmon's swarm broke off in RUNNING (R): 0 of 2 tasks done, 0 failed" in executor.output
    assert status(sandbox, workflow) == "E"

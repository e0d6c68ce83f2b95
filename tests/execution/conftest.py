"""A run that waits for its executor."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dev.jobmon_sandbox import JobmonSandbox, SandboxWorkflow, wait_until

MakeRun = Callable[..., SandboxWorkflow]


@pytest.fixture(autouse=True)
def _at_home(own_home: None) -> None:
    """Run jobs with a home of the tests' own."""


@pytest.fixture
def linking(sandbox: JobmonSandbox) -> MakeRun:
    """Make a workflow whose run is LINKING, good for an hour, and whose tasks do what a command says."""

    def make(*, released: bool = True, tasks: int = 2) -> SandboxWorkflow:
        workflow = sandbox.make_workflow_in("L", tasks=tasks)
        if released:
            workflow.release()
        return workflow

    return make


@pytest.fixture
def running(sandbox: JobmonSandbox) -> MakeRun:
    """Make a workflow whose run is LINKING, and whose one task waits until the workflow is released."""

    def make() -> SandboxWorkflow:
        return sandbox.make_workflow_in("L", waits=True)

    return make


def group_members(group: int) -> list[int]:
    """Return the processes of a process group that are alive."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.fixture
def groups() -> Iterator[list[int]]:
    """Take process groups that a test has started, and kill what is left of them."""
    started: list[int] = []
    yield started
    for group in started:
        for pid in group_members(group):
            os.kill(pid, signal.SIGKILL)


def wait_for_end(group: int) -> None:
    wait_until(lambda: not group_members(group), 20, "the executor and all it has started to end")

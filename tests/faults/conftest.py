"""A real Jobmon for the state machines, and two ways to it for the one of a task."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import fields

import pytest

from airflow_jobmon_provider.client.requester import Requester
from dev.jobmon_sandbox import JobmonSandbox
from tests.faults.gate import Gate
from tests.faults.machine import World
from tests.faults.process import take_charge
from tests.faults.task_machine import Site


@pytest.fixture
def world(sandbox: JobmonSandbox, requester: Requester, prefix: str) -> Iterator[World]:
    original = sandbox.make_workflow("new", tasks=1).workflow_id
    with contextlib.closing(sqlite3.connect(sandbox.database, timeout=30, isolation_level=None)) as database:
        yield World(sandbox, database, requester, prefix, original)


@pytest.fixture
def site(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    here, elsewhere = Gate(world.sandbox.url), Gate(world.sandbox.url)
    time = take_charge(monkeypatch)
    known = {field.name: getattr(world, field.name) for field in fields(world)}
    yield Site(**known, here=here, elsewhere=elsewhere, time=time, patch=monkeypatch)
    here.close()
    elsewhere.close()

"""A real Jobmon for the state machines."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

import pytest

from airflow_jobmon_provider.client.requester import Requester
from dev.jobmon_sandbox import JobmonSandbox
from tests.faults.machine import World


@pytest.fixture
def world(sandbox: JobmonSandbox, requester: Requester, prefix: str) -> Iterator[World]:
    original = sandbox.make_workflow("new", tasks=1).workflow_id
    with contextlib.closing(sqlite3.connect(sandbox.database, timeout=30, isolation_level=None)) as database:
        yield World(sandbox, database, requester, prefix, original)

"""Every fault, for every call and transport, once, three times and for ever: see ``faults/matrix.py``."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from dev.jobmon_sandbox import JobmonSandbox
from tests.faults.matrix import (
    CALLS,
    FAULTS,
    ROUNDS,
    SECRETS,
    TRANSPORTS,
    World,
    assert_no_second_run,
    assert_right_result_or_one_typed_error,
    be_quick,
    world_of,
)

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("quick")]


@pytest.fixture(scope="module")
def world(sandbox: JobmonSandbox) -> Iterator[World]:
    with world_of(sandbox) as world:
        yield world


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    be_quick(monkeypatch)


@pytest.mark.parametrize("times", ROUNDS)
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("name", FAULTS)
async def test_right_result_or_one_typed_error(
    world: World, name: str, transport: str, times: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await assert_right_result_or_one_typed_error(world, name, transport, times, CALLS)
    assert not [secret for secret in SECRETS if secret in caplog.text]


@pytest.mark.parametrize("times", ROUNDS)
@pytest.mark.parametrize("name", FAULTS)
async def test_no_fault_leads_to_a_second_run(world: World, name: str, times: str) -> None:
    await assert_no_second_run(world, name, times)

"""A cut of the matrix of faults and calls: each fault, each call and each number of times on both transports.

The whole matrix is in ``tests/proofs/test_whole_matrix.py``.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Iterator

import pytest

from airflow_jobmon_provider.client.exceptions import ServerUnreachable
from dev.jobmon_sandbox import JobmonSandbox
from tests.faults import proxy
from tests.faults.matrix import (
    CALLS,
    DEADLINE,
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
from tests.faults.proxy import FaultProxy

SHARE = 4  # one call of so many meets a fault

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("quick")]


@pytest.fixture(scope="module")
def world(sandbox: JobmonSandbox) -> Iterator[World]:
    with world_of(sandbox) as world:
        yield world


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    be_quick(monkeypatch)


def cut() -> Iterator[tuple[str, str, str, list[str]]]:
    """Yield a fault, a transport, how many times, and the calls."""
    for (number, name), (shift, transport) in itertools.product(enumerate(FAULTS), enumerate(TRANSPORTS)):
        times = list(ROUNDS)[(number + shift) % len(ROUNDS)]
        yield name, transport, times, CALLS[(number + shift) % SHARE :: SHARE]


def test_each_pair_of_call_transport_and_number_of_times_is_in_the_cut() -> None:
    met = {(call, transport, times) for _, transport, times, calls in cut() for call in calls}
    assert met == set(itertools.product(CALLS, TRANSPORTS, ROUNDS))


@pytest.mark.parametrize(
    ("name", "transport", "times", "calls"), [pytest.param(*row, id="-".join(row[:3])) for row in cut()]
)
async def test_right_result_or_one_typed_error(
    world: World, name: str, transport: str, times: str, calls: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await assert_right_result_or_one_typed_error(world, name, transport, times, calls)
    assert not [secret for secret in SECRETS if secret in caplog.text]


@pytest.mark.parametrize(("name", "times"), zip(FAULTS, itertools.cycle(ROUNDS), strict=False))
async def test_no_fault_leads_to_a_second_run(world: World, name: str, times: str) -> None:
    await assert_no_second_run(world, name, times)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_where_nobody_listens_or_nobody_speaks_tls(world: World, transport: str, scheme: str) -> None:
    with FaultProxy(world.loop, "", proxy.swallowed, math.inf, greeting=b"220 mail.example\r\n") as mail:
        url = mail.url.replace("http", scheme)
        if scheme == "https":
            with pytest.raises(ServerUnreachable):
                await asyncio.wait_for(TRANSPORTS[transport](url, world.calls["peek_status"]), DEADLINE)
    with pytest.raises(ServerUnreachable):  # the proxy has gone
        await asyncio.wait_for(TRANSPORTS[transport](url, world.calls["peek_status"]), DEADLINE)

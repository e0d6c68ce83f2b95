"""A wait with a time-out loses no cancellation, whenever it comes."""

from __future__ import annotations

import asyncio

import pytest

from airflow_jobmon_provider.client.cancellation import wait_for


async def let_tasks_go_on(steps: int) -> None:
    for _ in range(steps):
        await asyncio.sleep(0)


@pytest.mark.parametrize("steps", range(6))
async def test_a_cancellation_that_comes_with_the_result_is_not_lost(steps: int) -> None:
    gate = asyncio.Event()

    async def goes_on() -> str:
        await wait_for(gate.wait(), 60)
        await asyncio.Event().wait()  # as a trigger would, for days
        return "unreachable"

    task = asyncio.create_task(goes_on())
    await let_tasks_go_on(3)
    gate.set()
    await let_tasks_go_on(steps)
    task.cancel()
    await asyncio.wait({task}, timeout=10)
    assert task.cancelled()


async def test_what_is_waited_for_has_ended_when_the_time_is_over() -> None:
    ended = []

    async def takes_too_long() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    with pytest.raises(asyncio.TimeoutError):
        await wait_for(takes_too_long(), 0.01)
    assert ended == [True]


async def test_what_is_waited_for_ends_with_the_one_who_waits() -> None:
    ended = []

    async def is_cancelled() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    task = asyncio.create_task(wait_for(is_cancelled(), 60))
    await let_tasks_go_on(2)
    task.cancel()
    await asyncio.wait({task}, timeout=10)
    assert task.cancelled()
    assert ended == [True]


async def test_result_and_failure_are_handed_on() -> None:
    async def returns() -> int:
        return 7

    async def fails() -> int:
        raise OSError("refused")

    assert await wait_for(returns(), 60) == 7
    with pytest.raises(OSError, match="refused"):
        await wait_for(fails(), 60)


async def test_a_failure_on_the_way_out_is_not_complained_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """asyncio logs an exception that nobody has looked at."""

    async def fails_when_cancelled() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("while ending")

    with pytest.raises(asyncio.TimeoutError):
        await wait_for(fails_when_cancelled(), 0.01)
    assert caplog.messages == []

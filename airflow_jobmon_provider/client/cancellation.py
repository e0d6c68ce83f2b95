"""``asyncio.wait_for`` without its loss of cancellations, which Python mended in 3.12."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def wait_for(coroutine: Coroutine[Any, Any, T], timeout: float) -> T:
    """Return what a coroutine returns, and end it where that takes too long.

    Before Python 3.12, ``asyncio.wait_for`` returns the result where its own task is cancelled at the moment
    in which the result comes: the task is never cancelled then (python/cpython 86296). A trigger that Airflow
    has ended would go on beating, beside the one that has taken over.

    :param coroutine: what to wait for. It has ended when this returns or raises.
    :param timeout: seconds.
    :raises asyncio.TimeoutError: no result within them.
    :raises BaseException: what the coroutine raises.
    """
    task = asyncio.ensure_future(coroutine)
    try:
        await asyncio.wait({task}, timeout=timeout)
        if task.done():
            return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # so that asyncio does not complain that nobody has looked at it
    raise asyncio.TimeoutError

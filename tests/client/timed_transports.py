"""Both transports, each as a function that sends one request with a time limit."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

from airflow_jobmon_provider.client import protocol
from airflow_jobmon_provider.client.async_requester import AsyncRequester
from airflow_jobmon_provider.client.conversations import Ask
from airflow_jobmon_provider.client.protocol import routes
from airflow_jobmon_provider.client.requester import Requester, converse
from airflow_jobmon_provider.client.settings import Settings

Asking = Callable[..., Awaitable[Any]]
LOOK = routes.is_resumable(7)
COSTLY_LOOK = dataclasses.replace(LOOK, costly=True)


def one(call: protocol.Call[Any], timeout: float | None) -> Any:
    return (yield Ask(call, timeout))


async def blocking(settings: Settings, call: protocol.Call[Any], timeout: float | None = None) -> Any:
    requester = Requester.from_settings(settings)
    try:
        return await asyncio.to_thread(converse, requester, one(call, timeout))
    finally:
        requester.close()


async def nonblocking(settings: Settings, call: protocol.Call[Any], timeout: float | None = None) -> Any:
    async with AsyncRequester(settings) as requester:
        return await requester.converse(one(call, timeout))

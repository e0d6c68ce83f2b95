"""Both transports, each as a function that sends one request, once."""

from __future__ import annotations

import asyncio
from typing import Any

from airflow_jobmon_provider.client import protocol
from airflow_jobmon_provider.client.async_requester import AsyncRequester
from airflow_jobmon_provider.client.requester import Requester, ask
from airflow_jobmon_provider.client.settings import Settings


async def blocking(settings: Settings, call: protocol.Call[Any]) -> Any:
    requester = Requester.from_settings(settings)
    try:
        return await asyncio.to_thread(ask, requester, call, tenacious=False)
    finally:
        requester.close()


async def nonblocking(settings: Settings, call: protocol.Call[Any]) -> Any:
    async with AsyncRequester(settings) as requester:
        return await requester.ask(call)

"""What all triggers of an event loop share of a host."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import weakref
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import BaseHook, Connection

from airflow_jobmon_provider.execution.async_hosts import AsyncHost
from airflow_jobmon_provider.execution.command import MARK, Command
from airflow_jobmon_provider.execution.job import Job
from airflow_jobmon_provider.execution.launchers import JobStage
from dev.submit_host import SubmitHost

ANSWERS = [b"left none taken\njob 4711|RUNNING|1:00|n1|None\n", b"the end\n"]


class _Way:
    """A way to a host, for whose answers nobody but their taker waits."""

    def __init__(self) -> None:
        self._taken = 0
        self._answer: weakref.ref[asyncio.Future[None]]

    async def run(self, command: Command[Any]) -> tuple[int, bytes, bytes]:
        answer = asyncio.get_running_loop().create_future()
        # With its taker it is a cycle, and so rubbish, if nobody else holds the task.
        self._answer = weakref.ref(answer)
        asyncio.get_running_loop().call_soon(self._collect_rubbish_and_answer)
        await answer
        return 0, MARK + ANSWERS[self._taken - 1], b""

    def _collect_rubbish_and_answer(self) -> None:
        gc.collect()
        answer = self._answer()
        assert answer is not None, "the look was lost"
        self._taken += 1
        answer.set_result(None)

    async def close(self) -> None:
        """Nothing is open."""


async def test_the_event_loop_reads_no_extra_of_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow before 3.3.2 tells its supervisor of it by a synchronous call, which fails there."""
    read_in: list[bool] = []
    with SubmitHost({}) as server:
        monkeypatch.setenv("AIRFLOW_CONN_SUBMIT_HOST", json.dumps(server.connection))
        kind: Any = type(BaseHook.get_connection("submit_host"))
        read = kind.extra_dejson.fget

        def noting(connection: Connection) -> Any:
            read_in.append(threading.current_thread() is threading.main_thread())
            return read(connection)

        monkeypatch.setattr(kind, "extra_dejson", property(noting))
        async with AsyncHost("submit_host") as host:
            said = await host.run(Command("echo here", lambda answer: answer.lines))
    assert said == ["here"]
    assert read_in
    assert not any(read_in)


async def test_a_look_is_not_lost_when_rubbish_is_collected() -> None:
    host = AsyncHost(None)
    host._way = _Way()  # type: ignore[assignment]
    async with host:
        seen, written = await asyncio.wait_for(host.look("slurm", Job("/x", "4711"), 0), 20)
    assert (seen.stage, written) == (JobStage.AT_WORK, b"")

"""Clients that beat, each in a fresh process: ``python -m benchmarks.load KIND URL …`` prints JSON.

Peers of the triggers are raw asyncio streams (the limit), one aiohttp session for all, an aiohttp session for
each call (what the dbt Cloud trigger does), and requests without a session (what Jobmon's requester does).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

MESSAGE = {"next_report_increment": 93.0, "status": "L"}
QUERY = "client_jobmon_version=benchmark"
AN_OLD_RUN = 86_400.0  # seconds: its young days, in which it is looked at more often, are over


def run_in_a_fresh_process(kind: str, url: str, **options: float) -> dict[str, Any]:
    """Run a client to its end and return what it measured."""
    with Load(kind, url, options) as load:
        return load.result()


class Load:
    """A client in a fresh process; a context manager.

    :param kind: which.
    :param url: the server's address.
    :param options: the client's.
    :param prefix: the server's route prefix.
    """

    def __init__(self, kind: str, url: str, options: Mapping[str, float], *, prefix: str = "/api/v3") -> None:
        self._kind = kind
        connection = {"conn_type": "jobmon", "host": url, "extra": {"route_prefix": prefix}}
        self._environment = {
            **os.environ,
            "AIRFLOW_CONN_JOBMON_DEFAULT": json.dumps(connection),
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
        }
        arguments = [f"{name}={value}" for name, value in options.items()]
        self._command = [sys.executable, "-m", "benchmarks.load", kind, url, *arguments]

    def __enter__(self) -> Load:
        self._written = tempfile.TemporaryFile("w+")  # no pipe, whose reader may be busy with something else
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=self._written,
            stderr=subprocess.STDOUT,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._written.close()

    def end(self) -> dict[str, Any]:
        """Tell a client that goes on until then to end, and return what it measured."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self.result()

    def result(self) -> dict[str, Any]:
        """Wait for the client's end, and return what it measured."""
        code = self._process.wait()
        self._written.seek(0)
        said = self._written.read()
        if code:
            raise RuntimeError(f"{self._kind} failed:\n{said[-4000:]}")
        measured: dict[str, Any] = json.loads(said.splitlines()[-1])
        return measured


# --- Peers --------------------------------------------------------------------------------------------------


class Pace:
    """Lets many clients beat at one interval, and counts the beats of the part of it that is measured."""

    def __init__(self, count: float, interval: float, seconds: float, settle: float) -> None:
        self.count = int(count)
        self.interval = interval
        self.seconds = seconds
        self.settle = settle
        self.beats = 0

    async def measure(self, beat: Callable[[int], Awaitable[Any]]) -> float:
        """Return heartbeats per CPU second."""

        async def client(run: int) -> None:
            await asyncio.sleep(self.interval * run / self.count)
            while True:
                await beat(run)
                self.beats += 1
                await asyncio.sleep(self.interval)

        tasks = [asyncio.create_task(client(run)) for run in range(self.count)]
        await asyncio.sleep(self.settle)
        before, cpu = self.beats, time.process_time()
        await asyncio.sleep(self.seconds)
        rate = (self.beats - before) / (time.process_time() - cpu)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return rate


def target_of(url: str, run: int) -> str:
    return f"{url}/api/v3/workflow_run/{run + 1}/log_heartbeat?{QUERY}"


async def streams(url: str, pace: Pace) -> float:
    """Beat over raw asyncio streams, a hundred of them, as fast as they can."""
    address = urlsplit(url)
    body = json.dumps(MESSAGE).encode()
    head = f"POST /api/v3/workflow_run/1/log_heartbeat?{QUERY} HTTP/1.1\r\nHost: x\r\n"
    request = head.encode() + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    opened = [await asyncio.open_connection(address.hostname, address.port) for _ in range(32)]
    beats, cpu, end = 0, time.process_time(), time.monotonic() + pace.seconds

    async def beat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal beats
        while time.monotonic() < end:
            writer.write(request)
            reply = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(reply.rpartition(b": ")[2]))
            beats += 1
        writer.close()

    await asyncio.gather(*(beat(*pair) for pair in opened))
    return beats / (time.process_time() - cpu)


async def aiohttp_session(url: str, pace: Pace) -> float:
    """Beat over one aiohttp session for all."""
    import aiohttp

    async with aiohttp.ClientSession() as session:

        async def beat(run: int) -> None:
            async with session.post(target_of(url, run), json=MESSAGE) as reply:
                await reply.json()

        return await pace.measure(beat)


async def session_per_call(url: str, pace: Pace) -> float:
    """Beat over an aiohttp session for each heartbeat."""
    import aiohttp

    async def beat(run: int) -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.post(target_of(url, run), json=MESSAGE) as reply,
        ):
            await reply.json()

    return await pace.measure(beat)


async def jobmon_requester(url: str, pace: Pace) -> float:
    """Beat as Jobmon's own requester does, requests without a session, one after the other."""
    import requests

    beats, cpu, end = 0, time.process_time(), time.monotonic() + pace.seconds
    while time.monotonic() < end:
        headers = {"Content-Type": "application/json"}
        target = target_of(url, beats)
        requests.post(target, json=MESSAGE, headers=headers, timeout=20).json()  # noqa: ASYNC210
        beats += 1
    return beats / (time.process_time() - cpu)


PEERS = {peer.__name__: peer for peer in (streams, aiohttp_session, session_per_call, jobmon_requester)}


# --- Triggers -----------------------------------------------------------------------------------------------


def maker_of_triggers(interval: float | None, age: float, empty: bool) -> Callable[[int], Any]:
    """Return what makes the trigger of a run: one that beats, or one that only sleeps.

    :param interval: None: no user has set it.
    """
    from airflow.triggers.base import BaseTrigger

    from airflow_jobmon_provider.triggers.jobmon import WorkflowRunHeartbeatTrigger

    class EmptyTrigger(BaseTrigger):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]

        def serialize(self) -> Any:
            raise NotImplementedError

        async def run(self) -> Any:
            await asyncio.sleep(86_400)
            yield None

    def make(run: int) -> Any:
        if empty:
            return EmptyTrigger()
        return WorkflowRunHeartbeatTrigger(
            workflow_run_id=run + 1,
            workflow_run_heartbeat_interval=interval,
            heartbeat_report_by_buffer=3.1,
            created_at=time.time() - age,
        )

    return make


async def triggers(
    url: str,
    count: float,
    interval: float,
    seconds: float,
    settle: float = 0.0,
    empty: float = 0,
    age: float = AN_OLD_RUN,
    sample: float = 0.01,
) -> dict[str, float]:
    """Run many heartbeat triggers, or empty ones that only sleep, on one event loop.

    CPU time is counted from ``settle`` seconds after the start on, or with it. The lag of the loop is how
    late sleeps of ``sample`` seconds end.
    """
    make = maker_of_triggers(interval, age, bool(empty))
    lags: list[tuple[float, float]] = []
    wall, cpu = time.perf_counter(), time.process_time()
    sampler = asyncio.create_task(take_samples(lags, sample))
    tasks = []
    for run in range(int(count)):
        await asyncio.sleep(0)  # before each, as Airflow's TriggerRunner.create_triggers() does
        tasks.append(asyncio.create_task(consume(make(run))))
    if settle:
        await asyncio.sleep(settle)
        cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.sleep(seconds)
    measured = {
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - wall,
        "ended": sum(task.done() for task in tasks),
        "rss_kib": resident_kib(),
        "lag_p99_ms": 1000 * quantile([lag for at, lag in lags], 0.99),
        "start_lag_p99_ms": 1000 * quantile([lag for at, lag in lags if at < 10], 0.99),
    }
    for task in [sampler, *tasks]:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks, return_exceptions=True)
    return measured


async def consume(trigger: Any) -> None:
    """Run a trigger to its event."""
    async for _ in trigger.run():
        pass


async def waiting(url: str, count: float) -> dict[str, Any]:
    """Run the triggers of runs that have waited for a day, at the default interval, until told to end.

    :returns: when each heartbeat was due and when its reply came; infinite: there was none.
    """
    from airflow_jobmon_provider.client.async_requester import AsyncRequester

    beats: list[tuple[float, float]] = []
    ask = AsyncRequester.ask

    async def timed(self: AsyncRequester, call: Any, timeout: float | None = None) -> Any:
        due, replied = time.time(), math.inf
        try:
            reply = await ask(self, call, timeout)
            replied = time.time()
            return reply
        finally:
            beats.append((due, replied))

    AsyncRequester.ask = timed  # type: ignore[method-assign]
    make = maker_of_triggers(None, AN_OLD_RUN, empty=False)
    tasks = [asyncio.create_task(consume(make(run))) for run in range(int(count))]
    await asyncio.to_thread(sys.stdin.read)
    measured = {"beats": list(beats), "ended": sum(task.done() for task in tasks)}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return measured


async def take_samples(lags: list[tuple[float, float]], sample: float) -> None:
    """Add when each sleep of ``sample`` seconds began, from now on, and how late it ended."""
    started = time.perf_counter()
    while True:
        before = time.perf_counter()
        await asyncio.sleep(sample)
        lags.append((before - started, time.perf_counter() - before - sample))


async def beats_behind_counts(url: str, counts: float, beats: float) -> dict[str, float]:
    """Ask for many counts of tasks at once, which hang, and time heartbeats that are sent meanwhile.

    Each waits at most as long as its reply takes.
    """
    from airflow_jobmon_provider.client.async_requester import AsyncRequester
    from airflow_jobmon_provider.client.lifecycle import RunStatus
    from airflow_jobmon_provider.client.protocol import routes
    from airflow_jobmon_provider.client.settings import Settings

    settings = Settings(f"{url}/api/v3")
    async with contextlib.AsyncExitStack() as stack:

        async def requester() -> AsyncRequester:
            return await stack.enter_async_context(AsyncRequester(settings))

        counting = [
            asyncio.create_task((await requester()).ask(routes.task_counts(workflow + 1)))
            for workflow in range(int(counts))
        ]
        await asyncio.sleep(1)
        waits = []
        for run in range(int(beats)):
            beating = await requester()
            before = time.perf_counter()
            await beating.ask(routes.log_heartbeat(run + 1, RunStatus.LINKING, 93.0))
            waits.append(time.perf_counter() - before)
        ended = sum(task.done() for task in counting)
        for task in counting:
            task.cancel()
        await asyncio.gather(*counting, return_exceptions=True)
    return {"wait_max_ms": 1000 * max(waits), "ended": ended}


def resident_kib() -> float:
    """Memory of this process that is resident."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024


def processor_seconds(pid: int) -> float:
    """CPU time that a process has used, in all its threads."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def quantile(values: list[float], share: float) -> float:
    """Return the value below which a share of all are."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


async def main(kind: str, url: str, options: dict[str, float]) -> dict[str, Any]:
    """Run one client."""
    if kind == "triggers":
        return await triggers(url, **options)
    if kind == "waiting":
        return await waiting(url, **options)
    if kind == "beats_behind_counts":
        return await beats_behind_counts(url, **options)
    import airflow.triggers.base  # noqa: F401  # peers, too, live in a triggerer, whose heap is large

    return {"beats_per_cpu_second": await PEERS[kind](url, Pace(**options))}


if __name__ == "__main__":
    given = dict(argument.split("=") for argument in sys.argv[3:])
    result = asyncio.run(
        main(sys.argv[1], sys.argv[2], {name: float(value) for name, value in given.items()})
    )
    print(json.dumps(result))

"""Faults and calls, on real sockets and a real Jobmon, and what is right whichever of them meet.

Each exchange recovers with the right result or ends in one typed error, within its deadline. Never a hang, a
wrong success, a second run, an unbounded read, or a credential in a message or a log. ``test_matrix.py`` has
a cut of the matrix, ``tests/proofs/test_whole_matrix.py`` all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from typing import Any

import pytest

from airflow_jobmon_provider.client import protocol, settings
from airflow_jobmon_provider.client.async_requester import AsyncRequester
from airflow_jobmon_provider.client.conversations import Conversation, Outage, Pause
from airflow_jobmon_provider.client.exceptions import (
    InvalidRequest,
    JobmonError,
    NotAuthorized,
    ServerFailure,
    ServerUnreachable,
    UnreadableReply,
)
from airflow_jobmon_provider.client.protocol import Call
from airflow_jobmon_provider.client.requester import Requester, ask
from airflow_jobmon_provider.client.settings import Settings
from airflow_jobmon_provider.client.workflow_run import WorkflowRunFactory
from dev.jobmon_sandbox import JobmonSandbox
from tests.faults import proxy as faults
from tests.faults.proxy import Fault, FaultProxy, Loop
from tests.routes import ROUTES, Ids
from tests.stub_server import StubServer

TIMEOUT = 1.0
TRIES = 6  # three are spoilt, and a busy machine may let others take too long
DEADLINE = TRIES * 2 * TIMEOUT + 5  # with room for a busy machine
SECRETS = ("Bearer-s3cr3t-9b1f", "key-7c22e0")
HEADERS = {"Authorization": SECRETS[0], "X-Api-Key": SECRETS[1]}
ROUNDS = {"once": 1, "three_times": 3, "for_ever": math.inf}


class Means(Enum):
    """What a fault means to whoever asked."""

    NOTHING = ()
    TRY_AGAIN = (ServerFailure, ServerUnreachable)
    REFUSED = (InvalidRequest,)
    NOT_AUTHORIZED = (NotAuthorized,)
    NOT_JOBMON = (UnreadableReply,)
    ANY = (JobmonError,)


HTML = b"<!doctype html><html><title>Sign in</title></html>"
LATER = "Retry-After: 1"

FAULTS: dict[str, tuple[Fault, Means]] = {
    "reset before the reply": (faults.reset_before, Means.TRY_AGAIN),
    "reset within the reply": (faults.reset_within, Means.TRY_AGAIN),
    "reset after the reply": (faults.reset_after, Means.NOTHING),
    "reply swallowed": (faults.swallowed, Means.TRY_AGAIN),
    "delayed beyond the time-out": (faults.delayed, Means.TRY_AGAIN),
    "dripping": (faults.dripping, Means.TRY_AGAIN),
    "cut short": (faults.cut_short, Means.TRY_AGAIN),
    "500": (faults.status("500 Internal Server Error"), Means.TRY_AGAIN),
    "500 in HTML": (faults.status("500 Internal Server Error", HTML), Means.TRY_AGAIN),
    "502": (faults.status("502 Bad Gateway", HTML), Means.TRY_AGAIN),
    "503": (faults.status("503 Service Unavailable", HTML), Means.TRY_AGAIN),
    "503 with Retry-After": (faults.status("503 Service Unavailable", b"", LATER), Means.TRY_AGAIN),
    "503 with a date": (
        faults.status("503 Busy", b"", "Retry-After: Fri, 31 Dec 2100 23:59:59 GMT"),
        Means.TRY_AGAIN,
    ),
    "503 with nonsense": (faults.status("503 Busy", b"", "Retry-After: -1e999"), Means.TRY_AGAIN),
    "504": (faults.status("504 Gateway Timeout"), Means.TRY_AGAIN),
    "423": (faults.status("423 Locked"), Means.TRY_AGAIN),
    "423 with Retry-After": (faults.status("423 Locked", b"{}", LATER), Means.TRY_AGAIN),
    "429": (faults.status("429 Too Many Requests"), Means.TRY_AGAIN),
    "429 with Retry-After": (faults.status("429 Too Many Requests", b"{}", LATER), Means.TRY_AGAIN),
    "301": (faults.status("301 Moved Permanently", b"", "Location: ELSEWHERE"), Means.REFUSED),
    "302": (faults.status("302 Found", b"", "Location: ELSEWHERE"), Means.REFUSED),
    "307": (faults.status("307 Temporary Redirect", b"", "Location: ELSEWHERE"), Means.REFUSED),
    "308": (faults.status("308 Permanent Redirect", b"", "Location: ELSEWHERE"), Means.REFUSED),
    "401": (faults.status("401 Unauthorized"), Means.NOT_AUTHORIZED),
    "403": (faults.status("403 Forbidden", HTML), Means.NOT_AUTHORIZED),
    "404": (faults.status("404 Not Found", b'{"detail": "Not Found"}'), Means.ANY),
    "422": (faults.status("422 Unprocessable Entity"), Means.REFUSED),
    "HTML": (faults.saying(HTML, "text/html"), Means.NOT_JOBMON),
    "nothing": (faults.saying(b""), Means.NOT_JOBMON),
    "invalid JSON": (faults.saying(b'{"status": "L"'), Means.NOT_JOBMON),
    "deep JSON": (faults.saying(b"[" * 100_000), Means.NOT_JOBMON),
    "no UTF-8": (faults.saying(b'{"status": "\xff"}'), Means.NOT_JOBMON),
    "null": (faults.saying(b"null"), Means.NOT_JOBMON),
    "a number": (faults.saying(b"3"), Means.NOT_JOBMON),
    "a text": (faults.saying(b'"L"'), Means.NOT_JOBMON),
    "a list of nothing": (faults.saying(b"[[]]"), Means.NOT_JOBMON),
    "another object": (faults.saying(b'{"status": null, "1": {}}'), Means.ANY),
    "a length too short": (
        faults.replying(b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{"status": "L"}'),
        Means.ANY,
    ),
    "an impossible length": (
        faults.replying(b'HTTP/1.1 200 OK\r\nContent-Length: -7\r\n\r\n{"status": "L"'),
        Means.ANY,
    ),
    "invalid chunks": (
        faults.replying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n"),
        Means.TRY_AGAIN,
    ),
    "invalid packing": (
        faults.status("200 OK", b"not gzip", "Content-Encoding: gzip"),
        Means.NOT_JOBMON,
    ),
    "garbage": (faults.replying(bytes(range(256)) * 8 + b"\r\n\r\n"), Means.TRY_AGAIN),
    "a gigabyte": (faults.endless, Means.ANY),
    "a gigabyte in chunks": (faults.endless_chunks, Means.ANY),
    "headers without end": (faults.endless_head, Means.TRY_AGAIN),
}

CALLS = [name for name, row in ROUTES.items() if row.repeatable]
"""The calls that a fault may meet: those that have the same answer each time."""

# What looks like an answer of Jobmon's to these calls, and cannot be told from one.
RIGHT_BY_CHANCE = {("another object", row.name) for row in ROUTES.values() if row.says_nothing}


@dataclass
class World:
    """A Jobmon, calls that always have the same answer there, and workflows for those that create."""

    sandbox: JobmonSandbox
    calls: dict[str, Call[Any]]
    answers: dict[str, Any]
    fresh: Iterator[int]
    loop: Loop
    elsewhere: StubServer


@contextlib.contextmanager
def world_of(sandbox: JobmonSandbox) -> Iterator[World]:
    """Prepare what the calls ask about."""
    failed = sandbox.make_workflow_in("E")
    at_rest, ended = failed.workflow_id, failed.workflow_run_id
    linking = sandbox.make_workflow_in("L").workflow_run_id
    assert ended is not None
    assert linking is not None
    (task,) = sandbox.query("SELECT min(id) FROM task WHERE workflow_id = ?", at_rest)[0]
    ids = Ids(at_rest, run=linking, ended_run=ended, task=task)
    asked = {name: ROUTES[name] for name in CALLS}
    calls = {name: row.call(ids) for name, row in asked.items()}
    requester = Requester(f"{sandbox.url}/api/v3", retries_timeout=0)
    for name, row in asked.items():
        if row.changes:  # once, so that there is nothing more to change
            ask(requester, calls[name])
    answers = {name: ask(requester, call) for name, call in calls.items()}
    requester.close()
    loop, elsewhere = Loop(), StubServer({})
    fresh = iter(sandbox.copy_workflow(sandbox.make_workflow("new", tasks=1).workflow_id, 500))
    yield World(sandbox, calls, answers, fresh, loop, elsewhere)
    loop.close()
    elsewhere.close()


def persistent(call: Call[Any]) -> Conversation[Any]:
    """Ask as whoever waits in asyncio does: again, if the server failed for now."""
    outage = Outage("fault", time.monotonic)
    for _ in range(TRIES):
        reply = yield from outage.ask(call)
        if outage.error is None:
            return reply
        if call.costly and not protocol.was_not_processed(outage.error):
            break  # the server may still be at work on it
        yield Pause(0.001)
    assert outage.error is not None
    raise outage.error


def settings_for(url: str) -> Settings:
    return Settings(
        f"{url}/api/v3",
        retries_timeout=60,
        retries_attempts=TRIES,
        request_timeout=TIMEOUT,
        headers=HEADERS,
    )


async def nonblocking(url: str, call: Call[Any]) -> Any:
    async with AsyncRequester(settings_for(url)) as requester:
        return await requester.converse(persistent(call) if call.idempotent else _once(call))


def _once(call: Call[Any]) -> Conversation[Any]:
    outage = Outage("fault", time.monotonic)
    reply = yield from outage.ask(call)
    if outage.error is not None:
        raise outage.error
    return reply


THREADS = ThreadPoolExecutor(32)


async def blocking(url: str, call: Call[Any]) -> Any:
    def run() -> Any:
        requester = Requester.from_settings(settings_for(url))
        try:
            return ask(requester, call)
        finally:
            requester.close()

    return await asyncio.get_running_loop().run_in_executor(THREADS, run)


async def creating(url: str, workflow_id: int) -> Any:
    def run() -> Any:
        requester = Requester.from_settings(settings_for(url))
        try:
            factory = WorkflowRunFactory(workflow_id, requester)
            factory.workflow_is_resumable = True
            return factory.create_workflow_run().workflow_run_id
        finally:
            requester.close()

    return await asyncio.get_running_loop().run_in_executor(THREADS, run)


TRANSPORTS = {"blocking": blocking, "asyncio": nonblocking}


def be_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let retries wait no time, and costly calls not for minutes."""
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    monkeypatch.setattr(settings, "COSTLY_TIMEOUT", 3 * TIMEOUT)  # they have one try


@dataclass
class Outcome:
    """What became of one exchange."""

    value: Any
    error: BaseException | None
    requests: int
    most_sent: int


async def outcome_of(world: World, fault: Fault, times: float, run: Callable[[str], Any]) -> Outcome:
    with FaultProxy(world.loop, world.sandbox.url, fault, times, elsewhere=world.elsewhere.url) as proxy:
        value, error = None, None
        try:
            value = await asyncio.wait_for(run(proxy.url), DEADLINE)
        except JobmonError as known:
            error = known
        return Outcome(value, error, proxy.requests, proxy.most_sent)


async def assert_right_result_or_one_typed_error(
    world: World, name: str, transport: str, times: str, labels: Iterable[str]
) -> None:
    """Let a fault meet these calls, all at the same time."""
    fault, means = FAULTS[name]
    run = TRANSPORTS[transport]

    async def check(label: str) -> str | None:
        call = world.calls[label]
        outcome = await outcome_of(world, fault, ROUNDS[times], lambda url: run(url, call))
        return judge(name, label, call, means, ROUNDS[times], outcome, world.answers[label])

    found = await asyncio.gather(*(check(label) for label in labels))
    problems = [problem for problem in found if problem]
    assert not problems, "\n".join(problems)
    assert not world.elsewhere.requests


def judge(
    name: str, label: str, call: Call[Any], means: Means, times: float, outcome: Outcome, right: Any
) -> str | None:
    """Return what is wrong with an outcome; None: nothing."""
    error = outcome.error
    said = f"{label}: {type(error).__name__} {error}" if error else f"{label}: {outcome.value!r}"
    if any(secret in str(error) for secret in SECRETS):
        return f"tells a secret: {said}"
    if outcome.most_sent > faults.GIGABYTE // 2:
        return f"reads without end: {said}"
    if error is None and outcome.value != right and (name, label) not in RIGHT_BY_CHANCE:
        return f"wrong success: {said}"
    if len(str(error or "")) > 1000 or not str(error or "").isprintable():
        return f"more than a line: {said}"
    if (name, label) in RIGHT_BY_CHANCE:
        return None
    unread = name.startswith(("423", "429"))  # the server has said that it has done nothing
    if error is None and outcome.requests > times and (unread or (call.idempotent and not call.costly)):
        return None  # whatever came first, it has asked again and heard
    if call.costly and outcome.requests > 1 and not unread:
        return f"sent again while the server may be at work on it: {said}"
    repeats = means is Means.TRY_AGAIN and call.idempotent and (unread or not call.costly)
    recovers = means is Means.NOTHING or (repeats and times < TRIES)
    if recovers and error is not None:
        return f"does not recover: {said}"
    if not recovers and not isinstance(error, means.value or JobmonError):
        return f"unexpected end: {said}"
    if means not in (Means.TRY_AGAIN, Means.ANY) and outcome.requests > 2:
        return f"asks again what is final: {said}"
    return None


async def assert_no_second_run(world: World, name: str, times: str) -> None:
    """Let a fault meet the creation of a run."""
    fault, means = FAULTS[name]
    workflow = next(world.fresh)
    outcome = await outcome_of(world, fault, ROUNDS[times], lambda url: creating(url, workflow))
    runs = [run for run, _ in world.sandbox.runs(workflow)]
    if outcome.error is None:
        assert runs == [outcome.value]
    else:
        assert len(runs) <= 1
        assert means is not Means.NOTHING
        assert isinstance(outcome.error, (*means.value, JobmonError))
    assert not world.elsewhere.requests

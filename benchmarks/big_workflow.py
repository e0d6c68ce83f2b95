"""What the calls that cost O(tasks) come to on a workflow of a million tasks: a real Jobmon on MariaDB.

SQLite would not do: Jobmon in production runs on MySQL or MariaDB, and there these calls take up to half a
minute. Where no MariaDB answers, this part says so and has no figures.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.figures import Figures
from dev.jobmon_sandbox import JobmonSandbox
from dev.services import ServiceMissing, mariadb_database

if TYPE_CHECKING:
    from airflow_jobmon_provider.client.protocol import Call

DOUBLINGS, QUICK_DOUBLINGS = 20, 12
_COLUMNS = (
    "workflow_id, node_id, task_args_hash, array_id, name, command, task_resources_id, num_attempts,"
    " max_attempts, resource_scales, fallback_queues, status, status_date"
)


def big_workflow(figures: Figures, *, quick: bool) -> None:
    """Count and list the tasks, blocking and in asyncio, and reset all of them: all with default time-outs.

    Checked is that each call is one request, that none times out, and that what it says or does is right.
    """
    try:
        with mariadb_database() as uri, JobmonSandbox(database_uri=uri) as sandbox:
            _measure(figures, sandbox, QUICK_DOUBLINGS if quick else DOUBLINGS)
    except (ServiceMissing, ImportError) as error:
        print(f"big_workflow: not measured: {error}", flush=True)


def _measure(figures: Figures, sandbox: JobmonSandbox, doublings: int) -> None:
    from airflow_jobmon_provider.client import protocol
    from airflow_jobmon_provider.client.protocol import routes
    from airflow_jobmon_provider.client.requester import Requester, ask

    started = time.perf_counter()
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    tasks = _multiply_tasks(sandbox, workflow_id, doublings)
    print(f"big_workflow: {tasks} tasks in {time.perf_counter() - started:.0f} s", flush=True)
    requester = Requester(f"{sandbox.url}/api/v2")
    before = len(sandbox.requests())

    def block(call: protocol.Call[Any]) -> Any:
        return ask(requester, call)

    newest = sandbox.query("SELECT max(id) FROM task WHERE workflow_id = ?", workflow_id)[0][0]
    with _Stopwatch() as timed:
        for send in (block, lambda call: asyncio.run(_ask(requester.service_url, call))):
            counts = timed(routes.task_counts(workflow_id), send)
            assert counts is None or (counts.total, counts.fatal) == (tasks, tasks), counts
            failed = timed(routes.failed_tasks(workflow_id, 5), send)
            last = [newest - n for n in range(5)]
            assert failed is None or [task.task_id for task in failed] == last, failed
        timed(routes.set_resume_state(workflow_id, True), block)
    left = sandbox.query("SELECT count(*) FROM task WHERE workflow_id = ? AND status <> 'G'", workflow_id)
    assert timed.timeouts.seen or left == [(0,)], left
    requester.close()
    paths = [request.path for request in sandbox.requests()[before:]]
    figures.add("big_workflow_requests", timed.most_requests_a_call(paths), "requests", at_most=1)
    figures.add("big_workflow_timeouts", timed.timeouts.seen, at_most=0)
    figures.add("big_workflow_slowest_s", timed.slowest, "s")


class _Stopwatch:
    """Sends calls, and notes how long each took.

    :ivar slowest: seconds of the slowest one.
    :ivar timeouts: those that were seen.
    """

    def __init__(self) -> None:
        self.slowest = 0.0
        self.timeouts = _TimeOuts()
        self._asked: list[str] = []

    def __enter__(self) -> _Stopwatch:
        logging.getLogger("airflow_jobmon_provider").addHandler(self.timeouts)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("airflow_jobmon_provider").removeHandler(self.timeouts)

    def __call__(self, call: Call[Any], send: Callable[[Call[Any]], Any]) -> Any:
        """Send a call and return what its reply says; None: there was none."""
        from airflow_jobmon_provider.client.exceptions import ServerUnreachable

        started = time.perf_counter()
        self._asked.append(call.route)
        try:
            return send(call)
        except ServerUnreachable as error:
            self.timeouts.count(str(error))
            return None
        finally:
            took = time.perf_counter() - started
            self.slowest = max(self.slowest, took)
            print(f"big_workflow: {call.verb} {call.route} took {took:.1f} s", flush=True)

    def most_requests_a_call(self, paths: Sequence[str]) -> float:
        """Return how many requests there were for each call, for the route where they were most."""
        sent = {route: sum(path.endswith(route) for path in paths) for route in self._asked}
        return max(count / self._asked.count(route) for route, count in sent.items())


class _TimeOuts(logging.Handler):
    """Counts time-outs: those that a requester tells before it tries again, and those that end a call."""

    seen = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count(record.getMessage())

    def count(self, said: str) -> None:
        self.seen += "no reply within" in said
        print(f"big_workflow: {said}", flush=True)


async def _ask(service_url: str, call: Any) -> Any:
    from airflow_jobmon_provider.client.async_requester import AsyncRequester
    from airflow_jobmon_provider.client.settings import Settings

    async with AsyncRequester(Settings(service_url)) as requester:
        return await requester.ask(call)


def _multiply_tasks(sandbox: JobmonSandbox, workflow_id: int, doublings: int) -> int:
    """Double a workflow's tasks in the database so many times, as fast as MariaDB can; return the count."""
    copy = f"INSERT INTO task ({_COLUMNS}) SELECT {_COLUMNS} FROM task WHERE workflow_id = ?"  # noqa: S608
    for _ in range(doublings):
        sandbox.change(copy, workflow_id)
    count: int = sandbox.query("SELECT count(*) FROM task WHERE workflow_id = ?", workflow_id)[0][0]
    return count

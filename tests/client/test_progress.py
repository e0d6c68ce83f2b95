"""Progress and failures in simulated time, and one of each against the real Jobmon on both transports."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_jobmon_provider.client.async_requester import AsyncRequester
from airflow_jobmon_provider.client.conversations import (
    MAX_FAILURE_TEXT,
    Conversation,
    Explanation,
    ProgressWatch,
    RunEnd,
    RunOutcome,
    advice_on_end,
    count_tasks,
    explain_failure,
    progress_pause,
    reason_of,
    watch_run,
)
from airflow_jobmon_provider.client.conversations import progress as progress_module
from airflow_jobmon_provider.client.exceptions import ServerFailure, ServerUnreachable, UnreadableReply
from airflow_jobmon_provider.client.heartbeat import Heartbeat, KeepAlive
from airflow_jobmon_provider.client.lifecycle import RunStatus
from airflow_jobmon_provider.client.protocol import Call, TaskCounts
from airflow_jobmon_provider.client.requester import Requester, converse
from airflow_jobmon_provider.client.settings import Settings
from dev.jobmon_sandbox import JobmonSandbox, SandboxWorkflow
from tests.client.simulation import Simulation

DOWN = ServerUnreachable("GET http://jobmon: no reply within 20 s")
TALLY = "412/1000 done, 30 running, 0 scheduled, 556 pending, 2 failed"


def low(low: float, high: float) -> float:
    return low


# --- progress_pause -----------------------------------------------------------------------------------------

sizes = st.integers(0, 10**8)
times = st.floats(0, 10**7)


@given(sizes, times, times)
def test_the_pause_is_a_minute_at_least_and_ten_at_most_unless_the_server_is_slow(
    total: int, since_change: float, took: float
) -> None:
    pause = progress_pause(total, since_change, took, low)
    assert 60 <= pause <= max(600, min(200 * took, 3600))


@given(sizes, sizes, times, times, times, times)
def test_what_is_larger_quieter_or_slower_is_not_asked_more_often(
    total: int, more: int, quiet: float, longer: float, took: float, slower: float
) -> None:
    pause = progress_pause(total, quiet, took, low)
    assert progress_pause(total + more, quiet + longer, took + slower, low) >= pause


@pytest.mark.parametrize(
    ("total", "since_change", "took", "pause"),
    [
        (0, 0, 0, 60),
        (1000, 0, 0.006, 60),
        (5000, 0, 0.02, 300),
        (100_000, 0, 0.5, 600),
        (10, 1200, 0, 300),
        (10, 86_400, 0, 600),
        (10, 0, 4, 800),
        (10, 0, 60, 3600),
    ],
)
def test_a_pause_between_counts_follows_the_rule(
    total: int, since_change: float, took: float, pause: float
) -> None:
    assert progress_pause(total, since_change, took, low) == pytest.approx(pause)
    assert progress_pause(total, since_change, took, lambda low, high: high) == pytest.approx(1.1 * pause)


# --- ProgressWatch ------------------------------------------------------------------------------------------


class Jobmon:
    """A simulated server with one run of workflow 7.

    :param ends: seconds after the start at which the run is DONE; RUNNING before.
    :param counts: what the counting route replies at so many seconds after the start.
    """

    def __init__(self, ends: float, counts: Callable[[float], Any], starts: float = 0) -> None:
        self.starts = starts
        self.ends = ends
        self.counts = counts
        self.counted: list[float] = []

    def __call__(self, call: Call[Any], now: float) -> Any:
        now -= 1000
        if call.route == "/workflow_status_viz":
            self.counted.append(now)
            return self.counts(now)
        if now < self.starts:
            return {"status": "B"}
        return {"status": "R" if now < self.ends else "D"}


def counts(done: int, total: int = 1000, running: int = 30, fatal: int = 2) -> dict[str, Any]:
    pending = total - done - running - fatal
    row = {
        "tasks": total,
        "PENDING": pending,
        "SCHEDULED": 0,
        "RUNNING": running,
        "DONE": done,
        "FATAL": fatal,
    }
    return {"7": row}


def watch(sim: Simulation, **options: Any) -> RunEnd:
    conversation = watch_run(
        5,
        keep_alive=KeepAlive.UNTIL_BOUND,
        heartbeat=Heartbeat(),
        poll_interval=60,
        clock=sim.clock,
        progress=ProgressWatch(7, sim.clock, age=options.get("age", 0.0)),
        **options,
    )
    return sim.run(conversation)


def progress_lines(sim: Simulation) -> list[str]:
    return [text for _, text in sim.notes if text.startswith("workflow 7")]


def test_a_run_tells_how_far_its_tasks_are() -> None:
    jobmon = Jobmon(3600, lambda now: counts(int(now // 4)))
    sim = Simulation(jobmon, latency=0.01)
    assert watch(sim).outcome is RunOutcome.DONE
    lines = progress_lines(sim)
    assert lines[0].startswith("workflow 7: ")
    assert re.search(r": \d+/1000 done, 30 running, 0 scheduled, \d+ pending, 2 failed$", lines[0])
    assert 25 <= len(lines) <= 60
    gaps = [b - a for a, b in zip(jobmon.counted, jobmon.counted[1:], strict=False)]
    assert min(gaps) >= 60
    assert {level for level, text in sim.notes} == {logging.INFO}


def test_a_line_is_told_only_if_it_says_something_new() -> None:
    sim = Simulation(Jobmon(7200, lambda now: counts(412)))
    watch(sim)
    assert progress_lines(sim) == [f"workflow 7: {TALLY}"]


def test_a_quiet_workflow_is_asked_less() -> None:
    jobmon = Jobmon(86_400, lambda now: counts(412))
    watch(Simulation(jobmon))
    assert len([at for at in jobmon.counted if at > 3600]) <= (86_400 - 3600) / 600


def test_a_large_workflow_costs_the_server_a_thousand_rows_a_minute() -> None:
    jobmon = Jobmon(36_000, lambda now: counts(int(now // 10), total=8000))
    watch(Simulation(jobmon))
    assert len(jobmon.counted) * 8000 <= 1000 * 36_000 / 60 + 8000


def test_nothing_is_counted_unless_the_run_is_running() -> None:
    jobmon = Jobmon(7300, lambda now: counts(412), starts=7200)
    watch(Simulation(jobmon))
    assert min(jobmon.counted) >= 7200
    assert len([at for at in jobmon.counted if at >= 7300]) <= 1  # which may be the first to see the end


def test_progress_costs_no_request_of_its_own() -> None:
    def requests(jobmon: Jobmon, **options: Any) -> list[float]:
        sim = Simulation(jobmon)
        conversation = watch_run(
            5,
            keep_alive=KeepAlive.NEVER,
            heartbeat=Heartbeat(),
            poll_interval=60,
            clock=sim.clock,
            uniform=low,
            progress=ProgressWatch(7, sim.clock) if options else None,
        )
        sim.run(conversation)
        return [at for at, _ in sim.asked if at < 8200]

    jobmon = Jobmon(7200, lambda now: counts(412))
    with_progress = requests(jobmon, progress=True)
    assert with_progress == requests(Jobmon(7200, lambda now: counts(412)))
    assert len(jobmon.counted) > 10


def test_many_old_runs_that_are_taken_over_are_not_all_counted_at_once() -> None:
    first = []
    for _ in range(50):
        jobmon = Jobmon(1800, lambda now: counts(412))
        watch(Simulation(jobmon), age=86_400)
        first.append(jobmon.counted[0])
    assert min(first) >= 300
    assert max(first) - min(first) > 120


@pytest.mark.parametrize("error", [DOWN, ServerFailure("500"), UnreadableReply("html")])
def test_a_failure_to_count_disturbs_nothing_and_is_told_once(error: Exception) -> None:
    jobmon = Jobmon(7200, lambda now: counts(412) if 3000 < now < 4000 else error)
    sim = Simulation(jobmon, latency=0.1)
    end = watch(sim)
    assert end.outcome is RunOutcome.DONE
    assert not sim.warnings
    assert progress_lines(sim) == [
        f"workflow 7: its tasks could not be counted; the watch goes on: {error}",
        f"workflow 7: {TALLY}",
    ]


def test_at_a_deadline_nothing_is_counted_any_more() -> None:
    jobmon = Jobmon(7200, lambda now: counts(412))
    sim = Simulation(jobmon)
    assert watch(sim, timeout=1000).outcome is RunOutcome.TIMEOUT
    assert sim.now == pytest.approx(2000)
    assert max(jobmon.counted) < 1000


# --- explain_failure ----------------------------------------------------------------------------------------


class Failed:
    """A simulated server with a failed workflow.

    :param errors: what each task's error is, by task id; an exception is raised.
    """

    def __init__(
        self, errors: dict[int, Any], *, name: str = "fit", tally: Any = None, table: Any = None
    ) -> None:
        self.errors = errors
        self.name = name
        self.tally = tally or counts(412, running=0, fatal=len(errors))
        self.table = table

    def __call__(self, call: Call[Any], now: float) -> Any:
        if call.route == "/workflow_status_viz":
            return self.tally
        if call.route == "/workflow/7/workflow_tasks":
            ids = {str(row): task for row, task in enumerate(self.errors)}
            names = dict.fromkeys(ids, self.name)
            return self.table or {"workflow_tasks": json.dumps({"TASK_ID": ids, "TASK_NAME": names})}
        error = self.errors[int(call.route.split("/")[2])]
        return error if isinstance(error, Exception) else {"error_description": error}


def explain(jobmon: Failed, **options: Any) -> Explanation:
    return Simulation(jobmon).run(explain_failure(7, **options))


def test_a_failure_names_tasks_and_the_ends_of_their_errors_the_last_line_first() -> None:
    failure = explain(Failed({12: "Traceback:\n  File x\nValueError: no data", 11: ""}), lines=2)
    assert failure.counts == TaskCounts(1000, 586, 0, 0, 412, 2)
    assert failure.text.splitlines() == [
        "1 × ValueError: no data (task 12 'fit')",
        "      File x",
        "1 × no error was kept (task 11 'fit')",
    ]


def test_tasks_with_the_same_error_are_told_together_the_most_frequent_first() -> None:
    missing = "Traceback:\nFileNotFoundError: /data/loc-{}.csv"
    errors = {1: "MemoryError", **{task: missing.format(task) for task in range(2, 14)}}
    assert explain(Failed(errors)).text.splitlines() == [
        "12 × FileNotFoundError: /data/loc-2.csv (e.g. task 2 'fit')",
        "    Traceback:",
        "1 × MemoryError (task 1 'fit')",
    ]


def test_tasks_whose_errors_were_not_asked_for_are_counted() -> None:
    jobmon = Failed(dict.fromkeys(range(1, 28), "why"))
    sim = Simulation(jobmon)
    text = sim.run(explain_failure(7)).text
    assert text.splitlines() == ["20 × why (e.g. task 1 'fit')", "… and 7 more failed tasks"]
    assert len(sim.asked) == 22
    assert explain(jobmon, limit=0).text == "27 failed tasks"
    one = explain(Failed(dict.fromkeys(range(1, 22), "why"))).text
    assert one.endswith("… and 1 more failed task")


def test_so_many_tasks_and_lines_as_asked_for() -> None:
    errors = {task: "\n".join("abcdefghijk") + f"\n{'x' * task}" for task in range(1, 5)}
    text = explain(Failed(errors)).text
    assert text.count("    k") == 4
    assert "    c" in text
    assert "    b" not in text
    sim = Simulation(Failed(errors))
    assert sim.run(explain_failure(7, limit=2, lines=0)).text.splitlines() == [
        "2 × no error was kept (e.g. task 1 'fit')",
        "… and 2 more failed tasks",
    ]
    assert len(sim.asked) == 2


@given(
    st.lists(st.text(max_size=3000) | st.just("ж" * 5000) | st.just("line\n" * 500), max_size=60),
    st.text(max_size=300) | st.just("名" * 300),
    st.integers(0, 60),
)
@settings(deadline=None)
def test_whatever_the_server_says_the_text_is_short_and_printable(
    errors: list[str], name: str, limit: int
) -> None:
    failure = explain(Failed(dict(enumerate(errors, 1)), name=name), limit=limit)
    assert len(failure.text.encode()) <= MAX_FAILURE_TEXT
    assert failure.text.replace("\n", "").isprintable()


def test_each_error_gets_its_share_and_its_end_stays() -> None:
    text = explain(
        Failed({task: "a" * 150 + "\n" + "\n".join(["b" * 150] * 20 + ["c" * task]) for task in range(1, 6)})
    ).text
    assert [f"1 × {'c' * task} (task {task} 'fit')" in text for task in range(1, 6)] == [True] * 5
    assert text.endswith("b")
    assert "aaa" not in text
    assert len(text.encode()) > MAX_FAILURE_TEXT - 300
    assert "…" in text


def test_tasks_that_have_no_room_are_counted() -> None:
    errors = {task: "why" + "y" * (task % 100) + "z" * (task // 100) for task in range(1, 200)}
    text = explain(Failed(errors, name="名" * 80), limit=199).text
    assert len(text.encode()) <= MAX_FAILURE_TEXT
    told = text.count("1 × why")
    assert 0 < told < 199
    assert text.endswith(f"… and {199 - told} more failed tasks")


def test_without_failed_tasks_there_is_nothing_more_to_ask() -> None:
    sim = Simulation(Failed({}))
    assert sim.run(explain_failure(7)).text == ""
    assert len(sim.asked) == 1


def test_what_is_known_is_told_when_the_server_does_not_answer_everything() -> None:
    assert explain(Failed({}, tally=DOWN, table=DOWN)) == Explanation(None, "")
    assert explain(Failed({12: "why"}, tally=DOWN)).text == "1 × why (task 12 'fit')"
    assert explain(Failed({12: "why"}, table=DOWN)).text == "1 failed task"
    sim = Simulation(Failed({12: "why", 11: DOWN, 10: "why"}))
    assert sim.run(explain_failure(7)).text.splitlines() == [
        "2 × no error was kept (e.g. task 11 'fit')",
        "1 × why (task 12 'fit')",
    ]
    assert len(sim.asked) == 4
    assert sim.notes == [(logging.INFO, f"no further details: {DOWN}")]


# --- the reason, and what to do -----------------------------------------------------------------------------

E, S, T = RunStatus.ERROR, RunStatus.STOPPED, RunStatus.TERMINATED


@pytest.mark.parametrize(
    ("status", "tally", "reason", "advice"),
    [
        (
            E,
            (10, 0, 0, 0, 7, 3),
            "3 of 10 tasks failed, 7 done",
            "Once the cause is mended, resume workflow 7",
        ),
        (E, (10, 4, 1, 0, 2, 3), "3 of 10 tasks failed, 2 done, 5 left to run", "Once the cause is mended"),
        (
            E,
            (3, 0, 0, 0, 3, 0),
            "its heartbeat ran out, as in an outage of Jobmon (3 of 3 tasks done)",
            "ends DONE",
        ),
        (
            E,
            (3, 1, 0, 1, 1, 0),
            "(1 of 3 tasks done, 2 left to run)",
            "To run what is left, resume workflow 7",
        ),
        (E, (1, 0, 0, 0, 0, 1), "1 of 1 task failed, 0 done", "tries again what failed"),
        (E, (0, 0, 0, 0, 0, 0), E.meaning, "To go on, resume workflow 7"),
        (E, None, E.meaning, "To go on, resume workflow 7"),
        (S, (3, 2, 0, 0, 1, 0), f"{S.meaning} (1 of 3 tasks done, 2 left to run)", "To run what is left"),
        (
            T,
            (3, 1, 0, 0, 1, 1),
            f"{T.meaning} (1 of 3 tasks failed, 1 done, 1 left to run)",
            "resume workflow 7",
        ),
    ],
)
def test_the_counts_choose_the_reason_and_the_next_step(
    status: RunStatus, tally: tuple[int, ...] | None, reason: str, advice: str
) -> None:
    counts = None if tally is None else TaskCounts(*tally)
    assert reason_of(status, counts).endswith(reason)
    assert advice in advice_on_end(7, counts)
    outage = "outage" in reason_of(status, counts)
    assert outage == (status is E and counts is not None and counts.total > 0 and counts.fatal == 0)


def test_counting_tasks_never_fails() -> None:
    assert Simulation(Failed({12: ""})).run(count_tasks(7)) == TaskCounts(1000, 587, 0, 0, 412, 1)
    assert Simulation(Failed({}, tally=DOWN)).run(count_tasks(7)) is None


# --- on the real Jobmon -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def failed(sandbox: JobmonSandbox) -> SandboxWorkflow:
    return sandbox.make_workflow("fails")


@pytest.fixture(params=["requests", "aiohttp"])
def converse_with(
    request: pytest.FixtureRequest, sandbox: JobmonSandbox, prefix: str
) -> Iterator[Callable[[Conversation[Any]], Any]]:
    """Carry a conversation with the sandbox on either transport."""
    url = sandbox.url + prefix

    async def on_aiohttp(conversation: Conversation[Any]) -> Any:
        async with AsyncRequester(Settings(url)) as requester:
            return await requester.converse(conversation)

    if request.param == "aiohttp":
        yield lambda conversation: asyncio.run(on_aiohttp(conversation))
        return
    requester = Requester(url, retries_timeout=0)
    yield lambda conversation: converse(requester, conversation)
    requester.close()


def test_a_real_failure_is_explained(
    failed: SandboxWorkflow, converse_with: Callable[[Conversation[Any]], Any]
) -> None:
    failure = converse_with(explain_failure(failed.workflow_id))
    assert failure.counts == TaskCounts(total=3, pending=0, scheduled=0, running=0, done=0, fatal=3)
    assert re.fullmatch(r"3 × Got exit_code: 1\b.* \(e\.g\. task \d+ 'task-2'\)", failure.text)


def test_a_real_run_tells_its_progress(
    sandbox: JobmonSandbox,
    converse_with: Callable[[Conversation[Any]], Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(progress_module, "SHORTEST_PROGRESS_PAUSE", 0.1)
    workflow = sandbox.make_workflow_in("R", tasks=3)
    sandbox.change("UPDATE task SET status = 'R' WHERE workflow_id = ?", workflow.workflow_id)
    conversation = watch_run(
        workflow.workflow_run_id or 0,
        keep_alive=KeepAlive.NEVER,
        heartbeat=Heartbeat(),
        poll_interval=0.3,
        clock=time.monotonic,
        timeout=1.5,
        progress=ProgressWatch(workflow.workflow_id, time.monotonic),
    )
    with caplog.at_level(logging.INFO):
        assert converse_with(conversation).outcome is RunOutcome.TIMEOUT
    told = [record.getMessage() for record in caplog.records if "done" in record.getMessage()]
    assert told == [f"workflow {workflow.workflow_id}: 0/3 done, 3 running, 0 scheduled, 0 pending, 0 failed"]

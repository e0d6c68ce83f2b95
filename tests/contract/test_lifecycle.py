"""The table of a run's life says what Jobmon's server does: each move, signal, reaping and heartbeat."""

from __future__ import annotations

import itertools
from datetime import timedelta

import pytest

from airflow_jobmon_provider.client.lifecycle import STAGES, Mover, Owner, RunStatus, moves
from airflow_jobmon_provider.client.protocol import routes
from airflow_jobmon_provider.client.requester import Requester, ask
from airflow_jobmon_provider.execution import executor
from dev.jobmon_sandbox import JobmonSandbox

EVERY = pytest.mark.parametrize("status", list(RunStatus), ids=lambda status: status.name)


def way_to(status: RunStatus) -> str:
    """Return the codes through which a run that is LINKING gets to a status."""
    ways = {RunStatus.LINKING: ""}
    while status not in ways:
        ways = {new: way + new.value for old, way in ways.items() for new in STAGES[old].leads_to} | ways
    return ways[status]


class Runs:
    """Makes runs by real moves, each of a workflow of its own that has no tasks."""

    def __init__(self, sandbox: JobmonSandbox) -> None:
        self._sandbox = sandbox
        self._original = sandbox.make_workflow("new", tasks=1).workflow_id

    def make(self, status: RunStatus) -> tuple[int, int]:
        """Make a run that has a status; return its workflow's id and its own."""
        (workflow,) = self._sandbox.copy_workflow(self._original, 1)
        body = {"workflow_id": workflow, "user": "sandbox", "jobmon_version": "sandbox"}
        reply = self._sandbox.post("/api/v2/workflow_run", {**body, "next_report_increment": 600})
        run: int = reply["workflow_run_id"]
        if status is RunStatus.REGISTERED:  # no move leads there
            self._sandbox.change("UPDATE workflow_run SET status = 'G' WHERE id = ?", run)
            return workflow, run
        for code in way_to(status):
            self._sandbox.put(f"/api/v2/workflow_run/{run}/update_status", {"status": code})
        return workflow, run


@pytest.fixture(scope="module")
def runs(sandbox: JobmonSandbox) -> Runs:
    return Runs(sandbox)


@EVERY
def test_the_server_makes_the_moves_of_the_table_and_no_other(
    sandbox: JobmonSandbox, runs: Runs, requester: Requester, status: RunStatus
) -> None:
    allowed = STAGES[status].leads_to
    run = runs.make(status)[1]
    for new in RunStatus:
        if new not in allowed:
            assert ask(requester, routes.update_status(run, new)) is status, new
    assert sandbox.run_status(run) == status
    for new in allowed:
        other = runs.make(status)[1]
        assert ask(requester, routes.update_status(other, new)) is new


@EVERY
def test_a_signal_to_stop_moves_what_the_table_says(
    sandbox: JobmonSandbox, runs: Runs, requester: Requester, status: RunStatus
) -> None:
    workflow, run = runs.make(status)
    ask(requester, routes.set_resume(workflow, reset_running_jobs=True))
    moved = RunStatus.COLD_RESUME if status.takes_signals else status
    assert sandbox.run_status(run) == moved


@EVERY
def test_the_server_calls_a_workflow_resumable_unless_the_table_says_that_its_run_blocks(
    sandbox: JobmonSandbox, runs: Runs, requester: Requester, status: RunStatus
) -> None:
    workflow, _ = runs.make(status)
    resumability = ask(requester, routes.is_resumable(workflow))
    assert resumability.resumable is not STAGES[status].blocks


@EVERY
def test_a_heartbeat_with_the_runs_own_status_counts_where_the_table_says(
    sandbox: JobmonSandbox, runs: Runs, requester: Requester, status: RunStatus
) -> None:
    run = runs.make(status)[1]
    before = sandbox.heartbeat_date(run)
    assert ask(requester, routes.log_heartbeat(run, status, 10**6)) is status
    counted = sandbox.heartbeat_date(run) > before + timedelta(seconds=10**5)
    assert counted is STAGES[status].heartbeat


def test_the_reaper_ends_what_the_table_says(sandbox: JobmonSandbox, runs: Runs) -> None:
    made = {status: runs.make(status)[1] for status in RunStatus}
    for run in made.values():
        past = "UPDATE workflow_run SET heartbeat_date = datetime('now', '-1 hour') WHERE id = ?"
        sandbox.change(past, run)
    sandbox.reap()
    reaped = dict(moves(Mover.REAPER))
    found = {status: sandbox.run_status(run) for status, run in made.items()}
    assert found == {status: reaped.get(status, status) for status in RunStatus}


@EVERY
def test_a_run_gives_its_workflow_the_status_of_the_table(
    sandbox: JobmonSandbox, runs: Runs, requester: Requester, status: RunStatus
) -> None:
    gives = STAGES[status].workflow
    if gives is not None:
        details = ask(requester, routes.workflow_details(runs.make(status)[0]))
        assert details is not None
        assert details.status == gives
    else:
        assert status in (RunStatus.REGISTERED, RunStatus.COLD_RESUME, RunStatus.HOT_RESUME)


def test_the_executor_knows_the_same_statuses() -> None:
    assert {status.value: status.name for status in RunStatus} == executor._NAMES


def test_the_executor_makes_only_moves_that_are_its_own() -> None:
    way = [RunStatus(code) for code in "LBIOR"]
    assert set(itertools.pairwise(way)) <= moves(Mover.EXECUTOR)
    ended = {status.value for status in RunStatus if status.is_terminal}
    assert ended == set("DESAT")


@EVERY
def test_who_has_a_run_can_move_it(status: RunStatus) -> None:
    stage = STAGES[status]
    assert bool(stage.moves) is (stage.owner is not Owner.ENDED)
    if stage.owner is not Owner.ENDED:
        assert Mover[stage.owner.name] in stage.moves

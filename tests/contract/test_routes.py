"""Every row of docs/protocol.md that the client relies on, on a real Jobmon, released and newer routes.

If one of these fails after an upgrade of Jobmon, the client rests on something that is no longer true.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from airflow_jobmon_provider.client import protocol
from airflow_jobmon_provider.client.exceptions import (
    RouteNotSupported,
    WorkflowBusy,
    WorkflowNotFound,
    WorkflowNotResumable,
    WorkflowRunNotFound,
)
from airflow_jobmon_provider.client.lifecycle import RunStatus, WorkflowStatus
from airflow_jobmon_provider.client.protocol import LostRun, Resumability, routes
from airflow_jobmon_provider.client.requester import Requester, ask
from dev.jobmon_sandbox import JobmonSandbox
from tests.routes import ROUTES, Ids
from tests.stuck_tasks import stop_with_stuck_tasks

NOBODY = 987_654_321


def asked_about_nobody(meaning: type[Exception]) -> list[protocol.Call[Any]]:
    """Return calls about what does not exist, of the routes by which both recorded servers say so."""
    rows = [row for row in ROUTES.values() if row.recorded.get(row.unknown) is meaning]
    return [row.call(Ids.all_the_same(NOBODY)) for row in rows]


def beat(requester: Requester, run: int | None, status: str, good_for: float = 600) -> str:
    """Send a heartbeat with any status, as the client itself never would."""
    _, reply = requester.send_request(
        f"/workflow_run/{run}/log_heartbeat", {"next_report_increment": good_for, "status": status}, "post"
    )
    return str(reply["status"])


def test_a_server_tells_health_and_version(requester: Requester, prefix: str) -> None:
    ask(requester, routes.health())
    assert ask(requester, routes.api_version()) == prefix.rpartition("/")[2]


@pytest.mark.parametrize(
    ("status", "after"), [("B", "C"), ("R", "C"), ("L", "L"), ("E", "E"), ("D", "D"), ("C", "C")]
)
def test_set_resume_moves_only_a_run_that_an_executor_has(
    sandbox: JobmonSandbox, requester: Requester, status: str, after: str
) -> None:
    workflow = sandbox.make_workflow_in(status)
    ask(requester, routes.set_resume(workflow.workflow_id, True))
    assert sandbox.run_status(workflow.workflow_run_id or 0) == after


@pytest.mark.parametrize("status", ["I", "O"])
def test_a_run_that_is_about_to_start_counts_as_resumable_and_refuses_another(
    sandbox: JobmonSandbox, requester: Requester, status: str
) -> None:
    workflow = sandbox.make_workflow_in(status)
    assert ask(requester, routes.is_resumable(workflow.workflow_id)).resumable
    with pytest.raises(WorkflowBusy, match=rf"^workflow {workflow.workflow_id} has a run that .* taken") as e:
        ask(requester, routes.create_workflow_run(workflow.workflow_id, "me", 60))
    assert str(e.value).endswith(f"Refused at {requester.url}")
    assert [run for run in sandbox.runs(workflow.workflow_id) if run[1] not in "GA"] == [
        (workflow.workflow_run_id, status)
    ]


def test_a_hot_resume_moves_a_run_to_hot_resume(sandbox: JobmonSandbox, requester: Requester) -> None:
    workflow = sandbox.make_workflow_in("R")
    ask(requester, routes.set_resume(workflow.workflow_id, False))
    assert sandbox.run_status(workflow.workflow_run_id or 0) == "H"


def test_set_resume_takes_a_workflow_that_does_not_exist(requester: Requester) -> None:
    ask(requester, routes.set_resume(NOBODY, True))


@pytest.mark.parametrize(
    ("status", "resumable"),
    [("L", False), ("B", False), ("R", False), ("C", False), ("E", True), ("D", True), ("A", True)],
)
def test_a_workflow_is_resumable_by_the_status_of_its_run(
    sandbox: JobmonSandbox, requester: Requester, prefix: str, status: str, resumable: bool
) -> None:
    workflow = sandbox.make_workflow_in(status)
    reply = ask(requester, routes.is_resumable(workflow.workflow_id))
    assert reply == Resumability(resumable, 0 if prefix == "/api/v3" else None)


def test_a_forced_clean_up_ends_the_run_at_once(sandbox: JobmonSandbox) -> None:
    requester = Requester(sandbox.url + "/api/v3", retries_timeout=0)
    workflow_id, run = stop_with_stuck_tasks(sandbox)
    assert ask(requester, routes.is_resumable(workflow_id)) == Resumability(False, 1)
    assert ask(requester, routes.force_cleanup_kill_self(workflow_id)) == 1
    assert sandbox.run_status(run) == "T"
    assert ask(requester, routes.is_resumable(workflow_id)) == Resumability(True, 0)


def test_a_released_server_cannot_force_a_clean_up(sandbox: JobmonSandbox) -> None:
    requester = Requester(sandbox.url + "/api/v2", retries_timeout=0)
    workflow_id, run = stop_with_stuck_tasks(sandbox)
    with pytest.raises(RouteNotSupported, match="cannot force a clean-up; needs a newer one") as caught:
        ask(requester, routes.force_cleanup_kill_self(workflow_id))
    assert requester.url in str(caught.value)
    assert sandbox.run_status(run) == "C"


def test_tasks_that_are_not_done_are_reset(sandbox: JobmonSandbox, requester: Requester) -> None:
    workflow = sandbox.make_workflow_in("E", tasks=3)
    ask(requester, routes.set_resume_state(workflow.workflow_id, True))
    assert sandbox.task_statuses(workflow.workflow_id) == ["G", "G", "G"]


def test_running_tasks_are_reset_only_if_asked(sandbox: JobmonSandbox, requester: Requester) -> None:
    workflow = sandbox.make_workflow_in("E")
    sandbox.change("UPDATE task SET status = 'R' WHERE workflow_id = ?", workflow.workflow_id)
    ask(requester, routes.set_resume_state(workflow.workflow_id, False))
    assert sandbox.task_statuses(workflow.workflow_id) == ["R"]
    ask(requester, routes.set_resume_state(workflow.workflow_id, True))
    assert sandbox.task_statuses(workflow.workflow_id) == ["G"]


def test_a_reset_is_refused_with_status_200_while_a_run_is_alive(
    sandbox: JobmonSandbox, requester: Requester
) -> None:
    workflow = sandbox.make_workflow_in("R")
    with pytest.raises(WorkflowNotResumable, match="is not resumable"):
        ask(requester, routes.set_resume_state(workflow.workflow_id, True))


def test_a_new_run_is_linking_and_good_for_the_increment(
    sandbox: JobmonSandbox, requester: Requester
) -> None:
    workflow = sandbox.make_workflow_in("E")
    run = ask(requester, routes.create_workflow_run(workflow.workflow_id, "alice", 3600))
    assert run.status is RunStatus.LINKING
    assert sandbox.run_status(run.workflow_run_id) == "L"
    user = sandbox.query("SELECT user FROM workflow_run WHERE id = ?", run.workflow_run_id)
    assert user == [("alice",)]
    left = sandbox.heartbeat_date(run.workflow_run_id) - sandbox_time(sandbox)
    assert timedelta(seconds=3590) < left <= timedelta(seconds=3600)


def sandbox_time(sandbox: JobmonSandbox) -> datetime:
    return datetime.fromisoformat(sandbox.get("/api/v2/time")["time"])


@pytest.mark.parametrize(
    ("status", "words"), [("L", "linking"), ("R", "linking"), ("D", "not in a resume-able")]
)
def test_a_workflow_that_is_busy_or_done_refuses_a_run_with_status_200(
    sandbox: JobmonSandbox, requester: Requester, status: str, words: str
) -> None:
    workflow = sandbox.make_workflow_in(status)
    with pytest.raises(WorkflowNotResumable, match=words):
        ask(requester, routes.create_workflow_run(workflow.workflow_id, "alice", 93))
    assert [s for _, s in sandbox.runs(workflow.workflow_id) if s not in "G"] == [status]


def test_a_heartbeat_in_linking_renews_the_run_and_moves_nothing(
    sandbox: JobmonSandbox, requester: Requester
) -> None:
    run = sandbox.make_workflow_in("L", good_for=5).workflow_run_id or 0
    before = sandbox.heartbeat_date(run)
    assert ask(requester, routes.log_heartbeat(run, RunStatus.LINKING, 3600)) is RunStatus.LINKING
    assert sandbox.heartbeat_date(run) > before + timedelta(seconds=3000)


@pytest.mark.parametrize("status", ["L", "B", "R", "C", "E", "D", "A"])
def test_a_peek_reads_the_status_and_changes_nothing(
    sandbox: JobmonSandbox, requester: Requester, status: str
) -> None:
    run = sandbox.make_workflow_in(status).workflow_run_id or 0
    before = sandbox.query("SELECT * FROM workflow_run WHERE id = ?", run)
    assert ask(requester, routes.peek_status(run)) is RunStatus(status)
    assert sandbox.query("SELECT * FROM workflow_run WHERE id = ?", run) == before


@pytest.mark.parametrize("status", ["B", "R", "C", "E", "D", "A"])
def test_a_heartbeat_that_says_linking_does_nothing_to_a_run_that_has_moved_on(
    sandbox: JobmonSandbox, requester: Requester, status: str
) -> None:
    run = sandbox.make_workflow_in(status).workflow_run_id or 0
    before = sandbox.query("SELECT * FROM workflow_run WHERE id = ?", run)
    assert ask(requester, routes.log_heartbeat(run, RunStatus.LINKING, 3600)) is RunStatus(status)
    assert sandbox.query("SELECT * FROM workflow_run WHERE id = ?", run) == before


def test_a_heartbeat_can_move_a_run(sandbox: JobmonSandbox, requester: Requester) -> None:
    run = sandbox.make_workflow_in("L").workflow_run_id
    assert beat(requester, run, "B") == "B"


def test_a_heartbeat_in_running_renews_the_run(sandbox: JobmonSandbox, requester: Requester) -> None:
    run = sandbox.make_workflow_in("R", good_for=5).workflow_run_id or 0
    before = sandbox.heartbeat_date(run)
    assert ask(requester, routes.log_heartbeat(run, RunStatus.RUNNING, 3600)) is RunStatus.RUNNING
    assert sandbox.heartbeat_date(run) > before + timedelta(seconds=3000)


@pytest.mark.parametrize(
    ("status", "after"), [("L", "A"), ("B", "B"), ("R", "R"), ("C", "C"), ("D", "D"), ("E", "E")]
)
def test_only_a_run_in_linking_can_be_aborted(
    sandbox: JobmonSandbox, requester: Requester, status: str, after: str
) -> None:
    run = sandbox.make_workflow_in(status).workflow_run_id or 0
    assert ask(requester, routes.update_status(run, RunStatus.ABORTED)) is RunStatus(after)
    assert sandbox.run_status(run) == after


@pytest.mark.parametrize(
    ("status", "workflow_status"),
    [
        ("L", WorkflowStatus.REGISTERING),
        ("B", WorkflowStatus.QUEUED),
        ("R", WorkflowStatus.RUNNING),
        ("D", WorkflowStatus.DONE),
        ("E", WorkflowStatus.FAILED),
        ("A", WorkflowStatus.ABORTED),
    ],
)
def test_details_tell_the_workflows_status(
    sandbox: JobmonSandbox, requester: Requester, status: str, workflow_status: WorkflowStatus
) -> None:
    workflow = sandbox.make_workflow_in(status)
    details = ask(requester, routes.workflow_details(workflow.workflow_id))
    assert details is not None
    assert details.status == workflow_status
    assert details.name.startswith("sandbox-")


def test_details_are_those_of_the_latest_run(sandbox: JobmonSandbox, requester: Requester) -> None:
    workflow = sandbox.make_workflow_in("E")
    run = ask(requester, routes.create_workflow_run(workflow.workflow_id, "alice", 93)).workflow_run_id
    ask(requester, routes.update_status(run, RunStatus.ABORTED))
    details = ask(requester, routes.workflow_details(workflow.workflow_id))
    assert details is not None
    assert details.status == WorkflowStatus.ABORTED
    assert details.run_user in (("sandbox", "alice") if requester.url.endswith("v3") else (None,))


def test_a_workflow_without_a_run_has_no_details(sandbox: JobmonSandbox, requester: Requester) -> None:
    assert ask(requester, routes.workflow_details(NOBODY)) is None
    assert ask(requester, routes.workflow_details(sandbox.make_workflow("new").workflow_id)) is None


@pytest.mark.parametrize("call", asked_about_nobody(WorkflowNotFound), ids=lambda call: call.route)
def test_a_workflow_that_does_not_exist_is_not_found(requester: Requester, call: protocol.Call[Any]) -> None:
    with pytest.raises(WorkflowNotFound, match=f"workflow {NOBODY} does not exist"):
        ask(requester, call)


@pytest.mark.parametrize("call", asked_about_nobody(WorkflowRunNotFound), ids=lambda call: call.route)
def test_a_run_that_does_not_exist_is_not_found(requester: Requester, call: protocol.Call[Any]) -> None:
    with pytest.raises(WorkflowRunNotFound, match=f"workflow run {NOBODY} does not exist") as caught:
        ask(requester, call)
    assert requester.url in str(caught.value)


def test_lost_runs_are_listed_by_a_newer_server_only(
    sandbox: JobmonSandbox, requester: Requester, prefix: str
) -> None:
    workflow = sandbox.make_workflow_in("L", good_for=60)
    run = LostRun(workflow.workflow_run_id or 0, workflow.workflow_id)
    assert run not in ask(requester, routes.lost_workflow_runs(RunStatus.LINKING))
    sandbox.age_heartbeat(run.workflow_run_id, 3600)
    found = run in ask(requester, routes.lost_workflow_runs(RunStatus.LINKING))
    assert found == (prefix == "/api/v3")


def test_only_a_run_whose_heartbeat_has_run_out_is_reaped(
    sandbox: JobmonSandbox, requester: Requester
) -> None:
    run = sandbox.make_workflow_in("L", good_for=60).workflow_run_id or 0
    ask(requester, routes.reap(run))
    assert sandbox.run_status(run) == "L"
    sandbox.age_heartbeat(run, 3600)
    ask(requester, routes.reap(run))
    assert sandbox.run_status(run) == "A"


@pytest.mark.parametrize(("status", "after"), [("L", "A"), ("R", "E"), ("C", "T"), ("B", "B")])
def test_what_the_reaper_does_to_a_run_whose_heartbeat_has_run_out(
    sandbox: JobmonSandbox, status: str, after: str
) -> None:
    run = sandbox.make_workflow_in(status, good_for=60).workflow_run_id or 0
    sandbox.reap()
    assert sandbox.run_status(run) == status
    sandbox.age_heartbeat(run, 3600)
    sandbox.reap()
    assert sandbox.run_status(run) == after

"""What real servers replied, as recorded (``replies/``), is understood, and is what the stand-in replies.

The stand-in is the sandbox's ``/api/v3``: routes of Jobmon's development version ("3.7") on the released
server. ``recorder.py`` says how to record another version.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from airflow_jobmon_provider.client import protocol
from airflow_jobmon_provider.client.exceptions import (
    InvalidRequest,
    JobmonError,
    NotAuthorized,
    RouteNotSupported,
    ServerFailure,
    WorkflowBusy,
    WorkflowNotFound,
    WorkflowNotResumable,
    WorkflowRunNotFound,
)
from airflow_jobmon_provider.client.lifecycle import RunStatus
from airflow_jobmon_provider.client.protocol import (
    Call,
    CreatedRun,
    FailedTask,
    LostRun,
    Response,
    Resumability,
    TaskCounts,
    WorkflowDetails,
)
from dev.jobmon_sandbox import JobmonSandbox
from tests.contract.recorder import NOBODY, Recording, record, record_login_wanted, shape, unnamed
from tests.contract.recordings import REPLIES, recorded
from tests.fuzz.targets import routes_of_the_protocol

SERVER = "http://jobmon.example/api"


OLD, NEW = recorded("3.4.8"), recorded("3.7")
OLD_LOGIN, NEW_LOGIN = recorded("3.4.8-login"), recorded("3.7-login")


def call_of(recording: Recording) -> Call[Any]:
    """Return the call that asked for a recorded reply."""
    function: Callable[..., Call[Any]] = getattr(protocol, recording["function"])
    takes_status = recording["function"] in ("log_heartbeat", "update_status", "lost_workflow_runs")
    arguments = [
        RunStatus(argument) if takes_status and isinstance(argument, str) else argument
        for argument in recording["arguments"]
    ]
    return function(*arguments)


def understood(recording: Recording) -> Any:
    """Return what the client makes of a recorded reply, or raise what it raises."""
    call = call_of(recording)
    assert (call.verb.upper(), call.route) == (recording["method"], recording["route"])
    response = Response(recording["status"], {}, json.dumps(recording["body"]).encode())
    try:
        reply = protocol.decipher(call.verb, SERVER + call.route, response)
    except JobmonError as error:
        raise call.explain(error, SERVER) from None
    return call.understand(reply, SERVER)


BOTH: dict[str, Any] = {
    "health": None,
    "set_resume: unknown": None,
    "set_resume_state: unknown": None,
    "create_workflow_run: unknown": WorkflowNotFound,
    "workflow_details: unknown": None,
    "failed_tasks: unknown": (),
    "most_recent_error: unknown": "",
    "peek_status: unknown": WorkflowRunNotFound,
    "log_heartbeat: unknown": WorkflowRunNotFound,
    "update_status: unknown": WorkflowRunNotFound,
    "reap: unknown": None,
    "is_resumable: unknown": WorkflowNotFound,
    "task_counts": TaskCounts(total=3, pending=0, scheduled=0, running=0, done=0, fatal=3),
    "failed_tasks": (FailedTask(3, "task-2"), FailedTask(2, "task-1")),
    "most_recent_error": "Got exit_code: 1. Error message was:",
    "workflow_details: no run": None,
    "failed_tasks: none": (),
    "most_recent_error: none": "",
    "set_resume: no active run": None,
    "set_resume_state": None,
    "set_resume_state: refused": WorkflowNotResumable,
    "create_workflow_run": CreatedRun(2, RunStatus.LINKING),
    "create_workflow_run: busy": WorkflowBusy,
    "create_workflow_run: done": WorkflowNotResumable,
    "create_workflow_run: launched": WorkflowBusy,
    "log_heartbeat": RunStatus.LINKING,
    "log_heartbeat: reaped": RunStatus.ABORTED,
    "peek_status": RunStatus.LINKING,
    "peek_status: told to stop": RunStatus.COLD_RESUME,
    "lost_workflow_runs: none": (),
    "reap: not lost": None,
    "reap": None,
    "update_status": RunStatus.BOUND,
    "update_status: refused": RunStatus.BOUND,
    "update_status: D": RunStatus.DONE,
    "set_resume: cold": None,
}

ONLY_OLD: dict[str, Any] = {
    "api_version": "v2",
    "is_resumable: yes": Resumability(True, None),
    "is_resumable: no": Resumability(False, None),
    "force_cleanup_kill_self": RouteNotSupported,
    "force_cleanup_kill_self: unknown": RouteNotSupported,
    "increase_resources": RouteNotSupported,
    "increase_resources: unknown": RouteNotSupported,
    "probe_increase_resources": RouteNotSupported,
    "task_counts: unknown": ServerFailure,
    "lost_workflow_runs": (),
    "workflow_details: one run": WorkflowDetails("F", "sandbox"),
    "workflow_details: a refused run": WorkflowDetails("G", "sandbox"),
}

ONLY_NEW: dict[str, Any] = {
    "api_version": "v3",
    "is_resumable: yes": Resumability(True, 0),
    "is_resumable: no": Resumability(False, 0),
    "force_cleanup_kill_self": 0,
    "force_cleanup_kill_self: unknown": 0,
    "increase_resources": 0,
    "increase_resources: unknown": 0,
    "probe_increase_resources": InvalidRequest,
    "task_counts: unknown": TaskCounts(total=0, pending=0, scheduled=0, running=0, done=0, fatal=0),
    "lost_workflow_runs": (LostRun(7, 5),),
    "workflow_details: one run": WorkflowDetails("F", "sandbox", "carol"),
    "workflow_details: a refused run": WorkflowDetails("G", "sandbox", "alice"),
}

READ = [(OLD, case, meaning) for case, meaning in {**BOTH, **ONLY_OLD}.items()]
READ += [(NEW, case, meaning) for case, meaning in {**BOTH, **ONLY_NEW}.items()]


@pytest.mark.parametrize(
    ("server", "case", "meaning"),
    [
        pytest.param(server, case, meaning, id=f"{'3.4.8' if server is OLD else '3.7'} {case}")
        for server, case, meaning in READ
    ],
)
def test_what_a_real_server_replied_is_understood(
    server: dict[str, Recording], case: str, meaning: Any
) -> None:
    recording = server[case]
    if isinstance(meaning, type):
        with pytest.raises(JobmonError) as caught:
            understood(recording)
        assert type(caught.value) is meaning
        assert SERVER in str(caught.value)
        return
    found = understood(recording)
    if isinstance(found, WorkflowDetails):
        assert found.modern
        assert found.name.startswith("sandbox-")
        found = WorkflowDetails(found.status, "sandbox", found.run_user)
    assert found == meaning


@pytest.mark.parametrize("server", [OLD, NEW], ids=["3.4.8", "3.7"])
def test_every_route_of_the_protocol_was_recorded_and_every_recording_is_looked_at(
    server: dict[str, Recording],
) -> None:
    asked = {recording["function"] for recording in server.values()} - {None}
    assert asked == {function.__name__ for function in routes_of_the_protocol()}
    looked_at = {case for replies, case, _ in READ if replies is server}
    for case in server.keys() - looked_at:  # on the way to another case
        if server[case]["function"]:
            understood(server[case])


def fields(recordings: list[Recording] | dict[str, Recording]) -> dict[str, Any]:
    """Return by case what a reply consists of: method, route, status, kind of content, fields and types."""
    rows = recordings.values() if isinstance(recordings, dict) else map(unnamed, recordings)
    return {
        row["case"]: (row["method"], row["status"], row["content_type"], shape(row["body"])) for row in rows
    }


def a_failed_workflow(sandbox: JobmonSandbox) -> int:
    """Return a workflow of three tasks that have failed and said why, without executing it: quick."""
    workflow = sandbox.make_workflow_in("E", tasks=3)
    columns = "workflow_run_id, task_id, status, array_id, task_resources_id, array_batch_num, array_step_id"
    for (task,) in sandbox.query("SELECT id FROM task WHERE workflow_id = ?", workflow.workflow_id):
        values = (workflow.workflow_run_id, task)
        sandbox.change(f"INSERT INTO task_instance ({columns}) VALUES (?, ?, 'F', 1, 1, 0, 0)", *values)
        sandbox.change(
            "INSERT INTO task_instance_error_log (task_instance_id, error_time, description)"
            " SELECT max(id), '2026-11-25 00:00:00', 'exit code 1' FROM task_instance"
        )
    return workflow.workflow_id


@pytest.mark.parametrize(
    ("prefix", "server"), [("/api/v2", OLD), ("/api/v3", NEW)], ids=["released", "stand-in"]
)
def test_the_sandbox_replies_as_the_real_server_did(
    sandbox: JobmonSandbox, prefix: str, server: dict[str, Recording]
) -> None:
    failed = a_failed_workflow(sandbox)
    fresh = [sandbox.make_workflow("new", tasks=1).workflow_id for _ in range(4)]
    replies = fields(record(sandbox.url + prefix, failed, fresh))
    expected = fields(server)
    assert replies.keys() == expected.keys()
    # Where the recorded server had no lost run, another test's may be.
    compared = expected.keys() - {"lost_workflow_runs: none"}
    assert {case: replies[case] for case in compared} == {case: expected[case] for case in compared}


@pytest.mark.parametrize("server", [OLD_LOGIN, NEW_LOGIN], ids=["3.4.8", "3.7"])
def test_a_server_that_wants_a_browsers_login_says_what_its_administrator_must_set(
    server: dict[str, Recording],
) -> None:
    refused = [row for row in server.values() if row["status"] == 403 and row["function"]]
    assert len(refused) > 10
    for recording in refused:
        with pytest.raises(NotAuthorized) as caught:
            understood(recording)
        line = str(caught.value)
        assert "JOBMON__AUTH__ENABLED=false" in line
        assert "a gateway" in line
        assert "check the login" not in line
        assert len(line) < 500


def test_only_the_newer_server_tells_its_health_without_a_login() -> None:
    assert understood(NEW_LOGIN["health"]) is None
    with pytest.raises(NotAuthorized, match="use the route prefix /api/v2"):
        understood(OLD_LOGIN["health"])


def test_the_recorder_records_refusals_and_names_no_machine(sandbox: JobmonSandbox) -> None:
    found = {row["case"]: row for row in map(unnamed, record_login_wanted(sandbox.url + "/api/v2"))}
    assert found.keys() == NEW_LOGIN.keys()
    assert found["is_resumable: unknown"]["arguments"] == [NOBODY]
    for path in REPLIES.glob("*.json"):
        assert "127.0.0.1" not in path.read_text()

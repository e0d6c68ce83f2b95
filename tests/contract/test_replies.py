"""What real servers replied, as recorded (``replies/``), is understood, and is what the stand-in replies.

The stand-ins are the sandbox's ``/3.6/api/v3`` and ``/api/v3``: routes of 3.6 and of Jobmon's development
version ("3.7") on the released server. ``recorder.py`` says how to record another version.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from airflow_jobmon_provider.client.exceptions import (
    JobmonError,
    NotAuthorized,
)
from airflow_jobmon_provider.client.protocol import (
    WorkflowDetails,
)
from dev.jobmon_sandbox import JobmonSandbox
from tests import routes
from tests.contract.recorder import NOBODY, Recording, record, record_login_wanted, shape, unnamed
from tests.contract.recordings import IN_THE_SANDBOX, REPLIES, recorded
from tests.routes import ROUTES, SERVER, SINCE_MIDDLE, VERSIONS

SERVERS = {version: recorded(version) for version in VERSIONS}
OLD_LOGIN, MIDDLE_LOGIN, NEW_LOGIN = LOGINS = [recorded(f"{version}-login") for version in VERSIONS]


def understood(recording: Recording) -> Any:
    """Return what the client makes of a recorded reply, or raise what it raises."""
    call = ROUTES[recording["function"]].recorded_call(recording["arguments"])
    assert (call.verb.upper(), call.route) == (recording["method"], recording["route"])
    return routes.understood(call, recording["status"], recording["body"])


READ = [
    pytest.param(version, case, meaning, id=f"{version} {case}")
    for version in VERSIONS
    for row in ROUTES.values()
    for case, meaning in row.meanings(version).items()
]


@pytest.mark.parametrize(("version", "case", "meaning"), READ)
def test_what_a_real_server_replied_is_understood(version: str, case: str, meaning: Any) -> None:
    recording = SERVERS[version][case]
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
    if case == "find_workflows":
        (row,) = found
        assert row.args.startswith("sandbox-")
        found = (replace(row, args="sandbox"),)
    assert found == meaning


@pytest.mark.parametrize("version", VERSIONS)
def test_every_route_of_the_protocol_was_recorded_and_every_recording_is_looked_at(version: str) -> None:
    server = SERVERS[version]
    asked = {recording["function"] for recording in server.values()} - {None}
    assert asked == {name for name, row in ROUTES.items() if row.recorded}
    looked_at = {case for row in ROUTES.values() for case in row.meanings(version)}
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


@pytest.fixture(scope="module")
def replies(sandbox: JobmonSandbox) -> dict[str, dict[str, Recording]]:
    """What the sandbox replies in the place of each server, by case."""
    found = {}
    for version, prefix in IN_THE_SANDBOX.items():
        failed = a_failed_workflow(sandbox)
        fresh = [sandbox.make_workflow("new", tasks=1).workflow_id for _ in range(4)]
        found[version] = {row["case"]: row for row in record(sandbox.url + prefix, failed, fresh)}
    return found


def of_route(recordings: dict[str, Recording], function: str | None) -> dict[str, Recording]:
    """Return the recordings of one route by case; None: of the requests that no function makes."""
    # Where the recorded server had no lost run, another test's may be.
    left_out = "lost_workflow_runs: none"
    return {case: row for case, row in recordings.items() if row["function"] == function and case != left_out}


@pytest.mark.parametrize("function", [*ROUTES, None])
@pytest.mark.parametrize("version", VERSIONS)
def test_the_sandbox_replies_as_the_real_server_did(
    replies: dict[str, dict[str, Recording]], version: str, function: str | None
) -> None:
    assert fields(of_route(replies[version], function)) == fields(of_route(SERVERS[version], function))


@pytest.mark.parametrize("server", LOGINS, ids=VERSIONS)
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


@pytest.mark.parametrize("server", [MIDDLE_LOGIN, NEW_LOGIN], ids=SINCE_MIDDLE)
def test_a_newer_server_tells_its_health_without_a_login(server: dict[str, Recording]) -> None:
    assert understood(server["health"]) is None


def test_the_released_server_tells_no_health_without_a_login() -> None:
    with pytest.raises(NotAuthorized, match="use the route prefix /api/v2"):
        understood(OLD_LOGIN["health"])


def test_the_recorder_records_refusals_and_names_no_machine(sandbox: JobmonSandbox) -> None:
    found = {row["case"]: row for row in map(unnamed, record_login_wanted(sandbox.url + "/api/v2"))}
    assert found.keys() == NEW_LOGIN.keys()
    assert found["is_resumable: unknown"]["arguments"] == [NOBODY]
    for path in REPLIES.glob("*.json"):
        assert "127.0.0.1" not in path.read_text()

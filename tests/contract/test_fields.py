"""Which fields of Jobmon's replies the client reads, and that every version it works with sends them.

Each table says so for one route: the fields that are read of what real servers replied, and their types. A
field that is read and not in the table, or in the table and not read, fails here, for each version alone.
"""

from __future__ import annotations

import contextlib
import json
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_jobmon_provider.client.exceptions import JobmonError
from airflow_jobmon_provider.client.protocol import routes
from tests.contract.recorder import Recording
from tests.contract.recordings import recorded
from tests.routes import NEW, OLD, ROUTES, VERSIONS, ByVersion

STATUS = {"status": "str"}
FIELDS: dict[str, dict[str, Any]] = {
    "health": {},
    "api_version": STATUS,
    "probe_age": {},
    "set_resume": {},
    "is_resumable": {"workflow_is_resumable": "bool", "pending_kill_self": ByVersion("", "int", NEW)},
    "force_cleanup_kill_self": {"num_cleaned_up": ByVersion("", "int", NEW)},
    "set_resume_state": {"err_msg": "str"},
    "create_workflow_run": {"workflow_run_id": "int or NoneType", "status": "str", "err_msg": "str"},
    "log_heartbeat": STATUS,
    "peek_status": STATUS,
    "update_status": STATUS,
    "lost_workflow_runs": {"workflow_runs": "list"},
    "reap": {},
    "workflow_details": {
        "wf_status": "str",
        "wf_name": "str",
        "wf_created_date": "str",
        "wf_status_date": "str",
        "wfr_user": ByVersion("", "str"),
        "wfr_heartbeat_date": ByVersion("", "str"),
    },
    "find_workflows": {
        "workflows": "list",
        "wf_id": "int",
        **dict.fromkeys(("wf_name", "wf_tool", "wf_args", "wf_status"), "str"),
    },
    "task_counts": {
        "<id>": "dict",
        **dict.fromkeys(("tasks", "PENDING", "SCHEDULED", "RUNNING", "DONE", "FATAL"), "int"),
    },
    "failed_tasks": {"workflow_tasks": "str", "TASK_ID": "dict", "TASK_NAME": "dict"},
    "most_recent_error": {"error_description": "str"},
    "probe_increase_resources": {},
    "increase_resources": {"updated_task_count": ByVersion("", "int")},
}
"""By route. "": that version does not send it, and nothing rests on it there."""


class Watched(dict[str, Any]):
    """A JSON object that notes which of its fields are read, and of which types they are."""

    def __init__(self, fields: dict[str, Any], seen: dict[str, set[str]]) -> None:
        super().__init__(fields)
        self._seen = seen

    def get(self, key: str, default: Any = None) -> Any:
        if key in self:
            self._seen.setdefault(key, set()).add(type(self[key]).__name__)
        return super().get(key, default)


def watched(value: Any, seen: dict[str, set[str]]) -> Any:
    """Return a JSON value all of whose objects note what is read."""
    if isinstance(value, dict):
        return Watched({key: watched(each, seen) for key, each in value.items()}, seen)
    return [watched(each, seen) for each in value] if isinstance(value, list) else value


def fields_read(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Return the fields that the client reads of a reply, and their types."""
    seen: dict[str, set[str]] = {}
    inner = SimpleNamespace(loads=lambda text: watched(json.loads(text), seen))
    monkeypatch.setattr(routes, "json", inner)  # a reply of workflow_tasks is JSON within JSON
    call = ROUTES[recording["function"]].recorded_call(recording["arguments"])
    with contextlib.suppress(JobmonError):  # a refusal, of which the reason is read
        call.read(watched(recording["body"], seen))
    return {
        "<id>" if key.isdigit() else key: {kind.removeprefix("Watched") or "dict" for kind in kinds}
        for key, kinds in seen.items()
        if "TASK_ID" not in seen or not key.isdigit()  # the rows of a table
    }


@pytest.mark.parametrize("function", ROUTES)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_field_that_is_read_is_sent(
    version: str, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: dict[str, set[str]] = {}
    for recording in recorded(version).values():
        if recording["function"] == function and recording["status"] == 200:
            for field, kinds in fields_read(recording, monkeypatch).items():
                read[field] = read.get(field, set()) | kinds
    wanted = {
        field: kind.of(version) if isinstance(kind, ByVersion) else kind
        for field, kind in FIELDS[function].items()
    }
    assert {field: " or ".join(sorted(kinds, reverse=True)) for field, kinds in read.items()} == {
        field: kind for field, kind in wanted.items() if kind
    }


def test_the_table_is_of_the_routes_that_are_used() -> None:
    assert FIELDS.keys() == ROUTES.keys()


def test_what_a_server_sends_and_nobody_reads_is_not_taken_for_read(monkeypatch: pytest.MonkeyPatch) -> None:
    recording = recorded(OLD)["most_recent_error"]
    assert set(recording["body"]) == {"error_description", "task_instance_id"}
    assert fields_read(recording, monkeypatch) == {"error_description": {"str"}}

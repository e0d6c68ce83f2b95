"""What the routes that tell about tasks send, and how their replies are read, without a server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_jobmon_provider.client.exceptions import (
    InvalidRequest,
    JobmonError,
    RouteNotSupported,
    UnreadableReply,
    WorkflowNotFound,
)
from airflow_jobmon_provider.client.protocol import TaskCounts, routes

SERVER = "http://jobmon.example/api/v3"
COUNTS = {"tasks": 10, "PENDING": 1, "SCHEDULED": 2, "RUNNING": 3, "DONE": 3, "FATAL": 1}


def table(ids: Any, names: Any) -> dict[str, str]:
    return {"workflow_tasks": json.dumps({"TASK_ID": ids, "TASK_NAME": names, "STATUS": {}, "RETRIES": {}})}


def test_calls_send_what_the_protocol_page_says() -> None:
    assert routes.task_counts(7).message == {"workflow_ids": [7]}
    assert routes.failed_tasks(7, 5).message == {"status": ["FATAL"], "limit": 5}
    assert not routes.increase_resources(7).idempotent


any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["0", "1", "TASK_ID", "TASK_NAME"]), inner, max_size=6)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("limit", [1, 5])
@given(table=any_json)
def test_any_table_is_read_or_a_typed_error(limit: int, table: Any) -> None:
    try:
        routes.failed_tasks(7, limit).read({"workflow_tasks": json.dumps(table)})
    except JobmonError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "reply",
    [
        {"7": {**COUNTS, "DONE": "3"}},
        {"7": {**COUNTS, "DONE": True}},
        {"7": {"tasks": 3}},
        {"7": [3]},
        {"8": COUNTS},
        [COUNTS],
    ],
)
def test_counts_of_another_shape_are_unreadable(reply: Any) -> None:
    with pytest.raises(UnreadableReply):
        routes.task_counts(7).read(reply)


def test_a_server_that_counts_nothing_does_not_know_the_workflow() -> None:
    with pytest.raises(WorkflowNotFound, match="workflow 7 does not exist"):
        routes.task_counts(7).read({})


@pytest.mark.parametrize(
    "reply",
    [
        {"workflow_tasks": "<html>"},
        {"workflow_tasks": "[" * 200_000},
        {"workflow_tasks": "[]"},
        {"workflow_tasks": {"TASK_ID": {"0": 1}}},
        table({"0": "12"}, {"0": "fit"}),
        table({"0": 12}, {}),
        table({"0": 12}, {"0": 5}),
    ],
)
def test_a_table_of_another_shape_is_unreadable(reply: Any) -> None:
    with pytest.raises(UnreadableReply) as caught:
        routes.failed_tasks(7, 5).read(reply)
    assert len(str(caught.value)) < 400


def test_names_are_short_lines_without_control_characters() -> None:
    ((task),) = routes.failed_tasks(7, 5).read(table({"0": 12}, {"0": "a\x1b[31m\n" + "x" * 1000}))
    assert task.name.startswith("a [31m xxx")
    assert len(task.name) == 80


@given(st.text(max_size=300))
def test_an_error_has_short_lines_without_control_characters(text: str) -> None:
    error = routes.most_recent_error(12).read({"error_description": text})
    assert error.replace("\n", "").isprintable()


def test_of_a_long_error_the_end_is_kept_with_its_indentation() -> None:
    text = "x" * 1_000_000 + "\nTraceback:\n\n    raise\x1b[31m ValueError\r\n" + "y" * 1000
    lines = routes.most_recent_error(12).read({"error_description": text}).split("\n")
    assert lines[1:3] == ["Traceback:", "    raise [31m ValueError"]
    assert len(lines) == 4
    assert max(map(len, lines)) <= 210


def test_counts_are_shown_in_one_short_line_and_as_plain_data() -> None:
    counts = TaskCounts(total=1000, pending=550, scheduled=6, running=30, done=412, fatal=2)
    assert str(counts) == "412/1000 done, 30 running, 6 scheduled, 550 pending, 2 failed"
    assert counts.as_dict() == {
        "total": 1000,
        "pending": 550,
        "scheduled": 6,
        "running": 30,
        "done": 412,
        "fatal": 2,
    }


def test_a_server_without_the_route_cannot_raise_resources() -> None:
    missing = InvalidRequest(f"POST {SERVER}: 404", 404)
    error = routes.increase_resources(7).explain(missing, SERVER)
    assert type(error) is RouteNotSupported
    assert "cannot raise the resources of failed tasks; needs a newer one" in str(error)

"""What a newer server says: a status that this client does not know is not the end of a run (issue 9)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from airflow_jobmon_provider.client.exceptions import UnreadableReply
from airflow_jobmon_provider.client.lifecycle import RunStatus, read_status
from airflow_jobmon_provider.client.protocol import routes
from airflow_jobmon_provider.client.workflow_run import WorkflowRun


@pytest.mark.parametrize("code", ["X", "PAUSED", "r", "2", "a-b_c"])
def test_a_code_that_only_a_newer_server_knows_is_shown_and_is_no_end(code: str) -> None:
    status = routes.peek_status(5).read({"status": code})
    assert isinstance(status, RunStatus)
    assert (str(status), status.value, status == code) == (f"UNKNOWN ({code})", code, True)
    assert not status.is_terminal
    assert not status.is_known
    assert "does not know" in status.meaning
    assert status == routes.peek_status(5).read({"status": code})
    assert status not in list(RunStatus)


def test_every_code_of_the_protocol_page_is_a_member() -> None:
    for status in RunStatus:
        assert read_status(status.value) is status
        assert status.is_known


def test_a_user_cannot_ask_for_a_status_that_there_is_not() -> None:
    read_status("X")
    with pytest.raises(ValueError, match="'X' is not a valid RunStatus"):
        RunStatus("X")


@pytest.mark.parametrize("code", ["", " ", "?", "a b", "\x1b[31m", "L\n", "x" * 21, "<html>", "ß"])
def test_a_text_that_cannot_be_a_code_is_a_reply_that_cannot_be_understood(code: str) -> None:
    with pytest.raises(UnreadableReply, match="is not a status of a workflow run"):
        routes.peek_status(5).read({"status": code})


def test_a_run_may_be_created_in_a_status_that_only_a_newer_server_knows() -> None:
    created = routes.create_workflow_run(7, "alice", 93).read({"workflow_run_id": 5, "status": "X"})
    assert created.workflow_run_id == 5
    assert str(created.status) == "UNKNOWN (X)"


def test_a_heartbeat_never_says_a_status_whose_meaning_is_not_known() -> None:
    beat = routes.log_heartbeat(5, read_status("X"), 93)
    assert beat.message == routes.peek_status(5).message == {"status": "G", "next_report_increment": 0}


class ServerOfTomorrow:
    """Jobmon's requester, as it talks to a server that reports these statuses in turn."""

    def __init__(self, *statuses: str) -> None:
        self.statuses = list(statuses)
        self.said: list[Any] = []

    def send_request(self, app_route: str, message: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.said.append(message.get("status"))
        return 200, {"workflow_run_id": 5, "status": self.statuses.pop(0)}


@pytest.mark.parametrize("ask", [WorkflowRun.log_heartbeat, WorkflowRun.peek_status])
def test_a_run_that_a_user_holds_in_python_goes_on_too(
    ask: Callable[[WorkflowRun], str], caplog: pytest.LogCaptureFixture
) -> None:
    server = ServerOfTomorrow("L", "X", "X", "X", "D")
    run = WorkflowRun(7, requester=server)
    run.bind()
    assert [ask(run), ask(run), run.status] == ["X", "X", "X"]
    run._update_status("A")
    assert ask(run) == run.status == "D"
    assert server.said[2:] == ["G", "A", "G"]
    assert caplog.text.count("workflow run 5 is UNKNOWN (X)") == 1

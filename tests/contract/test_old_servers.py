"""Servers older than this provider knows: told before anything is changed, in one line.

Jobmon before 3.4 rests on Flask. Its replies here are those of 3.2.4 (no prefix) and 3.3.1 (``/api/v2``),
which are recorded in ``replies/``; ``test_too_old.py`` has every task meet them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from airflow_jobmon_provider.client import protocol
from airflow_jobmon_provider.client._http import errors
from airflow_jobmon_provider.client.conversations import Retries
from airflow_jobmon_provider.client.conversations.server_version import check_server_version
from airflow_jobmon_provider.client.exceptions import (
    InvalidRequest,
    JobmonError,
    NotAuthorized,
    RouteNotSupported,
    ServerFailure,
    ServerTooOld,
    UnreadableReply,
)
from airflow_jobmon_provider.client.protocol import routes
from airflow_jobmon_provider.client.requester import Requester, ask, converse
from airflow_jobmon_provider.hooks.jobmon import JobmonHook
from dev.jobmon_sandbox import JobmonSandbox
from tests.contract.recordings import recorded
from tests.routes import ROUTES
from tests.stub_server import Reply, StubServer

NOT_THERE = Reply(404, b"This route does not exist: http://jobmon.example/api_version")
HEALTHY = Reply(200, {"status": "OK"})
FLASK_ROW = {
    "wf_name": "fit",
    "wf_args": "2026",
    "wf_created_date": "Wed, 25 Nov 2026 02:34:00 GMT",
    "wf_status_date": "Wed, 25 Nov 2026 02:34:09 GMT",
    "tool_name": "sandbox",
    "wf_status": "F",
    "wf_status_desc": "FAILED",
}
Stub = Callable[..., StubServer]


def check(requester: Requester, details: protocol.WorkflowDetails | None = None) -> None:
    converse(requester, check_server_version(details, Retries(0, 1), time.monotonic))


@pytest.mark.parametrize(
    "not_there", [NOT_THERE, Reply(404, {"detail": "Not Found"}), Reply(404, b"<h1>no</h1>")]
)
def test_a_server_without_api_version_is_too_old_and_nothing_was_changed(
    stub: Stub, not_there: Reply
) -> None:
    server = stub(not_there, HEALTHY)
    with pytest.raises(ServerTooOld) as caught:
        check(Requester(server.url))
    line = str(caught.value)
    assert line == (
        f"this Jobmon server ({server.url}) cannot tell its API's version, so it is older than 3.4, the"
        " oldest that this provider knows; needs a newer one"
    )
    assert [request.method for request in server.requests] == ["GET", "GET"]


@pytest.mark.parametrize(
    "not_there", [NOT_THERE, Reply(404, {"detail": "Not Found"}), Reply(404, b"<h1>no</h1>")]
)
def test_a_wrong_prefix_is_not_taken_for_an_old_server(stub: Stub, not_there: Reply) -> None:
    with pytest.raises(InvalidRequest, match="check the address and the route prefix") as caught:
        check(Requester(stub(not_there).url))
    assert not isinstance(caught.value, RouteNotSupported)


@pytest.mark.parametrize(
    ("prefix", "asked"),
    [
        ("/api/v3", ["/api_version"]),
        ("/3.6/api/v3", ["/api_version"]),
        ("/api/v2", ["/api_version", "/workflow_run"]),  # 3.3 has that version of the API, too
    ],
)
def test_a_server_that_this_client_knows_costs_a_request_or_two(
    sandbox: JobmonSandbox, prefix: str, asked: list[str]
) -> None:
    before = len(sandbox.requests())
    check(Requester(sandbox.url + prefix, retries_timeout=0))
    seen = sandbox.requests()[before:]
    assert [(request.method, request.path) for request in seen] == [("GET", prefix + path) for path in asked]


FLASK_405 = Reply(500, {"error": {"type": "<class 'werkzeug.exceptions.MethodNotAllowed'>"}})


def test_an_old_server_whose_api_has_a_version_that_is_still_in_use_is_told_apart(stub: Stub) -> None:
    server = stub({"status": "v2"}, FLASK_405)
    with pytest.raises(ServerTooOld) as caught:
        check(Requester(server.url))
    assert str(caught.value) == (
        f"this Jobmon server ({server.url}) answers as Jobmon before 3.4 does; this provider needs Jobmon 3.4"
        " or newer on the server"
    )
    asked = [(request.method, request.path.partition("?")[0]) for request in server.requests]
    assert asked == [("GET", "/api_version"), ("GET", "/workflow_run")]


@pytest.mark.parametrize(
    "refusal",
    [
        Reply(405, {"detail": "Method Not Allowed"}),
        Reply(403, b"<title>Forbidden</title>"),
        Reply(404, b"default backend - 404"),
        Reply(200, b"<title>Sign in</title>"),
    ],
    ids=["of 3.4", "403", "404", "a page"],
)
def test_a_refusal_that_is_not_an_old_servers_proves_nothing_against_it(stub: Stub, refusal: Reply) -> None:
    check(Requester(stub({"status": "v2"}, refusal).url))


def test_a_server_that_does_not_answer_is_not_taken_for_one_that_is_new_enough(stub: Stub) -> None:
    with pytest.raises(ServerFailure):
        check(Requester(stub({"status": "v2"}, Reply(503)).url))


def test_a_server_whose_reply_has_shown_its_age_costs_none(
    sandbox: JobmonSandbox, requester: Requester
) -> None:
    details = ask(requester, routes.workflow_details(sandbox.make_workflow_in("E").workflow_id))
    assert details is not None
    before = len(sandbox.requests())
    check(requester, details)
    assert not [request for request in sandbox.requests()[before:] if request.is_ours]


def test_a_reply_that_does_not_show_the_servers_age_is_not_relied_on(stub: Stub) -> None:
    details = routes.workflow_details(7).read([{"wf_status": "F", "wf_name": "fit"}])
    assert details is not None
    with pytest.raises(ServerTooOld):
        check(Requester(stub(NOT_THERE, HEALTHY).url), details)


@pytest.mark.parametrize("row", [FLASK_ROW, FLASK_ROW | {"wfr_jobmon_version": "3.3.1"}], ids=["3.2", "3.3"])
def test_the_details_of_an_old_server_tell_its_age_at_no_cost(stub: Stub, row: dict[str, Any]) -> None:
    server = stub([row])
    with pytest.raises(ServerTooOld) as caught:
        ask(Requester(server.url), routes.workflow_details(7))
    assert str(caught.value) == (
        f"GET {server.url}/workflow_details_viz/7: the reply is written as by Jobmon before 3.4; this"
        " provider needs Jobmon 3.4 or newer on the server"
    )


def test_a_login_that_is_wanted_is_not_taken_for_an_old_server(stub: Stub) -> None:
    with pytest.raises(NotAuthorized, match="JOBMON__AUTH__ENABLED=false"):
        check(Requester(stub(Reply(403, {"detail": "Unauthorized"})).url))


@pytest.mark.parametrize("call", [row.call() for row in ROUTES.values()], ids=ROUTES)
def test_null_is_the_reply_of_a_server_that_is_too_old_whatever_was_asked(
    stub: Stub, call: protocol.Call[Any]
) -> None:
    server = stub(Reply(200, b"null\n"))
    with pytest.raises(UnreadableReply) as caught:
        ask(Requester(server.url, retries_timeout=0), call)
    line = str(caught.value)
    assert line.startswith(f"{call.verb.upper()} {server.url}{call.route}: expected a ")
    assert line.endswith(
        "got null, as from a server that is too old: this provider needs Jobmon 3.4 or newer on the server"
    )


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (
            404,
            {"detail": "Not Found"},
            "check the address and the route prefix (/api/v3; /api/v2 on Jobmon 3.4.8)",
        ),
        (404, {"error": "Route http://x/api not found"}, "check the address and the route prefix (/api/v3"),
        (
            404,
            b"This route does not exist: http://x/",
            "Jobmon before 3.4 answers like this: this provider needs Jobmon",
        ),
        (
            404,
            b"default backend - 404",
            "Jobmon does not answer like this: check the address and the route prefix",
        ),
        (
            404,
            b"<html>nginx</html>",
            "Jobmon does not answer like this: check the address and the route prefix",
        ),
        (401, {"detail": "Unauthorized."}, "only the user of the workflow's latest run"),
        (401, {"detail": "Unauthorized"}, "check the login, password or token"),
        (
            401,
            b"",
            "a gateway or proxy before Jobmon refused: check the login, password or token that it wants",
        ),
        (403, b"<html><h1>403 Forbidden</h1></html>", "check the login, password or token"),
        (403, {"detail": "Forbidden"}, "check the login, password or token"),
        (403, {"detail": "Unauthorized"}, "have its administrator set JOBMON__AUTH__ENABLED=false"),
        (407, b"<html>Proxy Authentication Required</html>", "a proxy on the way to Jobmon wants a login"),
    ],
)
def test_a_refusal_says_who_refused_and_what_to_do(stub: Stub, status: int, body: Any, says: str) -> None:
    server = stub(Reply(status, body))
    with pytest.raises(InvalidRequest) as caught:
        ask(Requester(server.url), routes.is_resumable(7))
    line = str(caught.value)
    assert line.startswith(f"GET {server.url}/workflow/7/is_resumable: {status}")
    assert says in line
    assert len(line) < 500
    assert isinstance(caught.value, NotAuthorized) == (status in (401, 403))
    if "JOBMON__AUTH" in says or "latest run" in says:
        assert "check the login" not in line


def test_a_gateways_404_that_repeats_the_address_is_no_unknown_workflow(stub: Stub) -> None:
    server = stub(Reply(404, {"detail": "no route for /api/v3/workflow/7/is_resumable"}))
    with pytest.raises(InvalidRequest) as caught:
        ask(Requester(server.url), routes.is_resumable(7))
    assert type(caught.value) is InvalidRequest


@pytest.mark.parametrize("status", [200, 403, 404, 503])
def test_of_a_web_page_its_title_is_shown(stub: Stub, status: int) -> None:
    style = b"<style>" + b"body { color: black } " * 50 + b"</style>"
    page = b"<!DOCTYPE html>\n<html><head>" + style + b"<title>\n Access\n denied </title></head></html>"
    server = stub(Reply(status, page))
    with pytest.raises(JobmonError) as caught:
        ask(Requester(server.url, retries_timeout=0), routes.is_resumable(7))
    assert f"{status} (a web page: Access denied)" in str(caught.value)
    assert "style" not in str(caught.value)


@pytest.mark.parametrize(
    ("replies", "says"),
    [
        ([HEALTHY, NOT_THERE], "cannot tell its API's version, so it is older than 3.4"),
        ([HEALTHY, Reply(403, {"detail": "Unauthorized"})], "JOBMON__AUTH__ENABLED=false"),
        ([Reply(403, {"detail": "Unauthorized"})], "on Jobmon 3.4.8, use the route prefix /api/v2"),
        ([Reply(404, {"detail": "Not Found"})], "check the address and the route prefix (/api/v3; /api/v2"),
        ([Reply(200, b"null")], "this provider needs Jobmon 3.4 or newer"),
        ([Reply(403, b"<title>Forbidden</title>")], "check the login, password or token that it wants"),
    ],
)
def test_the_connection_forms_button_says_what_to_change(
    stub: Stub, connection: Callable[..., None], replies: list[Reply], says: str
) -> None:
    connection(stub(*replies).url, extra={"route_prefix": ""})
    healthy, line = JobmonHook().test_connection()
    assert not healthy
    assert says in line
    assert "\n" not in line


class ForeignRequest(Exception):
    pass


ForeignRequest.__name__ = "InvalidRequest"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{'detail': 'Unauthorized'}", "JOBMON__AUTH__ENABLED=false"),
        ("<html>Forbidden</html>", "check the login, password or token"),
    ],
)
def test_jobmons_own_requester_says_the_same_of_a_403(content: str, says: str) -> None:
    text = f"Client error with status code 403 from GET http://jobmon/api. Response content: {content}"
    error = errors.translate(ForeignRequest(text))
    assert isinstance(error, NotAuthorized)
    assert says in str(error)


# --- Who has a workflow -------------------------------------------------------------------------------------


def row(user: str, heartbeat: str | None, version: str = "3.7.0") -> dict[str, Any]:
    """Return a row of 3.7's ``workflow_details_viz``."""
    run = {"wfr_user": user, "wfr_heartbeat_date": heartbeat, "wfr_jobmon_version": version}
    return {"wf_status": "R", "wf_name": "fit", "wf_created_date": "2026-11-25T02:34:00", **run}


NOW, PAST, FUTURE, LATER = (f"2026-11-25T03:{minute}:00" for minute in ("30", "10", "31", "40"))
OURS = protocol.CLIENT_VERSION


@pytest.mark.parametrize(
    ("rows", "user"),
    [
        ([row("alice", FUTURE), row("me", NOW, OURS)], "alice"),
        ([row("alice", PAST), row("bob", FUTURE), row("me", NOW, OURS)], "bob"),
        ([row("alice", FUTURE), row("me", PAST, OURS), row("me", NOW, OURS)], "alice"),
        ([row("alice", PAST), row("me", NOW, OURS)], "alice"),  # bound, and so it need not beat
        ([row("me", FUTURE, OURS), row("me", NOW, OURS)], "me"),  # that of another task of ours
        ([row("alice", PAST), row("me", FUTURE, OURS), row("me", NOW, OURS)], "me"),
        ([row("me", PAST, OURS), row("me", NOW, OURS)], "me"),
        ([row("alice", PAST), row("me", PAST, OURS), row("me", NOW, OURS)], None),  # nobody can tell
        ([row("alice", FUTURE, OURS), row("me", NOW, OURS)], "alice"),  # another Airflow's
        ([row("alice", None), row("bob", FUTURE), row("me", NOW, OURS)], "bob"),
        ([row("me", NOW, OURS)], None),
        ([row("alice", FUTURE), row("carol", LATER)], "carol"),
    ],
)
def test_a_refusal_names_who_has_the_workflow_and_never_the_refused_run(
    rows: list[dict[str, Any]], user: str | None
) -> None:
    details = routes.workflow_details(7, refused=True).read(rows)
    assert details is not None
    assert details.run_user == user
    assert details.status == "R"


def test_without_a_refusal_the_latest_heartbeat_tells_the_user() -> None:
    details = routes.workflow_details(7).read([row("alice", PAST), row("me", NOW, OURS)])
    assert details is not None
    assert details.run_user == "me"


def test_a_refused_create_names_who_has_the_run_on_a_real_server(sandbox: JobmonSandbox) -> None:
    requester = Requester(sandbox.url + "/api/v3", retries_timeout=0)
    workflow = sandbox.make_workflow_in("R")  # by user "sandbox"
    for _ in range(2):
        with pytest.raises(JobmonError):
            ask(requester, routes.create_workflow_run(workflow.workflow_id, "me", 93))
    details = ask(requester, routes.workflow_details(workflow.workflow_id, refused=True))
    assert details is not None
    assert details.run_user == "sandbox"
    assert [status for _, status in sandbox.runs(workflow.workflow_id)] == ["R", "G", "G"]


def test_in_what_a_real_server_replied_the_refused_run_is_the_last_row() -> None:
    recording = recorded("3.7")["workflow_details: a refused run"]
    users = [each["wfr_user"] for each in recording["body"]]
    assert users == ["carol", "alice", "bob"]  # an ended run, one that links, and the refused one
    details = routes.workflow_details(1, refused=True).read(recording["body"])
    assert details is not None
    assert details.run_user == "alice"

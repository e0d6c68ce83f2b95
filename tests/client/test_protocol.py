"""How responses are deciphered and replies are read, without a server."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_jobmon_provider.client import protocol
from airflow_jobmon_provider.client._http import errors
from airflow_jobmon_provider.client.exceptions import (
    InvalidRequest,
    InvalidResponse,
    JobmonError,
    NotAuthorized,
    RecordNotFound,
    RouteNotSupported,
    ServerFailure,
    ServerUnreachable,
    TransitionRefused,
    UnreadableReply,
    WorkflowNotFound,
    WorkflowNotResumable,
    WorkflowRunNotFound,
)
from airflow_jobmon_provider.client.lifecycle import RunStatus
from airflow_jobmon_provider.client.protocol import (
    Response,
    WorkflowDetails,
    routes,
)
from airflow_jobmon_provider.client.redaction import excerpt
from airflow_jobmon_provider.client.validation import positive_id
from tests.routes import ROUTES, SAMPLES, Row, Sample, keys_in, understood

URL = "http://jobmon.example/api/v3/workflow/7/is_resumable"
SERVER = "http://jobmon.example/api/v3"


def response(status: int, body: Any = b"", **headers: str) -> Response:
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    return Response(status, {key.replace("_", "-"): value for key, value in headers.items()}, body)


def test_a_good_reply_is_its_json() -> None:
    assert protocol.decipher("get", URL, response(200, {"a": 1})) == {"a": 1}


@pytest.mark.parametrize(
    ("got", "error", "says"),
    [
        (response(400, {"error": {"type": "InvalidUsage"}}), InvalidRequest, "400"),
        (response(401, b"who?"), NotAuthorized, "check the login, password or token"),
        (response(403, {"detail": "Unauthorized"}), NotAuthorized, "403"),
        (response(404, {"detail": "Not Found"}), InvalidRequest, "check the address and the route prefix"),
        (response(404, {"error": f"Route {URL} not found"}), InvalidRequest, "route prefix"),
        (response(404, b"<html>not found</html>"), InvalidRequest, "<html>not found</html>"),
        (response(404, ["workflow"]), InvalidRequest, "404"),
        (response(404, {"detail": "Workflow with ID 7 not found in database."}), RecordNotFound, "ID 7"),
        (response(500, {"error": {"type": "<class 'x.NoResultFound'>"}}), RecordNotFound, "500"),
        (response(500, {"error": {"type": "<class 'x.InvalidStateTransition'>"}}), TransitionRefused, "500"),
        (response(500, {"error": {"type": "<class 'KeyError'>"}}), ServerFailure, "KeyError"),
        (response(500, {"error": "broken"}), ServerFailure, "broken"),
        (response(502, b"<html>bad gateway</html>"), ServerFailure, "502"),
        (response(423, {"error": {"type": "OperationalError"}}), ServerFailure, "423"),
        (response(429), ServerFailure, "429"),
        (response(422, {"detail": [{"msg": "field required"}]}), InvalidRequest, "422"),
        (response(302, location="https://sso.example/login"), InvalidRequest, "https://sso.example/login"),
        (response(307), InvalidRequest, "nowhere"),
        (response(200, b"<html>Log in</html>"), UnreadableReply, "is this Jobmon?"),
        (response(200, b'{"cut": '), UnreadableReply, "not JSON"),
        (response(200, b""), UnreadableReply, "not JSON"),
        (response(200, b"[" * 200_000), UnreadableReply, "not JSON"),
        (response(200, b" " * (protocol.MAX_REPLY_BYTES + 1)), UnreadableReply, "more than"),
    ],
)
def test_every_other_response_is_one_typed_line_that_names_the_url(
    got: Response, error: type[JobmonError], says: str
) -> None:
    with pytest.raises(JobmonError) as caught:
        protocol.decipher("get", URL, got)
    assert type(caught.value) is error
    line = str(caught.value)
    assert says in line
    assert f"GET {URL}" in line
    assert "\n" not in line
    assert len(line) < 500


@given(st.integers(100, 599), st.binary(max_size=300))
def test_any_response_is_json_or_a_typed_error(status: int, body: bytes) -> None:
    try:
        protocol.decipher("get", URL, Response(status, {}, body))
    except JobmonError:
        return
    assert 200 <= status < 300
    json.loads(body)


def test_what_may_have_been_carried_out_and_what_not() -> None:
    def failure(status: int, **headers: str) -> ServerFailure:
        with pytest.raises(ServerFailure) as caught:
            protocol.decipher("post", URL, response(status, **headers))
        return caught.value

    assert failure(500).processed
    assert not failure(423).processed
    assert not failure(429).processed
    assert failure(503, retry_after="7").retry_after == 7
    assert failure(503, retry_after=" 7 ").retry_after == 7
    assert failure(503, retry_after="7\x1f").retry_after is None
    assert failure(503, retry_after="Wed, 21 Oct 2026 07:28:00 GMT").retry_after is None
    assert protocol.is_retryable(failure(500))
    assert not protocol.was_not_processed(failure(500))
    assert protocol.was_not_processed(failure(423))
    refused, reset = (
        errors.not_answered(
            "post", URL, errors.Failure(OSError(), connected=connected, timed_out=False), limit=20
        )
        for connected in (False, True)
    )
    assert protocol.is_retryable(refused)
    assert protocol.was_not_processed(refused)
    assert not protocol.was_not_processed(reset)
    assert not protocol.is_retryable(UnreadableReply("html"))
    assert not protocol.is_retryable(RecordNotFound("none"))


def test_an_excerpt_is_one_short_line_without_control_characters() -> None:
    assert excerpt(b"a\x1b[31mred\r\n\tb\x00") == "a [31mred b"
    assert len(excerpt("x" * 1000)) == 200


# --- what calls send and read -------------------------------------------------------------------------------


def test_calls_send_what_the_protocol_page_says() -> None:
    assert routes.set_resume(7, True).message == {"reset_running_jobs": True}
    assert routes.set_resume_state(7, False).message == {"reset_if_running": False}
    assert routes.log_heartbeat(3, RunStatus.LINKING, 93.0).message == {
        "next_report_increment": 93.0,
        "status": "L",
    }
    assert routes.peek_status(3).message["status"] == "G"
    assert routes.update_status(3, RunStatus.ABORTED).message == {"status": "A"}
    create = routes.create_workflow_run(7, "alice", 93.0)
    assert create.message["next_report_increment"] == 93.0
    assert create.message["user"] == "alice"
    assert not create.idempotent


@pytest.mark.parametrize(("row", "sample"), SAMPLES.values(), ids=SAMPLES)
def test_a_reply_is_read_into_typed_data(row: Row, sample: Sample) -> None:
    call = row.call_for(sample)
    if isinstance(sample.result, type):
        with pytest.raises(JobmonError) as caught:
            understood(call, sample.status, sample.reply)
        assert type(caught.value) is sample.result
    else:
        assert understood(call, sample.status, sample.reply) == sample.result
        assert call.read(sample.reply) == sample.result


def test_details_need_no_more_than_a_status_and_a_name() -> None:
    rows = [{"wf_status": "F", "wf_name": "x"}, {"wf_status": "F", "wf_name": "x"}]
    assert routes.workflow_details(7).read(rows) == WorkflowDetails("F", "x")


@functools.cache
def any_json(row: Row) -> st.SearchStrategy[Any]:
    """Return a strategy for any JSON, with the keys of a route's replies among it."""
    keys = sorted({"status", "err_msg", *(key for sample in row.samples for key in keys_in(sample.reply))})
    return st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(keys), inner, max_size=6),
        max_leaves=8,
    )


@pytest.mark.parametrize("row", ROUTES.values(), ids=ROUTES)
@given(data=st.data())
def test_any_json_is_read_or_a_typed_error(row: Row, data: st.DataObject) -> None:
    reply = data.draw(any_json(row))
    try:
        row.call().read(reply)
    except JobmonError as error:
        assert "\n" not in str(error)


def test_a_refusal_with_status_200_is_an_error_with_the_servers_words() -> None:
    with pytest.raises(WorkflowNotResumable, match="Please set the appropriate resume state"):
        routes.set_resume_state(7, True).read({"err_msg": "Please set the appropriate resume state."})
    with pytest.raises(WorkflowNotResumable, match="currently linking"):
        routes.create_workflow_run(7, "a", 93).read({"workflow_run_id": None, "err_msg": "currently linking"})
    with pytest.raises(WorkflowNotFound, match="workflow 7 does not exist"):
        routes.create_workflow_run(7, "a", 93).read(
            {"workflow_run_id": None, "err_msg": "No workflow exists for ID 7"}
        )


@pytest.mark.parametrize("rows", [[5], [[5]], [["5", 7]], [[5, True]], [[5, 7, 9]]])
def test_a_list_of_lost_runs_holds_pairs_of_ids(rows: Any) -> None:
    with pytest.raises(UnreadableReply, match="expected pairs of ids"):
        routes.lost_workflow_runs(RunStatus.LINKING).read({"workflow_runs": rows})


@pytest.mark.parametrize("number", [0, -5, 2**63, 10**4000])
def test_an_id_that_no_database_holds_is_none(number: int) -> None:
    with pytest.raises(UnreadableReply, match="'workflow_run_id' to be") as caught:
        routes.create_workflow_run(7, "a", 93).read({"workflow_run_id": number, "status": "L"})
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("depth", [400, 900])
@pytest.mark.parametrize("row", ROUTES.values(), ids=ROUTES)
def test_a_reply_that_is_nested_deeply_is_a_typed_error(row: Row, depth: int) -> None:
    nested = json.loads("[" * depth + "]" * depth)
    for reply in (nested, {"status": nested, "err_msg": nested, "error": {"type": nested}}):
        try:
            row.call().understand(reply, SERVER)
        except JobmonError as error:
            assert len(str(error)) < 500
            assert str(error).isprintable()


def test_what_cannot_be_shown_is_named() -> None:
    class Deep:
        def __str__(self) -> str:
            return str(self)

    deep = Deep()
    assert excerpt(deep) == "(Deep that cannot be shown)"
    with pytest.raises(ValueError, match=r"x must be a positive integer, not \(a int that cannot be shown\)"):
        positive_id("x", 10**5000)


def test_a_text_that_is_no_status_is_not_taken_for_one() -> None:
    with pytest.raises(UnreadableReply, match=r"'\?' is not a status of a workflow run"):
        routes.peek_status(5).read({"status": "?"})


def test_errors_are_explained_in_terms_of_what_was_asked() -> None:
    found = routes.is_resumable(7).explain(RecordNotFound("500 NoResultFound", 500), SERVER)
    assert type(found) is WorkflowNotFound
    assert str(found) == f"workflow 7 does not exist at {SERVER}"
    run = routes.peek_status(5).explain(RecordNotFound("500 NoResultFound", 500), SERVER)
    assert type(run) is WorkflowRunNotFound
    cannot = routes.force_cleanup_kill_self(7).explain(InvalidRequest(f"POST {SERVER}: 404", 404), SERVER)
    assert type(cannot) is RouteNotSupported
    assert str(cannot) == f"this Jobmon server ({SERVER}) cannot force a clean-up; needs a newer one"
    bad = InvalidRequest(f"GET {SERVER}: 400", 400)
    assert routes.force_cleanup_kill_self(7).explain(bad, SERVER) is bad
    with pytest.raises(UnreadableReply) as caught:
        routes.is_resumable(7).understand(["no object"], SERVER)
    asked = f"GET {SERVER}/workflow/7/is_resumable"
    assert str(caught.value) == f"{asked}: expected a JSON object, got ['no object']"


def test_a_route_cannot_leave_its_place_in_the_url() -> None:
    assert protocol.url_of(SERVER, "/workflow/7?x#y") == f"{SERVER}/workflow/7%3Fx%23y"


# --- errors of somebody else's requester --------------------------------------------------------------------


class ForeignRequest(Exception):
    pass


ForeignRequest.__name__ = "InvalidRequest"


class ForeignResponse(Exception):
    pass


ForeignResponse.__name__ = "InvalidResponse"


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        (ForeignRequest("Client error with status code 404 from GET. Response content: {}"), InvalidRequest),
        (
            ForeignRequest("status code 404 from GET. Response content: {'detail': 'Workflow with ID 7 …'}"),
            RecordNotFound,
        ),
        (ForeignRequest("Client error with status code 401 from GET"), NotAuthorized),
        (ForeignResponse("status code 500 from GET. Response content: …NoResultFound…"), RecordNotFound),
        (
            ForeignResponse("status code 500 from POST. Response content: …InvalidStateTransition…"),
            TransitionRefused,
        ),
        (ForeignResponse("status code 503 from GET"), ServerFailure),
        (ConnectionRefusedError("refused"), ServerUnreachable),
        (RuntimeError("Exceeded HTTP request retry budget due to: x"), InvalidResponse),
        (WorkflowNotFound("ours already"), WorkflowNotFound),
    ],
)
def test_errors_of_jobmons_own_requester_are_understood(foreign: Exception, ours: type[Exception]) -> None:
    assert type(errors.translate(foreign)) is ours


@pytest.mark.parametrize("foreign", [RuntimeError("a bug"), KeyError("x")])
def test_an_error_that_is_none_of_ours_stays_what_it_is(foreign: Exception) -> None:
    assert errors.translate(foreign) is None

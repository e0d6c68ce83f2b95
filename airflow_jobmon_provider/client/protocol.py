"""Jobmon's HTTP protocol without I/O: what to send for each route, and how to read what comes back.

Each function below is one route of Jobmon's server. It returns a :class:`Call`, which either transport sends
and whose ``read`` turns the reply into typed data or raises. Whoever adds a route adds a function here.
``decipher`` reads every HTTP response, status by status; ``is_retryable`` and ``was_not_processed`` are the
only places that decide which failures are worth a retry.

The facts about routes and replies come from docs/protocol.md, which was measured on Jobmon 3.4.8
and on its development version of early 2026 ("3.7").
"""

from __future__ import annotations

import itertools
import json
import os
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, Literal, NoReturn, TypeVar
from urllib.parse import quote

from airflow_jobmon_provider import __version__
from airflow_jobmon_provider.client.exceptions import (
    CertificateNotTrusted,
    InvalidRequest,
    InvalidResponse,
    JobmonError,
    NotAuthorized,
    RecordNotFound,
    RouteNotSupported,
    ServerFailure,
    ServerTooOld,
    ServerUnreachable,
    TransitionRefused,
    UnreadableReply,
    WorkflowBusy,
    WorkflowNotFound,
    WorkflowNotResumable,
    WorkflowRunNotFound,
)
from airflow_jobmon_provider.client.lifecycle import RunStatus, read_status
from airflow_jobmon_provider.client.text import (
    EXCERPT_LENGTH,
    NO_SECRETS,
    Secrets,
    excerpt,
    excerpt_of_body,
)

T = TypeVar("T")
Verb = Literal["get", "post", "put"]

# Stored with every run in Jobmon's `workflow_run.jobmon_version`: tells its operators who created the run.
CLIENT_VERSION = f"airflow-provider-jobmon-{__version__}"

USER_AGENT = f"airflow-provider-jobmon/{__version__}"

MAX_REPLY_BYTES = 16 * 2**20
"""Replies longer than this are not read to their end: the longest that Jobmon sends us has a few kB."""

TOO_OLD = "this provider needs Jobmon 3.4 or newer on the server"

_NAME_LENGTH = 80
_PAST_ALL_NUMBERS = 2**63  # Jobmon's databases hold none that is larger
_ERROR_LENGTH = 20_000


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, and how to read its reply.

    :param verb: HTTP method, as Jobmon's requester spells it.
    :param route: below the route prefix, with its leading slash.
    :param message: JSON body (post, put) or query parameters (get).
    :param read: turns the decoded JSON reply into typed data; raises a ``JobmonError`` if it says no.
    :param not_found: what it means that the server has no such record.
    :param refused: what it means that the server cannot get there from the status that is.
    :param unsupported: what a server without the route cannot do; None: every server has it.
    :param idempotent: whether sending it twice is the same as sending it once.
    :param frequent: whether thousands of it are sent, so that a transport may prepare it and send it in a
        cheaper way. Such a call is idempotent, too. The transport knows it again by its identity: a
        conversation that keeps the object, instead of making an equal one each time, has it prepared once.
    :param costly: whether it costs the server time in proportion to the workflow's tasks: half a minute for
        a million (docs/protocol.md, "Size"). Such a call is given more time, and not sent again while it may
        be at work.
    """

    verb: Verb
    route: str
    message: Mapping[str, Any]
    read: Callable[[Any], T]
    not_found: JobmonError | None = None
    refused: JobmonError | None = None
    unsupported: str | None = None
    idempotent: bool = True
    frequent: bool = False
    costly: bool = False

    def understand(self, reply: Any, server: str) -> T:
        """Return what ``read`` makes of the decoded JSON reply; what it raises says what was asked of whom.

        :param server: address of the server, without credentials.
        """
        try:
            return self.read(reply)
        except JobmonError as error:
            raise type(error)(f"{self.verb.upper()} {server}{self.route}: {error}") from None

    def explain(self, error: JobmonError, server: str) -> JobmonError:
        """Return a transport's error as it reads for what this call asked.

        :param error: what the transport raised.
        :param server: address of the server, without credentials.
        """
        if isinstance(error, RecordNotFound) and self.not_found is not None:
            return type(self.not_found)(f"{self.not_found} at {server}")
        if isinstance(error, TransitionRefused) and self.refused is not None:
            return type(self.refused)(f"{self.refused} at {server}")
        if self.unsupported is not None and isinstance(error, InvalidRequest) and error.status_code == 404:
            return RouteNotSupported(
                f"this Jobmon server ({server}) cannot {self.unsupported}; needs a newer one"
            )
        return error


# --- What replies say ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Resumability:
    """Reply of ``is_resumable``.

    :param resumable: no run of the workflow is alive. True also for a workflow that is DONE.
    :param pending_kill_self: task instances that were told to kill themselves and have not answered; None:
        this server does not count them (3.4.8), and cannot force their clean-up either.
    """

    resumable: bool
    pending_kill_self: int | None


@dataclass(frozen=True, slots=True)
class CreatedRun:
    """Reply of ``POST /workflow_run``: a new run, which is LINKING and owned by whoever asked for it."""

    workflow_run_id: int
    status: RunStatus


@dataclass(frozen=True, slots=True)
class LostRun:
    """A run whose heartbeat date has passed, from ``lost_workflow_run``."""

    workflow_run_id: int
    workflow_id: int


@dataclass(frozen=True, slots=True)
class WorkflowDetails:
    """Reply of ``workflow_details_viz``.

    :param status: code of the workflow's status; compare it with ``WorkflowStatus``.
    :param name: the workflow's name.
    :param run_user: who made the run that the workflow has now, or had last; None: the server does not say
        (3.4.8), or its reply does not tell.
    :param modern: the reply itself shows that the server is not too old for this provider. False: it does not
        show that; see :func:`~airflow_jobmon_provider.client.compatibility.check_server_version`.
    :param status_since: when it got that status, in the server's words: it stays the same as long as no run
        of the workflow begins or ends.
    """

    status: str
    name: str
    run_user: str | None = None
    modern: bool = field(default=False, compare=False)
    status_since: str | None = None


@dataclass(frozen=True, slots=True)
class TaskCounts:
    """Reply of ``workflow_status_viz``: how many tasks of a workflow are where, in Jobmon's words.

    :param total: all of them.
    :param pending: not handed to the cluster yet; also those that failed and will be tried again.
    :param scheduled: handed to the cluster.
    :param running: being executed.
    :param done: succeeded.
    :param fatal: failed for good.
    """

    total: int
    pending: int
    scheduled: int
    running: int
    done: int
    fatal: int

    def __str__(self) -> str:
        """How far the workflow is, as shown to users: ``412/1000 done, 30 running, 2 failed``."""
        return f"{self.done}/{self.total} done, {self.running} running, {self.fatal} failed"

    def as_dict(self) -> dict[str, int]:
        """Return the counts as plain data, for XCom."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class FailedTask:
    """A task that failed for good, from ``workflow_tasks``.

    :param task_id: its id.
    :param name: its name, as one short line.
    """

    task_id: int
    name: str


# --- Routes -------------------------------------------------------------------------------------------------


def health() -> Call[None]:
    """GET /health: whether the server and its database answer."""
    return Call("get", "/health", {}, _nothing)


def api_version() -> Call[str]:
    """GET /api_version: ``v2``, ``v3``. A server that is healthy and lacks it is too old (3.2)."""
    return Call(
        "get",
        "/api_version",
        {},
        lambda reply: _name(reply, "status"),
        unsupported="tell its API's version, so it is older than 3.4, the oldest that this provider knows",
    )


def set_resume(workflow_id: int, reset_running_jobs: bool) -> Call[None]:
    """POST set_resume: move the workflow's active run (B or R) to C (cold) or H (hot).

    The server accepts it for a workflow that does not exist, too: ask ``is_resumable`` next, which does not.
    """
    return Call(
        "post",
        f"/workflow/{workflow_id}/set_resume",
        {"reset_running_jobs": reset_running_jobs},
        _nothing,
        not_found=_no_workflow(workflow_id),
    )


def is_resumable(workflow_id: int) -> Call[Resumability]:
    """GET is_resumable: whether a new run could be created, and what is in the way."""

    def read(reply: Any) -> Resumability:
        pending = _key(reply, "pending_kill_self", int) if "pending_kill_self" in _object(reply) else None
        return Resumability(_key(reply, "workflow_is_resumable", bool), pending)

    route = f"/workflow/{workflow_id}/is_resumable"
    return Call("get", route, {}, read, not_found=_no_workflow(workflow_id))


def force_cleanup_kill_self(workflow_id: int) -> Call[int]:
    """POST force_cleanup_kill_self: give up on stuck task instances, end their run. 3.7 only."""
    return Call(
        "post",
        f"/workflow/{workflow_id}/force_cleanup_kill_self",
        {},
        lambda reply: int(_key(reply, "num_cleaned_up", int)),
        not_found=_no_workflow(workflow_id),
        unsupported="force a clean-up",
    )


def set_resume_state(workflow_id: int, reset_if_running: bool) -> Call[None]:
    """POST set_resume_state: make the tasks that are not done ready to run again.

    A refusal comes as status 200 with ``err_msg``, which Jobmon's own client overlooks.
    """

    def read(reply: Any) -> None:
        if _object(reply).get("err_msg"):
            _refuse(workflow_id, reply["err_msg"])

    return Call(
        "post",
        f"/task/{workflow_id}/set_resume_state",
        {"reset_if_running": reset_if_running},
        read,
        not_found=_no_workflow(workflow_id),
        costly=True,
    )


def create_workflow_run(workflow_id: int, user: str, next_report_increment: float) -> Call[CreatedRun]:
    """POST workflow_run: create the workflow's next run.

    Not idempotent: if the reply is lost, the run exists and blocks the next try.

    :param next_report_increment: seconds for which the run counts as alive without a heartbeat.
    """

    def read(reply: Any) -> CreatedRun:
        if _object(reply).get("workflow_run_id") is None:
            _refuse(workflow_id, _key(reply, "err_msg", str))
        return CreatedRun(_id(reply, "workflow_run_id"), _run_status(reply))

    message = {
        "workflow_id": workflow_id,
        "user": user,
        "jobmon_version": CLIENT_VERSION,
        "next_report_increment": next_report_increment,
    }
    return Call(
        "post",
        "/workflow_run",
        message,
        read,
        not_found=_no_workflow(workflow_id),
        # Such a run does not count as alive for is_resumable, and is not reaped.
        refused=WorkflowBusy(
            f"workflow {workflow_id} has a run that an executor has taken and not begun (INSTANTIATED or"
            " LAUNCHED); wait for its end, or, if that executor is dead, have the run's status set to E,"
            " which Jobmon's reaper does not do. So it stands"
        ),
        idempotent=False,
    )


def log_heartbeat(workflow_run_id: int, status: RunStatus, next_report_increment: float) -> Call[RunStatus]:
    """POST log_heartbeat: say that the run is alive, and learn its status.

    :param status: the status that the server last reported, nothing else: a heartbeat can move a run. One
        that this version does not know is never sent: what it would do is not known either, so the status is
        only read then (:func:`peek_status`).
    :param next_report_increment: seconds for which this heartbeat is good.
    """
    if not status.is_known:
        return peek_status(workflow_run_id)
    return Call(
        "post",
        f"/workflow_run/{workflow_run_id}/log_heartbeat",
        {"next_report_increment": next_report_increment, "status": status.value},
        _run_status,
        not_found=_no_run(workflow_run_id),
        frequent=True,
    )


def peek_status(workflow_run_id: int) -> Call[RunStatus]:
    """Read a run's status and change nothing, not even its heartbeat date.

    No route reads one run's status. A heartbeat that says REGISTERED does: nothing leads into that status,
    so the server refuses it and replies the status that is (docs/protocol.md, "Heartbeats").
    """
    return log_heartbeat(workflow_run_id, RunStatus.REGISTERED, 0)


def update_status(workflow_run_id: int, status: RunStatus) -> Call[RunStatus]:
    """PUT update_status: ask for a transition; the reply is the status that is now, refused or not."""
    return Call(
        "put",
        f"/workflow_run/{workflow_run_id}/update_status",
        {"status": status.value},
        _run_status,
        not_found=_no_run(workflow_run_id),
    )


def lost_workflow_runs(status: RunStatus) -> Call[tuple[LostRun, ...]]:
    """GET lost_workflow_run: the runs in a status whose heartbeat date has passed.

    ``version`` is required. 3.7 ignores it; 3.4.8 lists only runs of the server version that equals it, which
    no route tells, and so none here.
    """

    def read(reply: Any) -> tuple[LostRun, ...]:
        rows = _key(reply, "workflow_runs", list)
        if not all(isinstance(row, list) and len(row) == 2 and all(map(_is_id, row)) for row in rows):
            raise UnreadableReply(f"expected pairs of ids, got {excerpt(reply)}")
        return tuple(LostRun(*row) for row in rows)

    return Call("get", "/lost_workflow_run", {"status": [status.value], "version": CLIENT_VERSION}, read)


def reap(workflow_run_id: int) -> Call[None]:
    """PUT reap: end a run whose heartbeat date has passed, as Jobmon's reaper does; else nothing happens."""
    return Call(
        "put", f"/workflow_run/{workflow_run_id}/reap", {}, _nothing, not_found=_no_run(workflow_run_id)
    )


def workflow_details(workflow_id: int, refused: bool = False) -> Call[WorkflowDetails | None]:
    """GET workflow_details_viz: the workflow's status; None where no run of such a workflow was ever made.

    One row for each of its runs, by their age, which differ only in what they say of the run: 3.4.8 names
    its Jobmon version, 3.7 also its user and its heartbeat date, and neither its id or status.

    :param refused: this client has just been refused a run, and a refused one stays among the rows for ever.
    """

    def read(reply: Any) -> WorkflowDetails | None:
        if not isinstance(reply, list):
            raise _unexpected("a list", reply)
        if not reply:
            return None
        rows = [_object(row) for row in reply]
        created, since = _text(rows[0].get("wf_created_date")), rows[0].get("wf_status_date")
        if re.match("[A-Z][a-z]{2}, ", created):  # as Flask writes dates, on which Jobmon rested before 3.4
            raise ServerTooOld(TOO_OLD)
        owner = _owner(rows, refused=refused)
        return WorkflowDetails(
            _name(rows[0], "wf_status"),
            _name(rows[0], "wf_name"),
            excerpt(owner) if owner else None,
            modern=created[:4].isdigit(),
            status_since=excerpt(since) if since else None,
        )

    route = f"/workflow_details_viz/{workflow_id}"
    return Call("get", route, {}, read, not_found=_no_workflow(workflow_id))


def _owner(rows: list[dict[str, Any]], *, refused: bool) -> str | None:
    """Return the user of the run that a workflow has now, as far as rows of ``workflow_details_viz`` tell.

    A run that is kept alive has a heartbeat date in the future, and so the latest of all. A refused one keeps
    the date of its creation. A row tells neither the run's status nor what time it is; but ours, which was
    refused a moment ago, is the last of this client's, and its date is now.

    :param rows: one for each run, oldest first.
    :param refused: this client has just been refused a run.
    """

    def date(row: dict[str, Any]) -> str:
        return _text(row.get("wfr_heartbeat_date"))  # ISO 8601: in the order of time

    ours = [row for row in rows if row.get("wfr_jobmon_version") == CLIENT_VERSION] if refused else []
    candidates = rows
    if ours:
        just_refused = ours[-1]
        candidates = [row for row in rows if row is not just_refused]
        if not any(date(row) > date(just_refused) for row in candidates):  # nobody's heartbeat is good
            others = [row for row in ours[:-1] if row.get("wfr_user") == just_refused.get("wfr_user")]
            users = {_text(row.get("wfr_user")) for row in candidates}
            if others and len(users) > 1:
                return None  # each of them may be a run, or one more that was refused
    latest = max(candidates, key=date, default=None)
    return _text(latest.get("wfr_user")) or None if latest else None


def task_counts(workflow_id: int) -> Call[TaskCounts]:
    """GET workflow_status_viz: how many tasks are where. Costs the server O(tasks): spend it sparingly.

    A workflow that does not exist, or has no tasks, is a 500 on 3.4.8 that looks like any other; 3.7 counts
    nought.
    """

    def read(reply: Any) -> TaskCounts:
        if not _object(reply):
            raise _no_workflow(workflow_id)
        counts = _key(reply, str(workflow_id), dict)
        keys = ("tasks", "PENDING", "SCHEDULED", "RUNNING", "DONE", "FATAL")
        return TaskCounts(*(_key(counts, key, int) for key in keys))

    message = {"workflow_ids": [workflow_id]}
    return Call(
        "get", "/workflow_status_viz", message, read, not_found=_no_workflow(workflow_id), costly=True
    )


def failed_tasks(workflow_id: int, limit: int) -> Call[tuple[FailedTask, ...]]:
    """GET workflow_tasks: the tasks that failed for good, those created last first.

    :param limit: return so many at most, at least 1. The server reads all of them whatever the limit.
    """

    def read(reply: Any) -> tuple[FailedTask, ...]:
        # pandas' text: {"TASK_ID": {"0": 12, …}, "TASK_NAME": {"0": "fit", …}, …}
        try:
            columns = json.loads(_key(reply, "workflow_tasks", str))
        except (ValueError, RecursionError):
            raise UnreadableReply(f"expected a table as JSON text, got {excerpt(reply)}") from None
        ids, names = _key(columns, "TASK_ID", dict), _key(columns, "TASK_NAME", dict)
        return tuple(FailedTask(_id(ids, row), _name(names, row)) for row in itertools.islice(ids, limit))

    route = f"/workflow/{workflow_id}/workflow_tasks"
    message = {"status": ["FATAL"], "limit": limit}
    return Call("get", route, message, read, not_found=_no_workflow(workflow_id), costly=True)


def most_recent_error(task_id: int) -> Call[str]:
    """GET most_recent_ti_error: the end of what the task's last failed try said; "" if nothing was kept.

    Each line of it is short and free of control characters.
    """

    def read(reply: Any) -> str:
        # Its tail first: splitting and cleaning megabytes is work that the triggerer's event loop cannot do.
        lines = _key(reply, "error_description", str)[-_ERROR_LENGTH:].splitlines()
        return "\n".join(_indented(line) for line in lines if line.strip())

    return Call("get", f"/task/{task_id}/most_recent_ti_error", {}, read)


def probe_increase_resources(workflow_id: int) -> Call[None]:
    """GET increase_resources: tells whether the server has that route, and changes nothing.

    A server that has it (3.6) refuses with 405, as it is for POST only; one that has not, with 404.
    """
    return Call(
        "get",
        f"/workflow/{workflow_id}/increase_resources",
        {},
        _nothing,
        unsupported="raise the resources of failed tasks",
    )


def increase_resources(workflow_id: int) -> Call[int]:
    """POST increase_resources: raise the resources of tasks that failed for lack of them. 3.6 and later.

    Not idempotent: twice may raise them twice. Returns how many tasks were raised.
    """
    return Call(
        "post",
        f"/workflow/{workflow_id}/increase_resources",
        {},
        lambda reply: int(_key(reply, "updated_task_count", int)),
        not_found=_no_workflow(workflow_id),
        costly=True,
        unsupported="raise the resources of failed tasks",
        idempotent=False,
    )


def _no_workflow(workflow_id: int) -> WorkflowNotFound:
    return WorkflowNotFound(f"workflow {workflow_id} does not exist")


def _no_run(workflow_run_id: int) -> WorkflowRunNotFound:
    return WorkflowRunNotFound(f"workflow run {workflow_run_id} does not exist")


def _refuse(workflow_id: int, text: Any) -> NoReturn:
    """Raise what an ``err_msg`` says: the server refused with status 200."""
    said = excerpt(text)
    if said.startswith("No workflow exists"):
        raise WorkflowNotFound(f"workflow {workflow_id} does not exist: {said}")
    # The words are "… is currentlylinking, …", also where the other run has long been taken by an executor.
    kind = WorkflowBusy if "linking" in _text(text) else WorkflowNotResumable
    raise kind(f"Jobmon refused workflow {workflow_id}: {said}")


def _nothing(reply: Any) -> None:
    _object(reply)


def _unexpected(what: str, reply: Any) -> UnreadableReply:
    """Return the error for a reply of another kind than a route's.

    :param what: what it should have been.
    """
    if reply is None:  # several routes of Jobmon before 3.4 answer so, and have done what they were asked
        return UnreadableReply(f"expected {what}, got null, as from a server that is too old: {TOO_OLD}")
    return UnreadableReply(f"expected {what}, got {excerpt(reply)}")


def _object(reply: Any) -> dict[str, Any]:
    if not isinstance(reply, dict):
        raise _unexpected("a JSON object", reply)
    return reply


def _key(reply: Any, key: str, kind: Any) -> Any:
    value: Any = _object(reply).get(key)
    # bool is an int to Python, but a server that sends true for a count or an id did not mean 1
    wrong = not isinstance(value, kind) or (
        kind is int and (isinstance(value, bool) or abs(value) >= _PAST_ALL_NUMBERS)
    )
    if wrong:
        name = excerpt(key, _NAME_LENGTH)  # a row's, which the server has named
        raise UnreadableReply(f"expected {name!r} to be of type {kind.__name__}, got {excerpt(reply)}")
    return value


def _id(reply: Any, key: str) -> int:
    """Return an id, which is going to stand in an address."""
    number: int = _key(reply, key, int)
    if not _is_id(number):
        raise UnreadableReply(f"expected {excerpt(key, _NAME_LENGTH)!r} to be an id, got {excerpt(reply)}")
    return number


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 < value < _PAST_ALL_NUMBERS


def _name(reply: Any, key: str) -> str:
    """Return a name, which somebody has chosen and is going to be shown, as one short line."""
    return excerpt(_key(reply, key, str), _NAME_LENGTH)


def _indented(line: str) -> str:
    """Return a line's excerpt with its indentation, which a traceback is read by."""
    return " " * min(len(line) - len(line.lstrip(" ")), 8) + excerpt(line)


def _run_status(reply: Any) -> RunStatus:
    code = _key(reply, "status", str)
    try:
        return read_status(code)
    except ValueError:
        raise UnreadableReply(f"{excerpt(code)!r} is no status of a workflow run") from None


# --- Responses ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Response:
    """What a transport received, whatever its HTTP library calls it.

    :param status_code: HTTP status.
    :param headers: looked up in lower case.
    :param body: as it came, packed or not; at most ``MAX_REPLY_BYTES`` and what says that there was more.
    """

    status_code: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


def decipher(verb: str, url: str, response: Response, secrets: Secrets = NO_SECRETS) -> Any:
    """Return the decoded JSON of a reply, or raise what the response means.

    :param verb: HTTP method, for the message.
    :param url: what was asked, without credentials, for the message.
    :param secrets: what was sent and must not be shown, should the reply repeat it.
    :raises NotAuthorized: 401, 403.
    :raises RecordNotFound: no such workflow or run, in either server version's words.
    :raises TransitionRefused: nothing leads there from the status that is.
    :raises InvalidRequest: another 4xx, or a redirect.
    :raises ServerFailure: 5xx, 423, 429.
    :raises UnreadableReply: the body is too long or no JSON, or packed in a way that nobody asked for.
    """
    code, asked = response.status_code, f"{verb.upper()} {url}"
    body = unpack(response, asked)
    if 200 <= code < 300 and len(body) <= MAX_REPLY_BYTES:
        try:
            text = body.decode()
            return secrets.hide_in(json.loads(text), text)
        except (ValueError, RecursionError):
            pass
    came_back = f"{asked}: {code} {excerpt_of_body(secrets.hide(_start_of(body)))}".rstrip()
    if 200 <= code < 300:
        if len(body) > MAX_REPLY_BYTES:
            raise UnreadableReply(f"{asked}: a reply of more than {MAX_REPLY_BYTES} bytes")
        raise UnreadableReply(f"{came_back} is not JSON; is this Jobmon? Check host, port and route prefix")
    if 300 <= code < 400:
        target = excerpt(secrets.hide(response.headers.get("location", "nowhere")))
        raise InvalidRequest(f"{asked}: {code}, moved to {target}; use that address", code)
    final = _final_kind(code, body)
    if final is not None:
        raise final(came_back, code)
    if code >= 500 or code in (423, 429):
        # 423: the database rolled a deadlock back. 429: the request was turned away unread.
        raise ServerFailure(
            came_back,
            processed=code not in (423, 429),
            retry_after=_retry_after(response.headers.get("retry-after")),
        )
    kind = NotAuthorized if code in (401, 403) else InvalidRequest
    raise kind(f"{came_back}{_advice(code, _start_of(body))}", code)


def unpack(response: Response, asked: str) -> bytes:
    """Return the body of a reply that was sent packed although nobody asked for that.

    Not left to the HTTP libraries: some of their versions unpack whatever comes, and a kilobyte on the wire
    may be a megabyte in memory.

    :param asked: verb and address, for the message.
    :returns: at most ``MAX_REPLY_BYTES`` and one byte more, which says that there was more.
    :raises UnreadableReply: it is packed in another way than gzip or deflate, or wrongly.
    """
    packing = response.headers.get("content-encoding", "identity").strip().lower()
    if packing in ("", "identity") or not response.body:
        return response.body
    if packing not in ("gzip", "x-gzip", "deflate"):
        raise UnreadableReply(f"{asked}: a reply that is packed, and neither with gzip nor deflate")
    try:
        # 32: it says itself whether it is gzip's or zlib's
        return zlib.decompressobj(32 + zlib.MAX_WBITS).decompress(response.body, MAX_REPLY_BYTES + 1)
    except zlib.error:
        raise UnreadableReply(f"{asked}: a reply that says it is {packing}, and is not") from None


def _final_kind(code: int, body: bytes) -> type[RecordNotFound | TransitionRefused] | None:
    """Return what an error says that is final whatever its status, and neither of a route nor of the server.

    3.4.8: ``{"error": {"type": "<class '…NoResultFound'>"}}`` with 500; also InvalidStateTransition.
    3.7: ``{"detail": "Workflow with ID 7 not found in database."}`` with 404, where a missing route is
    ``{"detail": "Not Found"}``.
    """
    try:
        error = json.loads(body[:MAX_REPLY_BYTES])
    except (ValueError, RecursionError):
        return None
    if not isinstance(error, dict):
        return None
    inner = error.get("error")
    if code == 500 and isinstance(inner, dict):
        kind = _text(inner.get("type"))
        if "InvalidStateTransition" in kind:
            return TransitionRefused
        return RecordNotFound if "NoResultFound" in kind else None
    return RecordNotFound if code == 404 and _NO_WORKFLOW.search(_text(error.get("detail"))) else None


_NO_WORKFLOW = re.compile(r"(?<![/\w])workflow\b", re.I)  # not in an address, which a gateway may repeat
_LOGIN_WANTED = re.compile(r"""["']detail["']\s*:\s*["']Unauthorized["']""")
_NOT_THE_OWNER = re.compile(r"""["']detail["']\s*:\s*["']Unauthorized\.["']""")
_NO_ROUTE = re.compile(r"""["']detail["']\s*:\s*["']Not Found["']|["']error["']\s*:\s*["']Route """)


def _advice(code: int, said: str) -> str:
    """Return what the user can do about a refusal, to be put behind it; "": no more than it says itself.

    Jobmon's words (3.4 to 3.7) are told from those of a gateway or a proxy before it.

    :param code: HTTP status.
    :param said: the start of the body.
    """
    if code == 403 and _LOGIN_WANTED.search(said):
        return (
            "; Jobmon itself wants a browser's login here, which no login, password or token of a connection"
            " replaces: have its administrator set JOBMON__AUTH__ENABLED=false on the server, or put a"
            " gateway before it that logs in; on Jobmon 3.4.8, use the route prefix /api/v2"
        )
    if code == 401 and _NOT_THE_OWNER.search(said):
        return (
            "; Jobmon lets only the user of the workflow's latest run do this, and the gateway logs in as"
            " another user"
        )
    if code in (401, 403):
        return "; a gateway or proxy before Jobmon refused: check the login, password or token that it wants"
    if code == 407:
        return "; a proxy on the way to Jobmon wants a login: check HTTP_PROXY, HTTPS_PROXY and NO_PROXY"
    if code != 404:
        return ""
    if said.startswith("This route does not exist"):
        return f"; so answers Jobmon before 3.4: {TOO_OLD}, or check the address and the route prefix"
    if _NO_ROUTE.search(said):
        return "; check the address and the route prefix (/api/v3; /api/v2 on Jobmon 3.4.8)"
    return "; that is no answer of Jobmon's: check the address and the route prefix"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _start_of(body: bytes) -> str:
    """Return what an excerpt is taken of, and as much again, so that no secret is cut where it ends."""
    return body[: 64 * EXCERPT_LENGTH].decode("utf-8", "replace")


def _retry_after(value: str | None) -> float | None:
    """Seconds of a ``Retry-After`` header; its other form, a date, is not worth trusting two clocks for."""
    return float(value) if value is not None and re.fullmatch(r"[ \t]*[0-9]{1,6}[ \t]*", value) else None


# --- Retries ------------------------------------------------------------------------------------------------


def is_retryable(error: BaseException) -> bool:
    """Whether asking again may help: the server failed for now or was not reached."""
    return isinstance(error, (ServerFailure, ServerUnreachable))


def was_not_processed(error: BaseException) -> bool:
    """Whether a failed request certainly changed nothing, so that even one that creates may be sent again."""
    return isinstance(error, (ServerFailure, ServerUnreachable)) and not error.processed


def translate(error: Exception) -> JobmonError | None:
    """Return what an error of somebody else's requester means in this client's terms; None: not known.

    The requester passed in may be Jobmon's own, whose exceptions have the names of ours in another package;
    it keeps the HTTP status only in its message ("… status code 404 from …").
    """
    if isinstance(error, JobmonError):
        return error
    name, text = type(error).__name__, str(error)
    line = excerpt(text, 2 * EXCERPT_LENGTH)
    found = re.search(r"status code (\d{3})\b", text)
    code = int(found.group(1)) if found else None
    content = text.partition("content: ")[2]
    if "InvalidStateTransition" in content:
        return TransitionRefused(line, code)
    if "NoResultFound" in text or (code == 404 and _NO_WORKFLOW.search(content)):
        return RecordNotFound(line, code)
    if name == "InvalidRequest":
        kind = NotAuthorized if code in (401, 403) else InvalidRequest
        return kind(line + (_advice(code, content) if code else ""), code)
    if name == "InvalidResponse":
        return ServerFailure(line, processed=code not in (423, 429))
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return CertificateNotTrusted(line)
    if isinstance(error, OSError):  # requests' errors are OSErrors, as are sockets' and time-outs
        return ServerUnreachable(line)
    if isinstance(error, RuntimeError) and "retry budget" in text:
        return InvalidResponse(line)
    return None


def reason_of(error: BaseException) -> str:
    """Return why there was no connection, in the same words whichever library reports it."""
    if isinstance(error, ConnectionError) and error.errno:
        return os.strerror(error.errno)  # asyncio has words of its own for "Connection refused"
    if getattr(error, "reason", None) in _NO_TLS:
        return "what answers there does not speak TLS; is it http instead of https, or another port"
    strerror = error.strerror if isinstance(error, OSError) else None
    return strerror or str(error) or type(error).__name__


def unreachable(
    verb: str, url: str, reason: str, *, connected: bool, proxy: str | None = None
) -> ServerUnreachable:
    """Return the error for a request that got no reply.

    :param reason: what the transport's library says.
    :param connected: whether there was a connection, so that the server may have seen the request.
    :param proxy: address of the proxy that it went through, without credentials. Default: none.
    """
    hint = "" if connected else "; is the server up, and are host and port right?"
    way = f" (through the environment's proxy {proxy})" if proxy else ""
    return ServerUnreachable(f"{verb.upper()} {url}{way}: {excerpt(reason)}{hint}", processed=connected)


def not_answered(
    verb: str, url: str, cause: BaseException, *, connected: bool, proxy: str | None = None
) -> CertificateNotTrusted | ServerUnreachable:
    """Return what it means that a request came to nothing, other than by a time-out.

    :param cause: the innermost error.
    :param connected: see ``unreachable``.
    :param proxy: see ``unreachable``.
    """
    code = getattr(cause, "verify_code", None)  # of ssl's SSLCertVerificationError
    if code is None:
        return unreachable(verb, url, reason_of(cause), connected=connected, proxy=proxy)
    advice = _ADVICE.get(
        code, "if it is the right server, set verify in the connection's extra to the path of its CA bundle"
    )
    reason = excerpt(getattr(cause, "verify_message", "")).rstrip(".")
    return CertificateNotTrusted(f"{verb.upper()} {url}: certificate verify failed: {reason}; {advice}")


# How OpenSSL says that the other side's first bytes are not TLS; an HTTP server's are "HTTP/1.1 400".
_NO_TLS = ("WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG")

# Where a CA bundle is not what is missing: OpenSSL's X509_V_ERR_… → what to do.
_RENEW = "the server's administrator has to renew it"
_ADVICE = {
    9: "its time is still to come: are the clocks right?",
    10: _RENEW,
    62: "connect to a host that the certificate names",
    64: "connect to a host that the certificate names",
}


def still_at_work(error: JobmonError) -> JobmonError:
    """Return the error of a costly call; it says so where the server may not have finished what was asked."""
    if isinstance(error, (ServerFailure, ServerUnreachable)) and error.processed:
        error.args = (f"{error}; the server may still be at work on it, so it is not sent again",)
    return error


def url_of(base_url: str, route: str) -> str:
    """Return the address of a route; the route's ids are integers, and anything else in it is quoted."""
    return base_url + quote(route, safe="/")

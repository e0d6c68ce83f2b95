"""The routes of Jobmon's server, one function each, in the order of docs/protocol.md."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any, NoReturn

from airflow_jobmon_provider import __version__
from airflow_jobmon_provider.client.exceptions import (
    ServerTooOld,
    UnreadableReply,
    WorkflowBusy,
    WorkflowNotFound,
    WorkflowNotResumable,
    WorkflowRunNotFound,
)
from airflow_jobmon_provider.client.lifecycle import RunStatus
from airflow_jobmon_provider.client.protocol.call import (
    Call,
)
from airflow_jobmon_provider.client.protocol.reading import (
    TOO_OLD,
    indented,
    is_id,
    nothing,
    read_id,
    read_key,
    read_name,
    read_object,
    read_run_status,
    unexpected,
)
from airflow_jobmon_provider.client.protocol.replies import (
    CreatedRun,
    FailedTask,
    FoundWorkflow,
    LostRun,
    Resumability,
    TaskCounts,
    WorkflowDetails,
)
from airflow_jobmon_provider.client.protocol.responses import (
    text_of,
)
from airflow_jobmon_provider.client.redaction import (
    excerpt,
)

# Stored with every run in Jobmon's `workflow_run.jobmon_version`: tells its operators who created the run.
CLIENT_VERSION = f"airflow-provider-jobmon-{__version__}"

_ERROR_LENGTH = 20_000
_SHOWN_OF_ARGS = 60


def health() -> Call[None]:
    """GET /health: whether the server and its database answer."""
    return Call("get", "/health", {}, nothing)


def api_version() -> Call[str]:
    """GET /api_version: ``v2``, ``v3``. A server that is healthy and lacks it is too old (3.2.4)."""
    return Call(
        "get",
        "/api_version",
        {},
        lambda reply: read_name(reply, "status"),
        unsupported="tell its API's version, so it is older than 3.4, the oldest that this provider knows",
    )


def probe_age() -> Call[None]:
    """GET workflow_run: tells whether the server is older than 3.4, and changes nothing.

    In all versions the route is for POST only, and 3.4 and later refuse with 405. What is older rests on
    Flask, and makes that a 500 which names it: ``ServerTooOld``.
    """
    return Call("get", "/workflow_run", {}, nothing)


def set_resume(workflow_id: int, reset_running_jobs: bool) -> Call[None]:
    """POST set_resume: move the workflow's active run (B or R) to C (cold) or H (hot).

    The server accepts it for a workflow that does not exist, too: ask ``is_resumable`` next, which does not.
    """
    return Call(
        "post",
        f"/workflow/{workflow_id}/set_resume",
        {"reset_running_jobs": reset_running_jobs},
        nothing,
        not_found=_no_workflow(workflow_id),
    )


def is_resumable(workflow_id: int) -> Call[Resumability]:
    """GET is_resumable: whether a new run could be created, and what is in the way."""

    def read(reply: Any) -> Resumability:
        pending = (
            read_key(reply, "pending_kill_self", int) if "pending_kill_self" in read_object(reply) else None
        )
        return Resumability(read_key(reply, "workflow_is_resumable", bool), pending)

    route = f"/workflow/{workflow_id}/is_resumable"
    return Call("get", route, {}, read, not_found=_no_workflow(workflow_id))


def force_cleanup_kill_self(workflow_id: int) -> Call[int]:
    """POST force_cleanup_kill_self: give up on stuck task instances, end their run. 3.7 only."""
    return Call(
        "post",
        f"/workflow/{workflow_id}/force_cleanup_kill_self",
        {},
        lambda reply: int(read_key(reply, "num_cleaned_up", int)),
        not_found=_no_workflow(workflow_id),
        unsupported="force a clean-up",
    )


def set_resume_state(workflow_id: int, reset_if_running: bool) -> Call[None]:
    """POST set_resume_state: make the tasks that are not done ready to run again.

    A refusal comes as status 200 with ``err_msg``, which Jobmon's own client overlooks.
    """

    def read(reply: Any) -> None:
        if read_object(reply).get("err_msg"):
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
        if read_object(reply).get("workflow_run_id") is None:
            _refuse(workflow_id, read_key(reply, "err_msg", str))
        return CreatedRun(read_id(reply, "workflow_run_id"), read_run_status(reply))

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
            " which Jobmon's reaper does not do. Refused"
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
        read_run_status,
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
        read_run_status,
        not_found=_no_run(workflow_run_id),
    )


def lost_workflow_runs(status: RunStatus) -> Call[tuple[LostRun, ...]]:
    """GET lost_workflow_run: the runs in a status whose heartbeat date has passed.

    ``version`` is required. 3.6 ignores it; 3.4.8 lists only runs of the server version that equals it, which
    no route tells, and so none here.
    """

    def read(reply: Any) -> tuple[LostRun, ...]:
        rows = read_key(reply, "workflow_runs", list)
        if not all(isinstance(row, list) and len(row) == 2 and all(map(is_id, row)) for row in rows):
            raise UnreadableReply(f"expected pairs of ids, got {excerpt(reply)}")
        return tuple(LostRun(*row) for row in rows)

    return Call("get", "/lost_workflow_run", {"status": [status.value], "version": CLIENT_VERSION}, read)


def reap(workflow_run_id: int) -> Call[None]:
    """PUT reap: end a run whose heartbeat date has passed, as Jobmon's reaper does; else nothing happens."""
    return Call(
        "put", f"/workflow_run/{workflow_run_id}/reap", {}, nothing, not_found=_no_run(workflow_run_id)
    )


def workflow_details(workflow_id: int, refused: bool = False) -> Call[WorkflowDetails | None]:
    """GET workflow_details_viz: the workflow's status; None where no run of such a workflow was ever made.

    One row for each of its runs, by their age, which differ only in what they say of the run: 3.4.8 names
    its Jobmon version, 3.6 also its user and its heartbeat date, and neither its id or status.

    :param refused: this client has just been refused a run, and a refused one stays among the rows for ever.
    """

    def read(reply: Any) -> WorkflowDetails | None:
        if not isinstance(reply, list):
            raise unexpected("a list", reply)
        if not reply:
            return None
        rows = [read_object(row) for row in reply]
        created, since = text_of(rows[0].get("wf_created_date")), rows[0].get("wf_status_date")
        if re.match("[A-Z][a-z]{2}, ", created):  # as Flask writes dates, on which Jobmon rested before 3.4
            raise ServerTooOld(f"the reply is written as by Jobmon before 3.4; {TOO_OLD}")
        owner = _owner(rows, refused=refused)
        return WorkflowDetails(
            read_name(rows[0], "wf_status"),
            read_name(rows[0], "wf_name"),
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
        return text_of(row.get("wfr_heartbeat_date"))  # ISO 8601: in the order of time

    ours = [row for row in rows if row.get("wfr_jobmon_version") == CLIENT_VERSION] if refused else []
    candidates = rows
    if ours:
        just_refused = ours[-1]
        candidates = [row for row in rows if row is not just_refused]
        if not any(date(row) > date(just_refused) for row in candidates):  # nobody's heartbeat is good
            others = [row for row in ours[:-1] if row.get("wfr_user") == just_refused.get("wfr_user")]
            users = {text_of(row.get("wfr_user")) for row in candidates}
            if others and len(users) > 1:
                return None  # each of them may be a run, or one more that was refused
    latest = max(candidates, key=date, default=None)
    return text_of(latest.get("wfr_user")) or None if latest else None


def find_workflows(
    workflow_name: str, tool_name: str, workflow_args: str, attribute: str, value: str
) -> Call[tuple[FoundWorkflow, ...]]:
    """GET workflow_overview_viz: the workflows that are called so, the newest first.

    Only those that have tasks and of which a run was ever made; those of the cluster "dummy" are left out. It
    costs the server O(tasks) of all that are found. 3.6 and later take a comma in the tool's name for the end
    of it.

    :param workflow_name: the name; "": any.
    :param tool_name: the tool's name; "": any.
    :param workflow_args: the arguments; "": any.
    :param attribute: name of an attribute; "": any.
    :param value: its value.
    """
    wanted = {"wf_name": workflow_name, "wf_tool": tool_name, "wf_args": workflow_args}

    def read(reply: Any) -> tuple[FoundWorkflow, ...]:
        rows = read_key(reply, "workflows", list)
        # Compared again: MariaDB does so without regard to case and to spaces at the end.
        return tuple(
            FoundWorkflow(
                read_id(row, "wf_id"),
                excerpt(text_of(row.get("wf_args")), _SHOWN_OF_ARGS),
                read_name(row, "wf_status"),
            )
            for row in map(read_object, rows)
            if all(text_of(row.get(key)) == text for key, text in wanted.items() if text)
        )

    asked = {
        "wf_name": workflow_name,
        "tool": tool_name,
        "wf_args": workflow_args,
        "wf_attribute_key": attribute,
        "wf_attribute_value": value,
    }
    message = {name: text for name, text in asked.items() if text}
    return Call("get", "/workflow_overview_viz", message, read, costly=True, unsupported="find workflows")


def task_counts(workflow_id: int) -> Call[TaskCounts]:
    """GET workflow_status_viz: how many tasks are where. Costs the server O(tasks): spend it sparingly.

    A workflow that does not exist, or has no tasks, is a 500 on 3.4.8 that looks like any other; 3.6 counts
    nought.
    """

    def read(reply: Any) -> TaskCounts:
        if not read_object(reply):
            raise _no_workflow(workflow_id)
        counts = read_key(reply, str(workflow_id), dict)
        keys = ("tasks", "PENDING", "SCHEDULED", "RUNNING", "DONE", "FATAL")
        return TaskCounts(*(read_key(counts, key, int) for key in keys))

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
            columns = json.loads(read_key(reply, "workflow_tasks", str))
        except (ValueError, RecursionError):
            raise UnreadableReply(f"expected a table as JSON text, got {excerpt(reply)}") from None
        ids, names = read_key(columns, "TASK_ID", dict), read_key(columns, "TASK_NAME", dict)
        return tuple(
            FailedTask(read_id(ids, row), read_name(names, row)) for row in itertools.islice(ids, limit)
        )

    route = f"/workflow/{workflow_id}/workflow_tasks"
    message = {"status": ["FATAL"], "limit": limit}
    return Call("get", route, message, read, not_found=_no_workflow(workflow_id), costly=True)


def most_recent_error(task_id: int) -> Call[str]:
    """GET most_recent_ti_error: the end of what the task's last failed try said; "" if nothing was kept.

    Each line of it is short and free of control characters.
    """

    def read(reply: Any) -> str:
        # Its tail first: splitting and cleaning megabytes is work that the triggerer's event loop cannot do.
        lines = read_key(reply, "error_description", str)[-_ERROR_LENGTH:].splitlines()
        return "\n".join(indented(line) for line in lines if line.strip())

    return Call("get", f"/task/{task_id}/most_recent_ti_error", {}, read)


def probe_increase_resources(workflow_id: int) -> Call[None]:
    """GET increase_resources: tells whether the server has that route, and changes nothing.

    A server that has it (3.6) refuses with 405, as it is for POST only; one that has not, with 404.
    """
    return Call(
        "get",
        f"/workflow/{workflow_id}/increase_resources",
        {},
        nothing,
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
        lambda reply: int(read_key(reply, "updated_task_count", int)),
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
    kind = WorkflowBusy if "linking" in text_of(text) else WorkflowNotResumable
    raise kind(f"Jobmon refused workflow {workflow_id}: {said}")

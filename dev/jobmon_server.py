"""Jobmon's real server, as the sandbox starts it. Runs in Jobmon's own environment, not in the project's.

    python jobmon_server.py PORT REQUEST_LOG [--released]

``/api/v2`` is the server as released. ``/api/v3`` of the released server wants a browser login and lacks what
came later; here it answers as Jobmon's development version ("3.7") does where docs/protocol.md says that it
differs: the routes below, written for these tests, on the released server's own models. ``/3.6/api/v3``
answers as 3.6 does, in which some of them do not exist yet. With ``--released`` both are left out. ``/`` is a
page for people, in place of Jobmon's GUI.
"""

from __future__ import annotations

import json
import sys
import time
import zlib
from html import escape
from typing import Annotated, Any

import nltk
import uvicorn

# The server downloads a corpus for its error pages when it is imported. Without a network that takes ten
# seconds to fail, and nothing here needs it.
nltk.download = lambda *args, **kwargs: False

from fastapi import APIRouter, Body, HTTPException, Query  # noqa: E402
from fastapi.responses import HTMLResponse  # noqa: E402
from jobmon.server.web.api import get_app  # noqa: E402
from jobmon.server.web.db_admin import get_session_local  # noqa: E402
from jobmon.server.web.models.task import Task  # noqa: E402
from jobmon.server.web.models.task_instance import TaskInstance  # noqa: E402
from jobmon.server.web.models.task_instance_error_log import TaskInstanceErrorLog  # noqa: E402
from jobmon.server.web.models.task_status import TaskStatus  # noqa: E402
from jobmon.server.web.models.tool import Tool  # noqa: E402
from jobmon.server.web.models.tool_version import ToolVersion  # noqa: E402
from jobmon.server.web.models.workflow import Workflow  # noqa: E402
from jobmon.server.web.models.workflow_run import WorkflowRun  # noqa: E402
from jobmon.server.web.models.workflow_run_status import WorkflowRunStatus  # noqa: E402
from jobmon.server.web.models.workflow_status import WorkflowStatus  # noqa: E402
from jobmon.server.web.routes.utils import get_user  # noqa: E402
from jobmon.server.web.routes.v3 import api_v3_router  # noqa: E402
from jobmon.server.web.routes.v3.cli.workflow import _cli_label_mapping  # noqa: E402
from jobmon.server.web.server_side_exception import InvalidUsage  # noqa: E402
from sqlalchemy import func, select  # noqa: E402

KILL_SELF = "K"
RESOURCE_ERROR = "Z"
MAX_LOGGED = 4096

PAGE = """<!doctype html>
<title>Jobmon sandbox</title>
<style>
body {font: 1em sans-serif; margin: 2em}
td {padding-right: 2em}
section:target {background: #ffd}
</style>
<h1>Jobmon sandbox</h1>
<p>This page stands in for Jobmon's GUI. Reload it to see what has changed.</p>
"""
SHOWN = 100  # workflows, and tasks of each

newer = APIRouter(prefix="/api/v3")
between = APIRouter(prefix="/3.6/api/v3")
people = APIRouter()


def kill_self_instances(session: Any, workflow_id: int) -> list[TaskInstance]:
    query = (
        select(TaskInstance)
        .join(WorkflowRun, TaskInstance.workflow_run_id == WorkflowRun.id)
        .where(WorkflowRun.workflow_id == workflow_id, TaskInstance.status == KILL_SELF)
    )
    return list(session.scalars(query))


@newer.post("/workflow/{workflow_id}/set_resume")
def set_resume(workflow_id: int, message: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
    # The released v3 route asks whose browser it is, by itself.
    if "reset_running_jobs" not in message:
        raise InvalidUsage("'reset_running_jobs' is missing", status_code=400)
    with get_session_local()() as session, session.begin():
        workflow = session.get(Workflow, workflow_id)
        if workflow is not None:
            workflow.resume(bool(message["reset_running_jobs"]))
    return {}


@newer.get("/workflow/{workflow_id}/is_resumable")
def is_resumable(workflow_id: int) -> dict[str, Any]:
    with get_session_local()() as session:
        workflow = session.get(Workflow, workflow_id)
        if workflow is None:
            raise HTTPException(404, f"Workflow with ID {workflow_id} not found in database.")
        pending = len(kill_self_instances(session, workflow_id))
        return {"workflow_is_resumable": workflow.is_resumable, "pending_kill_self": pending}


@between.get("/workflow/{workflow_id}/is_resumable")
def is_resumable_36(workflow_id: int) -> dict[str, Any]:
    return {"workflow_is_resumable": is_resumable(workflow_id)["workflow_is_resumable"]}


@newer.post("/workflow/{workflow_id}/force_cleanup_kill_self")
def force_cleanup_kill_self(workflow_id: int) -> dict[str, int]:
    with get_session_local()() as session, session.begin():
        instances = kill_self_instances(session, workflow_id)
        for instance in instances:
            instance.status, instance.status_date = "F", func.now()
            why = "Force cleanup: told to end itself, and has not."
            session.add(
                TaskInstanceErrorLog(task_instance_id=instance.id, description=why, error_time=func.now())
            )
        stopping = select(WorkflowRun).where(
            WorkflowRun.workflow_id == workflow_id, WorkflowRun.status.in_(["C", "H"])
        )
        runs = list(session.scalars(stopping))
        for run in runs:
            run.status, run.status_date = "T", func.now()
            # Whatever status the workflow had: this does not go by the transitions.
            run.workflow.status, run.workflow.status_date = "H", func.now()
        return {"num_cleaned_up": len(instances), "num_workflow_runs_finalized": len(runs)}


@newer.post("/workflow/{workflow_id}/increase_resources")
def increase_resources(workflow_id: int) -> dict[str, Any]:
    # Finds the tasks that the real one does, those whose latest instance ended for lack of resources, and
    # leaves them in the same status (from 3.6). By how much it raises what is the server's business.
    with get_session_local()() as session, session.begin():
        latest = select(func.max(TaskInstance.id)).group_by(TaskInstance.task_id)
        short = select(Task).join(TaskInstance, TaskInstance.task_id == Task.id)
        short = short.where(
            Task.workflow_id == workflow_id,
            Task.status.in_(["E", "F"]),
            TaskInstance.id.in_(latest),
            TaskInstance.status == RESOURCE_ERROR,
        )
        tasks = list(session.scalars(short))
        for task in tasks:
            task.status = "E"
        return {"updated_task_count": len(tasks), "updated_task_ids": [task.id for task in tasks]}


@newer.get("/lost_workflow_run")
def lost_workflow_run(version: str, status: Annotated[list[str], Query()]) -> dict[str, Any]:
    with get_session_local()() as session:
        lost = select(WorkflowRun.id, WorkflowRun.workflow_id).where(
            WorkflowRun.status.in_(status), WorkflowRun.heartbeat_date <= func.now()
        )
        return {"workflow_runs": [list(row) for row in session.execute(lost)]}


@newer.get("/workflow_status_viz")
def workflow_status_viz(workflow_ids: Annotated[list[int], Query()]) -> dict[int, Any]:
    # As released, but that a workflow without tasks, or none at all, is no error.
    with get_session_local()() as session:
        counts = {}
        for workflow_id in workflow_ids:
            mine = Task.workflow_id == workflow_id
            attempts = [func.avg(Task.num_attempts), func.min(Task.num_attempts), func.max(Task.num_attempts)]
            mean, least, most = session.execute(select(*attempts).where(mine)).one()
            statuses = session.execute(select(Task.status, func.count()).where(mine).group_by(Task.status))
            labels = dict.fromkeys(("PENDING", "SCHEDULED", "RUNNING", "DONE", "FATAL"), 0)
            for status, count in statuses:
                labels[_cli_label_mapping[status]] += count
            workflow = session.get(Workflow, workflow_id)
            counts[workflow_id] = {
                "id": workflow_id,
                "tasks": sum(labels.values()),
                **labels,
                "MAXC": workflow.max_concurrently_running if sum(labels.values()) else 0,
                "num_attempts_avg": float(mean or 0),
                "num_attempts_min": least or 0,
                "num_attempts_max": most or 0,
            }
        return counts


@newer.get("/workflow_details_viz/{workflow_id}")
def workflow_details_viz(workflow_id: int) -> list[dict[str, Any]]:
    # One row a run, also for one that was refused (G). The real one has no ORDER BY; its rows come by id.
    with get_session_local()() as session:
        workflow = session.get(Workflow, workflow_id)
        if workflow is None:
            return []
        tool = session.get(Tool, session.get(ToolVersion, workflow.tool_version_id).tool_id)
        runs = select(WorkflowRun).where(WorkflowRun.workflow_id == workflow_id).order_by(WorkflowRun.id)
        return [
            {
                "wf_name": workflow.name,
                "wf_args": workflow.workflow_args,
                "wf_created_date": workflow.created_date.isoformat(),
                "wf_status_date": workflow.status_date.isoformat(),
                "tool_name": tool.name,
                "wf_status": workflow.status,
                "wf_status_desc": session.get(WorkflowStatus, workflow.status).description,
                "wfr_jobmon_version": run.jobmon_version,
                "wfr_heartbeat_date": run.heartbeat_date.isoformat() if run.heartbeat_date else None,
                "wfr_user": run.user,
            }
            for run in session.scalars(runs)
        ]


for route in newer.routes:
    if route.endpoint not in (is_resumable, force_cleanup_kill_self):  # as they are came with 3.7
        between.add_api_route(route.path.removeprefix(newer.prefix), route.endpoint, methods=route.methods)


@people.get("/")
def page() -> HTMLResponse:
    """Show the newest workflows. The element's id is what stands after the # in a link to Jobmon's GUI."""
    with get_session_local()() as session:
        workflows = session.scalars(select(Workflow).order_by(Workflow.id.desc()).limit(SHOWN))
        return HTMLResponse(PAGE + "".join(section(session, workflow) for workflow in workflows))


def section(session: Any, workflow: Workflow) -> str:
    """Return a workflow with its runs, its tasks, and the last error of each that has failed."""
    status = label_of(session, WorkflowStatus, workflow.status)
    runs = sorted(
        (run.id, label_of(session, WorkflowRunStatus, run.status)) for run in workflow.workflow_runs
    )
    lines = [f'<section id="/workflow/{workflow.id}"><h2>Workflow {workflow.id}: {status}</h2><p>']
    lines += [f"Workflow run {run}: {label}<br>" for run, label in runs]
    lines.append("</p><table>")
    tasks = select(Task).where(Task.workflow_id == workflow.id).order_by(Task.id).limit(SHOWN)
    for task in session.scalars(tasks):
        errors = [error.description for instance in task.task_instances for error in instance.errors]
        last = errors[-1] if errors and task.status == "F" else ""
        label = label_of(session, TaskStatus, task.status)
        lines.append(f"<tr><td>{escape(task.name)}<td>{label}<td>{escape(last)}")
    return "\n".join([*lines, "</table></section>"])


def label_of(session: Any, statuses: Any, code: str) -> str:
    """Return a status's name; of one that Jobmon does not know, as a test may set it, the code."""
    row = session.get(statuses, code)
    return code if row is None else str(row.label)


class RequestLog:
    """ASGI middleware: one JSON line for each request, with what was asked and what was replied."""

    def __init__(self, app: Any, path: str) -> None:
        self.app = app
        self.file = open(path, "a", buffering=1)  # noqa: SIM115  # open as long as the server runs

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        entry = {"time": time.time(), "method": scope["method"], "path": scope["path"]}
        entry["query"] = scope["query_string"].decode()
        asked, replied = bytearray(), bytearray()
        messages: list[Any] = []

        async def listen() -> Any:
            message = await receive()
            asked.extend(message.get("body", b"")[: MAX_LOGGED - len(asked)])
            return message

        async def speak(message: Any) -> None:
            if message["type"] == "http.response.start":
                entry["status_code"] = message["status"]
            replied.extend(message.get("body", b"")[: MAX_LOGGED - len(replied)])
            messages.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                log()  # before the client has any of it, so that a client with a reply finds it in the log
                for each in messages:
                    await send(each)

        def log() -> None:
            zipped = replied.startswith(b"\x1f\x8b")
            # a long reply is cut in the middle, which zlib.decompress() refuses
            reply = zlib.decompressobj(wbits=31).decompress(replied, MAX_LOGGED) if zipped else bytes(replied)
            texts = {"body": asked.decode(errors="replace"), "reply": reply.decode(errors="replace")}
            self.file.write(json.dumps({**entry, **texts}) + "\n")

        await self.app(scope, listen, speak)


def main(port: int, request_log: str, *, released: bool) -> None:
    app = get_app()
    app.dependency_overrides[get_user] = lambda: {"email": "sandbox@example.org", "groups": []}
    app.include_router(people)
    if not released:
        app.include_router(api_v3_router, prefix=between.prefix.removesuffix("/v3"))
        app.router.routes[:0] = [*newer.routes, *between.routes]  # the first route that matches is taken
    uvicorn.run(RequestLog(app, request_log), host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], released="--released" in sys.argv)

"""Every route of the protocol, with all that the tests which run over all routes need to know of it.

A new route means a function in ``airflow_jobmon_provider/client/protocol/routes.py`` and a row in ``ROWS``
here. The fuzz, the fault matrix, the contract tests and the client's tests of the protocol take it from
there. ``tests/contract/test_samples.py`` fails if a route has no row, or a row no route, and compares each
sample with what the real servers were recorded to reply.
"""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from airflow_jobmon_provider.client import protocol
from airflow_jobmon_provider.client.exceptions import (
    InvalidRequest,
    JobmonError,
    RouteNotSupported,
    ServerFailure,
    WorkflowBusy,
    WorkflowNotFound,
    WorkflowNotResumable,
    WorkflowRunNotFound,
)
from airflow_jobmon_provider.client.lifecycle import RunStatus, read_status
from airflow_jobmon_provider.client.protocol import (
    Call,
    CreatedRun,
    FailedTask,
    FoundWorkflow,
    LostRun,
    Response,
    Resumability,
    TaskCounts,
    WorkflowDetails,
    routes,
)

OLD, MIDDLE, NEW = VERSIONS = ("3.4.8", "3.6", "3.7")
"""The servers that the provider works with whose replies are recorded in ``tests/contract/replies``."""

SINCE_MIDDLE = (MIDDLE, NEW)

GOOD_FOR = 86_400.0
"""Seconds; a run that was created with so many, or has such a heartbeat, is alive while the tests last."""

SERVER = "http://jobmon.example/api"


@dataclass(frozen=True)
class Ids:
    """Whom to ask about; by default, whom the samples are about.

    :param workflow: which none of the routes moves any more: no run of it is active.
    :param run: in LINKING.
    :param ended_run: which is in no status that the client could move it from.
    :param task: of that workflow.
    """

    workflow: int = 7
    run: int = 5
    ended_run: int = 5
    task: int = 12

    @classmethod
    def all_the_same(cls, number: int) -> Ids:
        """Return one number as the id of everything."""
        return cls(number, number, number, number)


@dataclass(frozen=True)
class ByVersion:
    """What differs between the recorded servers.

    :param old: of 3.4.8.
    :param new: of 3.7.
    :param since: the first version with ``new``; those before it have ``old``. Default 3.6.
    """

    old: Any
    new: Any
    since: str = MIDDLE

    def of(self, version: str) -> Any:
        """Return what holds for a version."""
        return self.new if VERSIONS.index(version) >= VERSIONS.index(self.since) else self.old


@dataclass(frozen=True)
class Sample:
    """A reply as a real server sends it, and what the client makes of it.

    :param reply: the decoded JSON.
    :param result: what it is read into, or the class of the error that it means.
    :param like: the recorded case that it has the fields of. None: no server's reply was recorded.
    :param versions: of the servers that reply so.
    :param arguments: of the route's function. Default: those of the row, for the default ids.
    :param status: of HTTP.
    """

    reply: Any
    result: Any
    like: str | None = None
    versions: Sequence[str] = VERSIONS
    arguments: tuple[Any, ...] | None = None
    status: int = 200


@dataclass(frozen=True, eq=False)  # each is one of a kind, and can be the key of a cache
class Row:
    """A route.

    :param name: of its function.
    :param arguments: returns arguments for it.
    :param samples: what servers reply to it, the usual one first.
    :param changes: whether it can change anything on the server.
    :param recorded: by case, what the recorded replies mean: a value, the class of an error, or one of these
        for each server. The case "<name>: unknown" asks about what does not exist, and the recorder does that
        by itself; others are steps of its story. Empty: no server was asked yet.
    :param repeatable: whether it has the same result each time, other than an error. The fault matrix asks it
        again and again and compares.
    """

    name: str
    arguments: Callable[[Ids], tuple[Any, ...]]
    samples: Sequence[Sample]
    changes: bool
    recorded: Mapping[str, Any]
    repeatable: bool = True

    @property
    def function(self) -> Callable[..., Call[Any]]:
        """The function of the protocol."""
        return cast("Callable[..., Call[Any]]", getattr(routes, self.name))

    @property
    def declared(self) -> Any:
        """The type of what a reply is read into."""
        return typing.get_args(typing.get_type_hints(self.function)["return"])[0]

    @property
    def says_nothing(self) -> bool:
        """Whether a reply has no more to tell than that there is one."""
        return self.declared is type(None)

    @property
    def unknown(self) -> str:
        """The recorded case that asks about what does not exist."""
        return f"{self.name}: unknown"

    def call(self, ids: Ids | None = None) -> Call[Any]:
        """Return a sample call. Default: about the default ids."""
        return self.function(*self.arguments(ids or Ids()))

    def call_for(self, sample: Sample) -> Call[Any]:
        """Return the call to which a sample is the reply."""
        return self.call() if sample.arguments is None else self.function(*sample.arguments)

    def recorded_call(self, arguments: Sequence[Any]) -> Call[Any]:
        """Return the call with arguments as they are recorded, in JSON."""
        hints = typing.get_type_hints(self.function)
        kinds = [hints[name] for name in inspect.signature(self.function).parameters]
        given = [
            RunStatus(value) if kind is RunStatus else value
            for kind, value in zip(kinds, arguments, strict=False)
        ]
        return self.function(*given)

    def meanings(self, version: str) -> dict[str, Any]:
        """Return by case what the recorded replies of a server mean."""
        return {
            case: meaning.of(version) if isinstance(meaning, ByVersion) else meaning
            for case, meaning in self.recorded.items()
        }


def understood(call: Call[Any], status: int, body: Any, server: str = SERVER) -> Any:
    """Return what the client makes of a reply, or raise what it raises."""
    response = Response(status, {}, json.dumps(body).encode())
    try:
        reply = protocol.decipher(call.verb, server + call.route, response)
    except JobmonError as error:
        raise call.explain(error, server) from None
    return call.understand(reply, server)


# --- Parts of replies ---------------------------------------------------------------------------------------


def _details(user: str, version: str) -> dict[str, Any]:
    """Return a row of ``workflow_details_viz``: 3.4.8 writes dates differently, and does not tell who."""
    between = "T" if version == NEW else " "
    row = {
        "wf_name": "fit",
        "wf_args": "2026",
        "wf_created_date": f"2026-11-25{between}02:34:00",
        "wf_status_date": f"2026-11-25{between}02:34:09",
        "tool_name": "sandbox",
        "wf_status": "F",
        "wf_status_desc": "Workflow unsuccessful in one or more WorkflowRuns.",
        "wfr_jobmon_version": version,
    }
    if version == NEW:
        row |= {"wfr_heartbeat_date": "2026-11-25T02:34:09", "wfr_user": user}
    return row


def _found(workflow_id: int) -> dict[str, Any]:
    """Return a row of ``workflow_overview_viz``."""
    counts = dict.fromkeys(("PENDING", "SCHEDULED", "RUNNING", "DONE", "FATAL"), 0)
    return {
        "wf_id": workflow_id,
        "wf_name": "fit",
        "wf_submitted_date": "2026-11-25T02:34:00",
        "wf_status_date": "2026-11-25T02:34:09",
        "wf_args": "2026",
        "wfr_count": 1,
        "wf_status": "FAILED",
        "wf_tool": "sandbox",
        **counts,
    }


def _table(**tasks: int) -> dict[str, str]:
    """Return a reply of ``workflow_tasks``, which is a table as pandas writes it: column by column."""
    columns: dict[str, list[Any]] = {
        "TASK_ID": list(tasks.values()),
        "TASK_NAME": list(tasks),
        "STATUS": ["F"] * len(tasks),
        "RETRIES": [0] * len(tasks),
    }
    rows = {name: {str(n): cell for n, cell in enumerate(column)} for name, column in columns.items()}
    return {"workflow_tasks": json.dumps(rows)}


_COUNTS = {"tasks": 10, "PENDING": 1, "SCHEDULED": 2, "RUNNING": 3, "DONE": 3, "FATAL": 1}
_ATTEMPTS = {"MAXC": 5, "num_attempts_avg": 1.5, "num_attempts_min": 1, "num_attempts_max": 2}
_NO_TASKS = TaskCounts(total=0, pending=0, scheduled=0, running=0, done=0, fatal=0)

# --- The routes, in the order of docs/protocol.md -----------------------------------------------------------

ROWS: tuple[Row, ...] = (
    Row(
        "health",
        lambda ids: (),
        [Sample({"status": "OK"}, None, "health")],
        changes=False,
        recorded={"health": None},
    ),
    Row(
        "api_version",
        lambda ids: (),
        [Sample({"status": "v3"}, "v3", "api_version")],
        changes=False,
        recorded={"api_version": ByVersion("v2", "v3")},
    ),
    Row(
        "probe_age",
        lambda ids: (),
        [Sample({"detail": "Method Not Allowed"}, InvalidRequest, "probe_age", status=405)],
        changes=False,
        recorded={"probe_age": InvalidRequest},
        repeatable=False,  # what it asks for is an error
    ),
    Row(
        "set_resume",
        lambda ids: (ids.workflow, True),
        [Sample({}, None, "set_resume: no active run")],
        changes=True,
        recorded={
            "set_resume: unknown": None,
            "set_resume: no active run": None,
            "set_resume: cold": None,
        },
    ),
    Row(
        "is_resumable",
        lambda ids: (ids.workflow,),
        [
            Sample(
                {"workflow_is_resumable": True}, Resumability(True, None), "is_resumable: yes", [OLD, MIDDLE]
            ),
            Sample(
                {"workflow_is_resumable": False, "pending_kill_self": 2},
                Resumability(False, 2),
                "is_resumable: no",
                [NEW],
            ),
        ],
        changes=False,
        recorded={
            "is_resumable: unknown": WorkflowNotFound,
            "is_resumable: yes": ByVersion(Resumability(True, None), Resumability(True, 0), NEW),
            "is_resumable: no": ByVersion(Resumability(False, None), Resumability(False, 0), NEW),
        },
    ),
    Row(
        "force_cleanup_kill_self",
        lambda ids: (ids.workflow,),
        [
            Sample(
                {"num_cleaned_up": 4, "num_workflow_runs_finalized": 1}, 4, "force_cleanup_kill_self", [NEW]
            )
        ],
        changes=True,
        recorded={
            "force_cleanup_kill_self: unknown": ByVersion(RouteNotSupported, 0, NEW),
            "force_cleanup_kill_self": ByVersion(RouteNotSupported, 0, NEW),
        },
    ),
    Row(
        "set_resume_state",
        lambda ids: (ids.workflow, True),
        [
            Sample({}, None, "set_resume_state"),
            Sample(
                {"err_msg": "Workflow 7 is not resumable. Please set the appropriate resume state."},
                WorkflowNotResumable,
                "set_resume_state: refused",
            ),
        ],
        changes=True,
        recorded={
            "set_resume_state: unknown": None,
            "set_resume_state": None,
            "set_resume_state: refused": WorkflowNotResumable,
        },
    ),
    Row(
        "create_workflow_run",
        lambda ids: (ids.workflow, "alice", GOOD_FOR),
        [
            Sample(
                {"workflow_run_id": 5, "status": "L"}, CreatedRun(5, RunStatus.LINKING), "create_workflow_run"
            ),
            Sample(
                {
                    "workflow_run_id": None,
                    "err_msg": "WorkflowRun 4 is currentlylinking, WorkflowRun 5 will be aborted.",
                },
                WorkflowBusy,
                "create_workflow_run: busy",
            ),
            Sample(
                {"workflow_run_id": None, "err_msg": "Workflow 7 is not in a resume-able state"},
                WorkflowNotResumable,
                "create_workflow_run: done",
            ),
            Sample(
                {"workflow_run_id": None, "err_msg": "No workflow exists for ID 7"},
                WorkflowNotFound,
                "create_workflow_run: unknown",
            ),
        ],
        changes=True,
        recorded={
            "create_workflow_run: unknown": WorkflowNotFound,
            "create_workflow_run": CreatedRun(2, RunStatus.LINKING),
            "create_workflow_run: busy": WorkflowBusy,
            "create_workflow_run: done": WorkflowNotResumable,
            "create_workflow_run: launched": WorkflowBusy,
        },
        repeatable=False,  # a second one is refused; the matrix has a test of its own for it
    ),
    Row(
        "log_heartbeat",
        lambda ids: (ids.run, RunStatus.LINKING, GOOD_FOR),
        [
            Sample({"status": "L"}, RunStatus.LINKING, "log_heartbeat"),
            Sample({"status": "B"}, RunStatus.BOUND, "log_heartbeat"),
        ],
        changes=True,
        recorded={
            "log_heartbeat: unknown": WorkflowRunNotFound,
            "log_heartbeat": RunStatus.LINKING,
            "log_heartbeat: reaped": RunStatus.ABORTED,
        },
    ),
    Row(
        "peek_status",
        lambda ids: (ids.run,),
        [Sample({"status": "R"}, RunStatus.RUNNING, "peek_status")],
        changes=False,
        recorded={
            "peek_status: unknown": WorkflowRunNotFound,
            "peek_status": RunStatus.LINKING,
            "peek_status: told to stop": RunStatus.COLD_RESUME,
        },
    ),
    Row(
        "update_status",
        lambda ids: (ids.ended_run, RunStatus.ABORTED),
        [Sample({"status": "A"}, RunStatus.ABORTED, "update_status")],
        changes=True,
        recorded={
            "update_status: unknown": WorkflowRunNotFound,
            "update_status": RunStatus.BOUND,
            "update_status: refused": RunStatus.BOUND,
            "update_status: D": RunStatus.DONE,
        },
    ),
    Row(
        "lost_workflow_runs",
        lambda ids: (read_status("W"),),  # in which no run is: others end, and count as lost, beside this
        [
            Sample(
                {"workflow_runs": [[5, 7], [6, 8]]},
                (LostRun(5, 7), LostRun(6, 8)),
                "lost_workflow_runs",
                SINCE_MIDDLE,
            ),
            Sample({"workflow_runs": []}, (), "lost_workflow_runs: none"),
        ],
        changes=False,
        recorded={
            "lost_workflow_runs": ByVersion((), (LostRun(7, 5),)),
            "lost_workflow_runs: none": (),
        },
    ),
    Row(
        "reap",
        lambda ids: (ids.run,),
        [
            Sample({"status": "A"}, None, "reap"),
            Sample({"status": ""}, None, "reap: not lost"),
        ],
        changes=True,
        recorded={"reap: unknown": None, "reap: not lost": None, "reap": None},
    ),
    Row(
        "workflow_details",
        lambda ids: (ids.workflow,),
        [
            Sample(
                [_details("bob", NEW)],
                WorkflowDetails("F", "fit", "bob", modern=True, status_since="2026-11-25T02:34:09"),
                "workflow_details: one run",
                SINCE_MIDDLE,
            ),
            Sample(
                [_details("bob", OLD), _details("bob", OLD)],
                WorkflowDetails("F", "fit", None, modern=True, status_since="2026-11-25 02:34:09"),
                "workflow_details: a refused run",
                [OLD],
            ),
            Sample([], None, "workflow_details: no run"),
        ],
        changes=False,
        recorded={
            "workflow_details: unknown": None,
            "workflow_details: no run": None,
            "workflow_details: one run": ByVersion(
                WorkflowDetails("F", "sandbox"), WorkflowDetails("F", "sandbox", "carol")
            ),
            "workflow_details: a refused run": ByVersion(
                WorkflowDetails("G", "sandbox"), WorkflowDetails("G", "sandbox", "alice")
            ),
        },
    ),
    Row(
        "find_workflows",
        # Of which there is none, whatever other tests make meanwhile.
        lambda ids: (f"nobody's {ids.workflow}", "sandbox", "2026", "kind", "none"),
        [
            Sample(
                {"workflows": [_found(9), _found(7)]},
                (FoundWorkflow(9, "2026", "FAILED"), FoundWorkflow(7, "2026", "FAILED")),
                "find_workflows",
                arguments=("fit", "sandbox", "2026", "", ""),
            ),
            Sample({"workflows": []}, (), "find_workflows: unknown"),
        ],
        changes=False,
        recorded={
            "find_workflows: unknown": (),
            "find_workflows": (FoundWorkflow(1, "sandbox", "FAILED"),),
        },
    ),
    Row(
        "task_counts",
        lambda ids: (ids.workflow,),
        [Sample({"7": {"id": 7, **_COUNTS, **_ATTEMPTS}}, TaskCounts(10, 1, 2, 3, 3, 1), "task_counts")],
        changes=False,
        recorded={
            "task_counts": TaskCounts(total=3, pending=0, scheduled=0, running=0, done=0, fatal=3),
            "task_counts: unknown": ByVersion(ServerFailure, _NO_TASKS),
        },
    ),
    Row(
        "failed_tasks",
        lambda ids: (ids.workflow, 5),
        [
            Sample(_table(fit=12, load=11), (FailedTask(12, "fit"), FailedTask(11, "load")), "failed_tasks"),
            Sample(_table(fit=12, load=11), (FailedTask(12, "fit"),), "failed_tasks", arguments=(7, 1)),
            Sample(_table(), (), "failed_tasks: none"),
        ],
        changes=False,
        recorded={
            "failed_tasks: unknown": (),
            "failed_tasks": (FailedTask(3, "task-2"), FailedTask(2, "task-1")),
            "failed_tasks: none": (),
        },
    ),
    Row(
        "most_recent_error",
        lambda ids: (ids.task,),
        [
            Sample(
                {"error_description": "Traceback:\n  x\nValueError", "task_instance_id": 3},
                "Traceback:\n  x\nValueError",
                "most_recent_error",
            ),
            Sample({"error_description": "", "task_instance_id": None}, "", "most_recent_error: none"),
        ],
        changes=False,
        recorded={
            "most_recent_error: unknown": "",
            "most_recent_error": "Got exit_code: 1. Error message was:",
            "most_recent_error: none": "",
        },
    ),
    Row(
        "probe_increase_resources",
        lambda ids: (ids.workflow,),
        [
            Sample(
                {"detail": "Method Not Allowed"},
                InvalidRequest,
                "probe_increase_resources",
                SINCE_MIDDLE,
                status=405,
            ),
            Sample({"detail": "Not Found"}, RouteNotSupported, "probe_increase_resources", [OLD], status=404),
        ],
        changes=False,
        recorded={"probe_increase_resources": ByVersion(RouteNotSupported, InvalidRequest)},
        repeatable=False,  # what it asks for is an error
    ),
    Row(
        "increase_resources",
        lambda ids: (ids.workflow,),
        [
            Sample(
                {"updated_task_count": 3, "updated_task_ids": [1, 2, 9]},
                3,
                "increase_resources",
                SINCE_MIDDLE,
            )
        ],
        changes=True,
        recorded={
            "increase_resources: unknown": ByVersion(RouteNotSupported, 0),
            "increase_resources": ByVersion(RouteNotSupported, 0),
        },
    ),
)


def public_functions() -> set[str]:
    """Return the names of the public functions that the protocol's module of routes defines."""
    return {
        name
        for name, function in inspect.getmembers(routes, inspect.isfunction)
        if function.__module__ == routes.__name__ and not name.startswith("_")
    }


def mismatches(functions: Collection[str], names: Sequence[str]) -> list[str]:
    """Return what is to be done until each route has one row, and each row a route.

    :param functions: that the module of routes has.
    :param names: of the rows.
    """
    module = "airflow_jobmon_provider/client/protocol/routes.py"
    without_row = sorted(set(functions) - set(names))
    without_route = sorted(set(names) - set(functions))
    repeated = sorted({name for name in names if names.count(name) > 1})
    return [
        *(f"{module} has {name}(): add a row for it to tests/routes.py" for name in without_row),
        *(
            f"tests/routes.py has a row for {name!r}, which is no public function of {module}: remove it"
            for name in without_route
        ),
        *(f"tests/routes.py has several rows for {name!r}: keep one" for name in repeated),
    ]


# What the tests run over: a row without a function is told by a test of its own, and not by all of them.
ROUTES: dict[str, Row] = {row.name: row for row in ROWS if row.name in public_functions()}
SAMPLES: dict[str, tuple[Row, Sample]] = {
    f"{row.name} {n}": (row, sample) for row in ROUTES.values() for n, sample in enumerate(row.samples, 1)
}


def keys_in(reply: Any) -> Iterator[str]:
    """Yield the keys that occur in a reply, and in a text within it that is JSON itself."""
    if isinstance(reply, dict):
        for key, value in reply.items():
            yield key
            yield from keys_in(value)
    elif isinstance(reply, list):
        for each in reply:
            yield from keys_in(each)
    elif isinstance(reply, str) and reply.startswith("{"):
        yield from keys_in(json.loads(reply))

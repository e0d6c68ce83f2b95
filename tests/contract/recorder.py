"""Records what a real Jobmon replies on every route that the client uses, as data for the contract tests.

``python -m tests.contract.recorder VERSION URL FAILED FRESH FRESH FRESH FRESH > replies/VERSION.json`` asks a
server, whose address has the route prefix, whose workflow FAILED was executed, and whose workflows FRESH were
bound and never run. It moves them through every case below; each is one row of the file. Without workflows it
records how a server refuses that wants a browser's login. Nothing of the machine is recorded: no header but
the content type, and ids as the server gave them.

Record 3.6 and "3.7" with the FastAPI that their lock files name. With the newest one they reply before they
commit, and a request that follows at once may be answered from what was before: ``I`` was refused to a run
still in ``L``, right after the reply that it was in ``B``. 3.2.4 and 3.3.1 ran with the libraries of their
time. There nobody executed FAILED: its run was moved from status to status, so no task says why it failed.
"""

from __future__ import annotations

import getpass
import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

from airflow_jobmon_provider.client.lifecycle import RunStatus
from tests.routes import GOOD_FOR, ROUTES, Ids

NOBODY = 987_654_321
"""No workflow, run or task has this id."""

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))

Recording = dict[str, Any]


class Recorder:
    """Asks one server, and keeps what it replies.

    :param url: address with the route prefix.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.recordings: list[Recording] = []

    def ask(self, case: str, function: str, *arguments: Any) -> Any:
        """Send what a function of the protocol asks for, record the reply, and return its body."""
        made = ROUTES[function].function(*arguments)
        return self.send(case, made.verb, made.route, dict(made.message), function, arguments)

    def send(
        self,
        case: str,
        verb: str,
        route: str,
        message: dict[str, Any] | None = None,
        function: str | None = None,
        arguments: Sequence[Any] = (),
    ) -> Any:
        """Send any request, record the reply under a name, and return its body.

        :param function: the protocol's function that reads the reply. Default: none does.
        """
        query = f"?{urllib.parse.urlencode(message, doseq=True)}" if verb == "get" and message else ""
        body = None if verb == "get" else json.dumps(message).encode()
        headers = {"Content-Type": "application/json"} if body else {}
        request = urllib.request.Request(self.url + route + query, body, headers, method=verb.upper())
        try:
            with _DIRECT.open(request, timeout=60) as reply:
                status, kind, text = reply.status, reply.headers.get_content_type(), reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                status, kind, text = error.code, error.headers.get_content_type(), error.read().decode()
        try:
            decoded: Any = json.loads(text)
        except ValueError:
            decoded = text
        self.recordings.append(
            {
                "case": case,
                "function": function,
                "arguments": [a.value if isinstance(a, RunStatus) else a for a in arguments],
                "method": verb.upper(),
                "route": route,
                "status": status,
                "content_type": kind,
                "body": decoded,
            }
        )
        return decoded


def record(url: str, failed: int, fresh: Sequence[int]) -> list[Recording]:
    """Return a recording of every case.

    :param url: address of the server with its route prefix.
    :param failed: a workflow that was executed, and whose tasks have failed.
    :param fresh: four workflows that were bound and never run.
    """
    to = Recorder(url)
    _ask_about_the_server(to)
    _ask_about_nobody(to)
    _look_at_a_failed_workflow(to, failed)
    _resume_it(to, failed, fresh[0])
    _end_runs(to, fresh)
    return to.recordings


def _ask_about_the_server(to: Recorder) -> None:
    to.ask("health", "health")
    to.ask("api_version", "api_version")
    to.ask("probe_age", "probe_age")
    to.send("missing route", "get", "/nothing_here")
    to.send("wrong method", "get", f"/workflow/{NOBODY}/set_resume")
    to.send("malformed id", "get", "/workflow_details_viz/seven")
    to.send("server error", "get", "/test_bad")


def _ask_about_nobody(to: Recorder) -> None:
    for name, row in ROUTES.items():
        if row.unknown in row.recorded:
            to.ask(row.unknown, name, *row.arguments(Ids.all_the_same(NOBODY)))


def _look_at_a_failed_workflow(to: Recorder, failed: int) -> None:
    to.ask("is_resumable: yes", "is_resumable", failed)
    name = to.ask("workflow_details: one run", "workflow_details", failed)[0]["wf_name"]
    to.ask("find_workflows", "find_workflows", name, "sandbox", name, "", "")
    to.ask("task_counts", "task_counts", failed)
    table = to.ask("failed_tasks", "failed_tasks", failed, 2)
    task = next(iter(json.loads(table["workflow_tasks"])["TASK_ID"].values()))
    to.ask("most_recent_error", "most_recent_error", task)
    to.ask("probe_increase_resources", "probe_increase_resources", failed)
    to.ask("increase_resources", "increase_resources", failed)


def _resume_it(to: Recorder, failed: int, fresh: int) -> None:
    to.ask("workflow_details: no run", "workflow_details", fresh)
    to.ask("failed_tasks: none", "failed_tasks", fresh, 2)
    to.ask("most_recent_error: none", "most_recent_error", NOBODY)
    to.ask("set_resume: no active run", "set_resume", failed, True)
    to.ask("set_resume_state", "set_resume_state", failed, True)
    run = to.ask("create_workflow_run", "create_workflow_run", failed, "alice", GOOD_FOR)["workflow_run_id"]
    to.ask("create_workflow_run: busy", "create_workflow_run", failed, "bob", GOOD_FOR)
    to.ask("workflow_details: a refused run", "workflow_details", failed)
    to.ask("is_resumable: no", "is_resumable", failed)
    to.ask("set_resume_state: refused", "set_resume_state", failed, True)
    to.ask("log_heartbeat", "log_heartbeat", run, RunStatus.LINKING, GOOD_FOR)
    to.ask("peek_status", "peek_status", run)
    to.ask("lost_workflow_runs: none", "lost_workflow_runs", RunStatus.HOT_RESUME)
    to.ask("reap: not lost", "reap", run)
    to.ask("update_status", "update_status", run, RunStatus.BOUND)
    to.ask("update_status: refused", "update_status", run, RunStatus.ABORTED)
    to.ask("set_resume: cold", "set_resume", failed, True)
    to.ask("peek_status: told to stop", "peek_status", run)
    to.ask("force_cleanup_kill_self", "force_cleanup_kill_self", failed)


def _end_runs(to: Recorder, fresh: Sequence[int]) -> None:
    done, launched, lost = fresh[1], fresh[2], fresh[3]
    run = to.ask("create_workflow_run: first", "create_workflow_run", done, "alice", GOOD_FOR)[
        "workflow_run_id"
    ]
    for status in "BIORD":
        to.ask(f"update_status: {status}", "update_status", run, RunStatus(status))
    to.ask("create_workflow_run: done", "create_workflow_run", done, "alice", GOOD_FOR)
    run = to.ask("create_workflow_run: to launch", "create_workflow_run", launched, "alice", GOOD_FOR)
    for status in "BIO":
        to.ask(
            f"update_status: launched {status}", "update_status", run["workflow_run_id"], RunStatus(status)
        )
    to.ask("create_workflow_run: launched", "create_workflow_run", launched, "bob", GOOD_FOR)
    run = to.ask("create_workflow_run: to be lost", "create_workflow_run", lost, "alice", 0)[
        "workflow_run_id"
    ]
    time.sleep(1.1)  # dates are in whole seconds on MariaDB
    to.ask("lost_workflow_runs", "lost_workflow_runs", RunStatus.LINKING)
    to.ask("reap", "reap", run)
    to.ask("log_heartbeat: reaped", "log_heartbeat", run, RunStatus.LINKING, GOOD_FOR)


def unnamed(recording: Recording) -> Recording:
    """Return a recording without what names the machine it was made on."""
    text = json.dumps(recording)
    text = re.sub(r"https?://(?:127\.0\.0\.1|localhost)[^/\s\"\\]*", "http://jobmon.example", text)
    text = re.sub(r"(?<![\w/.])/(?:tmp|work|root|home)/[^\s\"\\:,]*", "/path", text)
    text = text.replace(f'"wfr_user": "{getpass.getuser()}"', '"wfr_user": "carol"')
    cleaned: Recording = json.loads(text)
    return cleaned


def shape(value: Any) -> Any:
    """Return a JSON value's fields and their types, without the values; of a list, those of its items."""
    if isinstance(value, dict):
        return {re.sub(r"^\d+$", "<number>", key): shape(each) for key, each in value.items()}
    if isinstance(value, list):
        shapes = [shape(each) for each in value]
        return [each for n, each in enumerate(shapes) if each not in shapes[:n]]
    return type(value).__name__


def rows(recordings: Sequence[Recording]) -> Iterator[str]:
    """Yield each recording as one line of the file."""
    for recording in recordings:
        yield json.dumps(unnamed(recording), ensure_ascii=False)


def record_login_wanted(url: str) -> list[Recording]:
    """Return what a server that wants a browser's login replies to whoever has none.

    :param url: address of the server with its route prefix.
    """
    to = Recorder(url)
    _ask_about_the_server(to)
    _ask_about_nobody(to)
    return to.recordings


def main(version: str, url: str, failed: str | None = None, *fresh: str) -> None:
    """Print the recordings of one server as a JSON document, a line a case."""
    if failed is None:
        found = record_login_wanted(url)
    else:
        found = record(url, int(failed), [int(each) for each in fresh])
    print(f'{{"version": {json.dumps(version)}, "replies": [')
    print(",\n".join(rows(found)))
    print("]}")


if __name__ == "__main__":
    main(*sys.argv[1:])

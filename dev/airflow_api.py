"""Airflow's REST API as tests and the demo use it: that of Airflow 3 (`v2`) and that of 2.11 (`v1`)."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

_RAISE = object()
_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class AirflowApiError(Exception):
    """Airflow refused a request; the message holds its reply."""


class AirflowApi:
    """Requests to an Airflow that wants no login.

    :param url: where its API server (2.11: its webserver) is.
    :param version: Airflow's own version, major and minor.
    """

    def __init__(self, url: str, version: tuple[int, int]) -> None:
        self.url = url
        self.version = version
        self._token = ""

    # DAGs and their runs

    def is_parsed(self, dag_id: str) -> bool:
        """Tell whether the DAG's file has been parsed as it is now."""
        dag = self.call("GET", f"/dags/{quote(dag_id)}", missing={})
        if not dag.get("last_parsed_time") or dag.get("is_stale") or dag.get("is_active") is False:
            return False
        parsed = datetime.fromisoformat(dag["last_parsed_time"].replace("Z", "+00:00")).timestamp()
        return parsed >= Path(dag["fileloc"]).stat().st_mtime

    def dag_import_errors(self) -> dict[str, str]:
        """File name to stack trace; the name is relative to the DAGs folder from Airflow 3.0 on."""
        return {e["filename"]: e["stack_trace"] for e in self.call("GET", "/importErrors")["import_errors"]}

    def start_run(self, dag_id: str, conf: Mapping[str, object]) -> str:
        """Unpause the DAG, start a run and return its id."""
        self.call("PATCH", f"/dags/{quote(dag_id)}?update_mask=is_paused", {"is_paused": False})
        body: dict[str, object] = {"conf": dict(conf)}
        if self.version >= (3, 0):
            body["logical_date"] = None
        return str(self.call("POST", f"/dags/{quote(dag_id)}/dagRuns", body)["dag_run_id"])

    def has_run(self, dag_id: str, run_id: str) -> bool:
        """Whether the API knows the DAG run."""
        return self.call("GET", _run_path(dag_id, run_id), missing=None) is not None

    def run_state(self, dag_id: str, run_id: str) -> str:
        """`queued`, `running`, `success` or `failed`."""
        return str(self.call("GET", _run_path(dag_id, run_id))["state"])

    # Task instances

    def task_states(self, dag_id: str, run_id: str) -> dict[str, str]:
        """Task id to state, `task[0]` for mapped ones, "none" for those that the scheduler has not got to."""
        found = self.call("GET", f"{_run_path(dag_id, run_id)}/taskInstances?limit=1000")["task_instances"]
        names = (t["task_id"] + (f"[{t['map_index']}]" if t["map_index"] >= 0 else "") for t in found)
        return dict(zip(names, (t["state"] or "none" for t in found), strict=True))

    def task_instance(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> dict[str, Any]:
        """Everything that the API says about a task instance: `pid`, `try_number`, `trigger` and more."""
        found: dict[str, Any] = self.call("GET", _task_path(dag_id, run_id, task_id, map_index))
        return found

    def xcom(
        self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", map_index: int = -1
    ) -> Any:  # whatever the task pushed
        """The value of an XCom; KeyError if there is none."""
        path = f"{_run_path(dag_id, run_id)}/taskInstances/{quote(task_id)}/xcomEntries/{quote(key)}"
        entry = self.call("GET", f"{path}?map_index={map_index}&stringify=false", missing=None)
        if entry is None:
            raise KeyError(key)
        return entry["value"]

    def set_task_state(self, dag_id: str, run_id: str, task_id: str, state: str, map_index: int = -1) -> None:
        """What "mark as failed" or "mark as success" of the UI does."""
        body: dict[str, object] = {"new_state": state}
        if self.version < (3, 0):
            body["dry_run"] = False
        self.call("PATCH", _task_path(dag_id, run_id, task_id, map_index), body)

    def clear_task(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> None:
        """What "clear" of the UI does: the task runs again, as another try."""
        task = [task_id, map_index] if map_index >= 0 else task_id
        body = {"dry_run": False, "dag_run_id": run_id, "task_ids": [task], "only_failed": False}
        self.call("POST", f"/dags/{quote(dag_id)}/clearTaskInstances", body)

    # Components

    def is_ready(self) -> bool:
        """Tell whether every component reports that it is healthy.

        The API server builds the API for tasks at its first request, which takes seconds: a task's own would
        time out.
        """
        parts = ["metadatabase", "scheduler", "triggerer"]
        if self.version < (3, 0):
            health = self.call("GET", "/health")
        else:
            parts += ["dag_processor", "execution"]
            health = {**self.call("GET", "/monitor/health"), "execution": self.execution_health()}
        return all(health[part]["status"] == "healthy" for part in parts)

    def execution_health(self) -> dict[str, str]:
        """What the API for tasks says of itself (Airflow 3)."""
        health: dict[str, str] = self.call("GET", "/health", prefix="/execution")
        return health

    def live_jobs(self, kind: str) -> set[int]:
        """Airflow's ids of its live processes of a kind, such as `TriggererJob` (Airflow 3)."""
        jobs = self.call("GET", f"/jobs?job_type={kind}&job_state=running&is_alive=true&limit=1000")["jobs"]
        return {job["id"] for job in jobs}

    def call(
        self, method: str, path: str, body: object = None, *, missing: Any = _RAISE, prefix: str = ""
    ) -> Any:
        """One request; the decoded reply. A 404 is an error unless `missing` says what to return for it."""
        try:
            return self._send(method, (prefix or self._prefix) + path, body)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 404 and missing is not _RAISE:
                    return missing
                raise AirflowApiError(f"{method} {path}: {error.code} {error.read(1000)!r}") from None

    @property
    def _prefix(self) -> str:
        return "/api/v2" if self.version >= (3, 0) else "/api/v1"

    def _send(self, method: str, path: str, body: object) -> Any:
        if self.version >= (3, 0) and not self._token and path.startswith(self._prefix):
            # All are admins, but from 3.1 on also they need a token.
            self._token = str(self._send("GET", "/auth/token", None)["access_token"])
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with contextlib.closing(_NO_PROXY.open(request, timeout=30)) as reply:
            content = reply.read()
        return json.loads(content) if content else None


def _run_path(dag_id: str, run_id: str) -> str:
    return f"/dags/{quote(dag_id)}/dagRuns/{quote(run_id)}"


def _task_path(dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    mapped = f"/{map_index}" if map_index >= 0 else ""
    return f"{_run_path(dag_id, run_id)}/taskInstances/{quote(task_id)}{mapped}"

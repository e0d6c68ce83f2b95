"""A real Jobmon on this machine: server, reaper, client, in an environment of its own beside the project.

Tests, demo and people use the same code. ``make sandbox`` starts one in the foreground.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from airflow_jobmon_provider.client.protocol import CLIENT_VERSION
from dev import foreground
from dev.launcher import BUSY, Child, free_ports

T = TypeVar("T")
HERE = Path(__file__).resolve().parent
CLUSTER = "multiprocess"  # Jobmon's name of the cluster that is this machine
SLURM = "slurm"  # of the cluster whose tasks are Slurm's jobs: see JobmonSandbox.add_slurm
PLUGIN = HERE / "jobmon_slurm.py"
CONSTRAINTS = HERE / "jobmon_constraints.txt"
# Pre-releases: pip takes them only by exact version (docs/protocol.md, "Run a real one").
PACKAGES = ("jobmon_server==3.4.8.dev3", "jobmon_core==3.4.8", "jobmon_client==3.4.3.dev3")
_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class SandboxError(Exception):
    """The sandbox, or something that was asked of it, did not come about; the message holds what is known."""


def wait_until(condition: Callable[[], T], timeout: float, what: str) -> T:
    """Poll until a condition holds, and return what it returned.

    :param timeout: seconds that it may take on a quiet machine; it has ``BUSY`` times as long.
    :param what: what is waited for, for the message.
    :raises TimeoutError: it did not hold in time.
    """
    timeout *= BUSY
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:g} s for {what}")
        time.sleep(0.05)
    return result


def install() -> Path:
    """Make sure that Jobmon's environment exists and return its interpreter.

    A second call returns at once; calls at the same time wait for each other; one that was interrupted is
    done anew. The folder is ``.venv-jobmon``, or what JOBMON_SANDBOX_ENV names.

    :raises SandboxError: the packages cannot be installed.
    """
    folder = Path(os.environ.get("JOBMON_SANDBOX_ENV") or HERE.parent / ".venv-jobmon")
    python = folder / "bin" / "python"
    wanted = hashlib.sha256("".join(PACKAGES).encode() + CONSTRAINTS.read_bytes()).hexdigest()
    stamp = folder / ".installed"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(folder.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text() == wanted:
            _install_plugin(folder)
            return python
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(folder)])
        requirements = ["--quiet", "--constraint", str(CONSTRAINTS), *PACKAGES]
        if importlib.util.find_spec("uv"):
            options = ["--compile-bytecode", "--python", str(python)]  # as pip does by itself
            _run([sys.executable, "-m", "uv", "pip", "install", *options, *requirements])
        else:
            _run([str(python), "-m", "pip", "install", *requirements])
        _install_plugin(folder)
        stamp.write_text(wanted)
    return python


def _install_plugin(environment: Path) -> None:
    """Copy the plugin for Slurm to where Jobmon looks for it, unless it is there."""
    (plugins,) = environment.glob("lib/python*/site-packages/jobmon/plugins")
    target = plugins / "slurm.py"
    if not target.exists() or target.read_bytes() != PLUGIN.read_bytes():
        draft = target.with_suffix(".draft")
        shutil.copy(PLUGIN, draft)
        draft.replace(target)  # a Jobmon of another process may read it just now


def _run(command: list[str], env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise SandboxError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


@dataclass(frozen=True)
class SandboxWorkflow:
    """A workflow in the sandbox.

    :param workflow_id: its id.
    :param workflow_run_id: id of its latest run; None: it was never run.
    :param marker: the file that its tasks need in order to succeed.
    """

    workflow_id: int
    workflow_run_id: int | None
    marker: Path

    def release(self) -> None:
        """Let its tasks succeed from now on."""
        self.marker.touch()


@dataclass(frozen=True)
class SeenRequest:
    """A request as the server saw it. ``time`` is in seconds since the epoch."""

    time: float
    method: str
    path: str
    query: str
    status_code: int
    body: Any
    reply: Any

    @property
    def is_ours(self) -> bool:
        """Whether the provider has sent it: an executor of another test may be at work beside it."""
        return f"client_jobmon_version={CLIENT_VERSION}" in self.query


class JobmonSandbox:
    """A running Jobmon of its own: SQLite, free loopback ports; a context manager.

    :param heartbeat_interval: seconds between heartbeats of Jobmon's own client. Default 2, for quick tests.
    :param report_by_buffer: a heartbeat is good for the interval times this. Default 3.1.
    :param directory: where database and logs go. Default: a temporary one, removed at the end.
    :param database_uri: a MariaDB instead of SQLite, as Jobmon's server takes it: see ``dev.services``.
    """

    def __init__(
        self,
        *,
        heartbeat_interval: float = 2,
        report_by_buffer: float = 3.1,
        directory: Path | None = None,
        database_uri: str | None = None,
    ) -> None:
        self.heartbeat_interval = heartbeat_interval
        self.report_by_buffer = report_by_buffer
        self._own_directory = directory is None
        self.directory = directory or Path()
        self._database_uri = database_uri
        self.python = Path()
        self.url = ""
        self._port = self._worker_port = 0
        self._server: Child | None = None
        self._worker: Child | None = None
        self._executors: list[Child] = []
        self._markers = 0
        self._queues: dict[str, str] = {}  # of clusters that were added
        self._reading = threading.Lock()
        self._seen: list[SeenRequest] = []
        self._read_up_to = 0

    # Life

    def __enter__(self) -> JobmonSandbox:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Install Jobmon if need be, start it, and return when it answers. A second call does nothing."""
        if self._server is not None:
            return
        self.python = install()
        if self._own_directory:
            self.directory = Path(tempfile.mkdtemp(prefix="jobmon-sandbox-"))
        self._seen, self._read_up_to = [], 0
        self.directory.mkdir(parents=True, exist_ok=True)
        self._port, self._worker_port = free_ports(2)
        self.url = f"http://127.0.0.1:{self._port}"
        try:
            self._create_database()
            self._worker = self._launch("jobmon_worker.py", "serve", str(self._worker_port), log="worker.log")
            self.start_server()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process, and remove the directory if it is ours. A second call does nothing."""
        children = [child for child in (*self._executors, self._worker, self._server) if child]
        for child in children:
            child.hang_up()  # all at once: each takes its time
        for child in children:
            child.wait()
        self._server = self._worker = None
        self._executors.clear()
        if self._own_directory and self.directory != Path():
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory = Path()

    def start_server(self, *, newer: bool = True) -> None:
        """Start the server, on the same port and database as before, and wait until it is healthy.

        :param newer: with the routes of "3.7" below ``/api/v3``, and of 3.6 below ``/3.6/api/v3``. False: as
            released. Default True.
        """
        if self._server is not None and self._server.alive:
            return
        options = [] if newer else ["--released"]
        arguments = [str(self._port), str(self._request_log), *options]
        server = self._launch("jobmon_server.py", *arguments, log="server.log")
        self._server = server

        def healthy() -> bool:
            if not server.alive:
                raise SandboxError(f"Jobmon's server has ended:\n{server.tail()}")
            with contextlib.suppress(OSError):
                return bool(self.get("/api/v2/health") == {"status": "OK"})
            return False

        try:
            wait_until(healthy, 60, "Jobmon's server to be healthy")
        except TimeoutError as error:
            raise SandboxError(f"{error}:\n{server.tail()}") from None

    def stop_server(self) -> None:
        """Kill the server, as an outage does. The database stays."""
        assert self._server is not None
        self._server.kill(signal.SIGKILL)

    @property
    def server_pid(self) -> int:
        """Id of the server's process."""
        assert self._server is not None
        return self._server.pid

    def pause_server(self) -> None:
        """Stop the server in its tracks: it accepts connections and answers none."""
        assert self._server is not None
        self._server.kill(signal.SIGSTOP)

    def resume_server(self) -> None:
        """Let a paused server go on."""
        assert self._server is not None
        self._server.kill(signal.SIGCONT)

    def _launch(self, script: str, *arguments: str, log: str) -> Child:
        return Child(
            [str(self.python), str(HERE / script), *arguments],
            env=self.environment(),
            cwd=self.directory,
            log=self.directory / log,
        )

    def _create_database(self) -> None:
        if self._database_uri or self.database.exists():
            _run([str(self.python.parent / "jobmon_server"), "init_db"], env=self.environment())
            return
        template = self.python.parent.parent / "template.db"  # making one takes several seconds
        if not template.exists():
            draft = self.directory / "template.db"
            env = {**self.environment(), "JOBMON__DB__SQLALCHEMY_DATABASE_URI": f"sqlite:///{draft}"}
            _run([str(self.python.parent / "jobmon_server"), "init_db"], env=env)
            with contextlib.closing(sqlite3.connect(draft)) as database:
                database.execute("PRAGMA journal_mode=WAL")  # readers do not wait for a writer
            copy = template.with_name(f"template.{os.getpid()}.db")
            shutil.move(draft, copy)
            copy.replace(template)
        shutil.copy(template, self.database)

    # Where things are

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.directory / "jobmon.db"

    @property
    def _request_log(self) -> Path:
        return self.directory / "requests.jsonl"

    def environment(self, route_prefix: str = "/api/v2") -> dict[str, str]:
        """Return the environment of a process that uses this Jobmon through Jobmon's own client.

        :param route_prefix: ``/api/v2``: the server as released; ``/api/v3``: with the newer routes.
        """
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("JOBMON__")}
        return {
            **inherited,
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "JOBMON__DB__SQLALCHEMY_DATABASE_URI": self._database_uri or f"sqlite:///{self.database}",
            "JOBMON__SESSION__SECRET_KEY": "sandbox",
            "JOBMON__OIDC__CONF_URL": "http://127.0.0.1/none",
            "JOBMON__OIDC__CLIENT_ID": "none",
            "JOBMON__OIDC__CLIENT_SECRET": "none",
            "JOBMON__OIDC__SCOPE": "none",
            "JOBMON__OIDC__ADMIN_GROUP": "none",
            "JOBMON__HTTP__SERVICE_URL": self.url,
            "JOBMON__HTTP__ROUTE_PREFIX": route_prefix,
            "JOBMON__HEARTBEAT__WORKFLOW_RUN_INTERVAL": f"{self.heartbeat_interval:g}",
            "JOBMON__HEARTBEAT__REPORT_BY_BUFFER": f"{self.report_by_buffer:g}",
            "JOBMON__HEARTBEAT__TASK_INSTANCE_INTERVAL": "5",
            "JOBMON__DISTRIBUTOR__POLL_INTERVAL": "1",
        }

    def connection(self) -> str:
        """Return the connection with which DAGs find this Jobmon, as JSON."""
        extra = {
            "route_prefix": "/api/v2",
            "workflow_run_heartbeat_interval": self.heartbeat_interval,
            "heartbeat_report_by_buffer": self.report_by_buffer,
            "jobmon_python": str(self.python),
            "gui_url": self.url,
        }
        return json.dumps({"conn_type": "jobmon", "host": self.url, "extra": extra})

    def page(self, workflow_id: int) -> str:
        """Return the address of the page that shows a workflow; it stands in for Jobmon's GUI."""
        return f"{self.url}/#/workflow/{workflow_id}"

    # Workflows

    def add_slurm(self, partition: str) -> None:
        """Let Jobmon know the cluster ``slurm``, whose tasks are array jobs of a partition of a Slurm.

        Who executes a run there needs Slurm's commands and, for another than this machine's own, SLURM_CONF.
        """
        of_type = "SELECT name, id FROM cluster_type WHERE name = ?"
        of_cluster = "SELECT ?, id, '{}' FROM cluster WHERE name = ?"
        self.change("INSERT INTO cluster_type (name) VALUES (?)", SLURM)
        self.change(f"INSERT INTO cluster (name, cluster_type_id) {of_type}", SLURM)
        self.change(f"INSERT INTO queue (name, cluster_id, parameters) {of_cluster}", partition, SLURM)
        self._queues[SLURM] = partition

    def make_workflow(
        self, kind: str, *, tasks: int = 3, cluster: str = CLUSTER, waits: bool = False
    ) -> SandboxWorkflow:
        """Make a workflow with Jobmon's own client and, unless it is to be new, really execute it.

        :param kind: ``new``: never run. ``fails``: its tasks have failed, and do so until it is released.
            ``running``: its run is RUNNING, and its tasks wait until it is released. ``done``: it is DONE.
        :param tasks: how many tasks. Default 3.
        :param waits: its tasks wait until it is released instead of failing, as those of ``running`` do.
        :raises SandboxError: it did not come to that.
        """
        self._markers += 1
        marker = self.directory / f"marker-{self._markers}"
        if kind == "done":
            marker.touch()
        command = f"cat {marker}"  # without the file, its error is what a user would see
        if waits or kind == "running":
            command = f"until test -e {marker}; do sleep 0.2; done"
        commands = [f"{command} && echo {n}" for n in range(tasks)]
        queue = self._queues.get(cluster, "null.q")
        workflow_id = self._work("make_workflow", commands=commands, cluster=cluster, queue=queue)
        if kind == "new":
            return SandboxWorkflow(workflow_id, None, marker)
        workflow_run_id = self._work("create_run", workflow_id=workflow_id)
        executor = self.execute(workflow_id, workflow_run_id, cluster)
        wanted = {"fails": "E", "running": "R", "done": "D"}[kind]

        def reached() -> bool:
            status = self.run_status(workflow_run_id)
            if status != wanted and not executor.alive:
                raise SandboxError(f"the {kind} workflow's run ended {status}:\n{executor.tail()}")
            return status == wanted and (kind == "running" or not executor.alive)

        wait_until(reached, 60, f"the {kind} workflow")
        return SandboxWorkflow(workflow_id, workflow_run_id, marker)

    def make_workflow_in(
        self,
        run_status: str,
        *,
        tasks: int = 1,
        cluster: str = CLUSTER,
        good_for: float = 3600,
        waits: bool = False,
    ) -> SandboxWorkflow:
        """Make a workflow whose run has a status, without executing anything: quick.

        :param run_status: L, B, I, O, R, C, D, E or A.
        :param good_for: seconds until the run counts as lost.
        :param cluster, waits: see :meth:`make_workflow`.
        """
        workflow = self.make_workflow("new", tasks=tasks, cluster=cluster, waits=waits)
        body = {"workflow_id": workflow.workflow_id, "user": "sandbox", "jobmon_version": "sandbox"}
        reply = self.post("/api/v2/workflow_run", {**body, "next_report_increment": good_for})
        run: int = reply["workflow_run_id"]
        paths = ("", "A", "B", "BC", "BI", "BIO", "BIOR", "BIORD", "BIORE")
        for status in next(path for path in paths if ("L" + path)[-1] == run_status):
            self.put(f"/api/v2/workflow_run/{run}/update_status", {"status": status})
        if run_status in "DE":
            tasks_end = {"D": "D", "E": "F"}[run_status]
            self.change("UPDATE task SET status = ? WHERE workflow_id = ?", tasks_end, workflow.workflow_id)
        return SandboxWorkflow(workflow.workflow_id, run, workflow.marker)

    def execute(self, workflow_id: int, workflow_run_id: int, cluster: str = CLUSTER) -> Child:
        """Execute a run that is LINKING with Jobmon's own client, in a process of its own."""
        arguments = ("execute", str(workflow_id), str(workflow_run_id), cluster)
        child = self._launch("jobmon_worker.py", *arguments, log=f"execute-{workflow_run_id}.log")
        self._executors.append(child)
        return child

    def resume_command(
        self,
        workflow_id: int,
        *,
        arguments: Sequence[str] = (),
        prelude: str = "",
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run Jobmon's own ``jobmon workflow_resume`` to its end.

        :param arguments: further arguments of the command.
        :param prelude: Python to run in that process before the command is imported.
        :param env: added to its environment.
        """
        program = f"{prelude}\nimport sys\nfrom jobmon.client.cli import main\nsys.exit(main())"
        command = ["workflow_resume", "-w", str(workflow_id), "-c", CLUSTER, *arguments]
        return subprocess.run(
            [str(self.python), "-c", program, *command],
            env={**self.environment(), **(env or {})},
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    # The reaper

    def reap(self) -> None:
        """Let Jobmon's reaper make one pass over lost runs."""
        self._work("reap")

    def start_reaper(self, poll_interval: float = 1) -> None:
        """Let Jobmon's reaper go round for ever."""
        self._work("start_reaper", poll_interval=poll_interval)

    def stop_reaper(self) -> None:
        """Stop it."""
        self._work("stop_reaper")

    # What is there

    def query(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Read straight from the database."""
        with self._connect("?mode=ro") as database:
            return list(database(sql, [parameters]))

    def change(self, sql: str, *parameters: object) -> None:
        """Change the database behind the server's back."""
        self._change(sql, [parameters])

    def _change(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        with self._connect() as database:
            database(sql, rows)

    @contextlib.contextmanager
    def _connect(self, options: str = "") -> Iterator[Callable[[str, Iterable[Sequence[object]]], Any]]:
        """Connect to the database; what comes executes a statement for each row of parameters."""
        if self._database_uri is None:
            with (
                contextlib.closing(
                    sqlite3.connect(f"file:{self.database}{options}", uri=True, timeout=30)
                ) as sqlite,
                sqlite,
            ):
                cursor = sqlite.cursor()
                yield lambda sql, rows: [cursor.execute(sql, row).fetchall() for row in rows][-1]
            return
        from dev.services import connect_to_mariadb

        with contextlib.closing(connect_to_mariadb(self._database_uri)) as mariadb, mariadb.cursor() as mysql:

            def execute(sql: str, rows: Iterable[Sequence[object]]) -> Any:
                mariadb.begin()  # else each row would be a transaction, which waits for the disk
                for row in rows:
                    mysql.execute(sql.replace("?", "%s"), row)
                found = mysql.fetchall()
                mariadb.commit()
                return found

            yield execute

    def copy_workflow(self, workflow_id: int, count: int) -> list[int]:
        """Copy a new workflow in the database, without its tasks: making thousands of them takes long.

        :returns: the ids of the copies.
        """
        columns = "tool_version_id, dag_id, task_hash, description, name, workflow_args,"
        columns += " max_concurrently_running, created_date, status_date, status"
        (newest,) = self.query("SELECT max(id) FROM workflow")[0]
        self._change(
            f"INSERT INTO workflow (workflow_args_hash, {columns}) SELECT ?, {columns} FROM workflow"
            " WHERE id = ?",
            [(f"copy-{workflow_id}-{newest}-{number}", workflow_id) for number in range(count)],
        )
        return [copy for (copy,) in self.query("SELECT id FROM workflow WHERE id > ?", newest)]

    def copy_run(self, workflow: SandboxWorkflow, count: int) -> list[int]:
        """Copy a workflow and its run in the database, without their tasks.

        :returns: the ids of the runs that were made.
        """
        copies = self.copy_workflow(workflow.workflow_id, count)
        columns = "user, jobmon_version, status, created_date, status_date, heartbeat_date"
        copied = ", ".join(f"run.{column}" for column in columns.split(", "))
        self.change(
            f"INSERT INTO workflow_run (workflow_id, {columns}) SELECT workflow.id, {copied}"
            " FROM workflow, workflow_run AS run WHERE run.id = ? AND workflow.id >= ? ORDER BY workflow.id",
            *(workflow.workflow_run_id, copies[0]),
        )
        runs = self.query("SELECT id FROM workflow_run WHERE workflow_id >= ? ORDER BY id", copies[0])
        return [run for (run,) in runs]

    def workflow_status(self, workflow_id: int) -> str:
        """Code of a workflow's status."""
        return str(self.query("SELECT status FROM workflow WHERE id = ?", workflow_id)[0][0])

    def run_status(self, workflow_run_id: int) -> str:
        """Code of a run's status."""
        return str(self.query("SELECT status FROM workflow_run WHERE id = ?", workflow_run_id)[0][0])

    def runs(self, workflow_id: int) -> list[tuple[int, str]]:
        """Ids and statuses of a workflow's runs, oldest first."""
        sql = "SELECT id, status FROM workflow_run WHERE workflow_id = ? ORDER BY id"
        return [(run, status) for run, status in self.query(sql, workflow_id)]

    def task_statuses(self, workflow_id: int) -> list[str]:
        """Statuses of a workflow's tasks."""
        return [s for (s,) in self.query("SELECT status FROM task WHERE workflow_id = ?", workflow_id)]

    def heartbeat_date(self, workflow_run_id: int) -> datetime:
        """When a run counts as lost, in UTC without time zone, as the database holds it."""
        rows = self.query("SELECT heartbeat_date FROM workflow_run WHERE id = ?", workflow_run_id)
        date = rows[0][0]  # SQLite knows no dates
        return date if isinstance(date, datetime) else datetime.fromisoformat(date)

    def age_heartbeat(self, workflow_run_id: int, seconds: float) -> None:
        """Move a run's heartbeat date back, so that it counts as lost the sooner."""
        date = self.heartbeat_date(workflow_run_id) - timedelta(seconds=seconds)
        self.change("UPDATE workflow_run SET heartbeat_date = ? WHERE id = ?", str(date), workflow_run_id)

    def requests(self, path_part: str = "") -> list[SeenRequest]:
        """Return what the server was asked, in order, where the path contains a text."""
        with self._reading, contextlib.suppress(FileNotFoundError), self._request_log.open("rb") as log:
            log.seek(self._read_up_to)
            # The last line may be half written: who waits for its reply has none yet.
            complete, newline, _ = log.read().rpartition(b"\n")
            self._read_up_to += len(complete + newline)
            for line in complete.splitlines():
                entry = json.loads(line)
                entry |= {key: _json_or_text(entry[key]) for key in ("body", "reply")}
                self._seen.append(SeenRequest(**entry))
        return [request for request in self._seen if path_part in request.path]

    # HTTP

    def get(self, path: str) -> Any:
        """GET a path of the server."""
        return self._http("GET", f"{self.url}{path}", None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """POST to a path of the server."""
        return self._http("POST", f"{self.url}{path}", body)

    def put(self, path: str, body: dict[str, Any]) -> Any:
        """PUT to a path of the server."""
        return self._http("PUT", f"{self.url}{path}", body)

    def _work(self, action: str, **arguments: Any) -> Any:
        url = f"http://127.0.0.1:{self._worker_port}/{action}"
        worker = self._worker
        if worker is None:
            raise SandboxError("the sandbox is not started")

        def listening() -> bool:
            if not worker.alive:
                raise SandboxError(f"Jobmon's worker has ended:\n{worker.tail()}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._worker_port), 1):
                return True
            return False

        wait_until(listening, 30, "Jobmon's worker")
        return self._http("POST", url, arguments, timeout=120)

    @staticmethod
    def _http(method: str, url: str, body: dict[str, Any] | None, timeout: float = 30) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
        try:
            with _NO_PROXY.open(request, timeout=timeout) as reply:
                return json.loads(reply.read())
        except urllib.error.HTTPError as error:
            with error:
                raise SandboxError(f"{method} {url}: {error.code} {error.read().decode()[-3000:]}") from None


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


GUIDE = """\
Jobmon runs at {url}. Its cluster is called {cluster}.
Workflow {workflow_id} has failed: its tasks read a file that is missing. See for yourself:

  {page}

Let Airflow resume it: paste this into a second terminal. It writes the missing file, sets up an
Airflow in a temporary folder, and runs one of the example DAGs there. That takes a minute.

cd {project}
touch {marker}
export AIRFLOW_CONN_JOBMON_DEFAULT={connection}
export AIRFLOW_HOME=$(mktemp -d)
export AIRFLOW__CORE__DAGS_FOLDER=$PWD/example_dags AIRFLOW__CORE__LOAD_EXAMPLES=False
export NO_PROXY=127.0.0.1
{bin}/airflow db migrate && {bin}/airflow dags test {dag} --conf {conf}

Near its end the log says that the workflow run "ended DONE", and the page above shows the same.
Ctrl-C here ends Jobmon.
"""


def guide(sandbox: JobmonSandbox, workflow: SandboxWorkflow) -> str:
    """Return what a person can do with a workflow that has failed: text, with commands to paste."""
    project = HERE.parent
    scripts = Path(sys.executable).parent
    conf = {"workflow_id": workflow.workflow_id, "cluster_name": CLUSTER}
    return GUIDE.format(
        url=sandbox.url,
        cluster=CLUSTER,
        workflow_id=workflow.workflow_id,
        page=sandbox.page(workflow.workflow_id),
        project=shlex.quote(str(project)),
        marker=shlex.quote(str(workflow.marker)),
        connection=shlex.quote(sandbox.connection()),
        bin=shlex.quote(str(scripts.relative_to(project) if scripts.is_relative_to(project) else scripts)),
        dag="jobmon_resume_and_execute",
        conf=shlex.quote(json.dumps(conf)),
    )


def main() -> int:
    """Start a sandbox with a workflow that has failed, say what to do with it, and wait to be ended."""
    print("Starting a Jobmon (the first time, it is installed, which takes a minute) …", flush=True)
    try:
        with JobmonSandbox(heartbeat_interval=10) as sandbox:
            sandbox.start_reaper(10)
            print(guide(sandbox, sandbox.make_workflow("fails")), flush=True)
            foreground.rest(0)
    except (SandboxError, TimeoutError) as error:
        print(error, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(foreground.run("dev.jobmon_sandbox"))

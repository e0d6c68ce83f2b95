"""A real Airflow on this machine for tests and the demo: scheduler, triggerer, DAG processor, API server, UI.

Each component ends with everything it has started as soon as this process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from dev.airflow_api import AirflowApi, AirflowApiError
from dev.launcher import BUSY, Child, free_ports

FINAL = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
T = TypeVar("T")


SETTINGS: dict[str, dict[str, object]] = {
    "api": {"host": "127.0.0.1", "maximum_page_limit": 1000},
    "api_auth": {
        "jwt_expiration_time": 7 * 86400,
        "jwt_issuer": "airflow",  # 3.0 has none, which newer releases of PyJWT refuse
    },
    "celery": {
        "worker_concurrency": 4,
        # Else a worker that dies takes tasks along that it has not even begun.
        "worker_prefetch_multiplier": 1,
    },
    "core": {
        "fernet_key": "",
        "load_examples": False,
        "parallelism": 8,
        "simple_auth_manager_all_admins": True,
    },
    "dag_processor": {
        "bundle_refresh_check_interval": 1,
        "min_file_process_interval": 3600,  # a file that has changed is parsed at once all the same
        "refresh_interval": 1,
    },
    "logging": {"colored_console_log": False},
    "scheduler": {
        "job_heartbeat_sec": 1,
        "orphaned_tasks_check_interval": 10,
        "scheduler_heartbeat_sec": 1,
        "scheduler_idle_sleep_time": 0.5,
        "task_instance_heartbeat_timeout": 30,
        "task_instance_heartbeat_timeout_detection_interval": 2,
        "trigger_timeout_check_interval": 1,
    },
    "triggerer": {"job_heartbeat_sec": 1, "triggerer_health_check_threshold": 10},
    "usage_data_collection": {"enabled": False},
}
"""Airflow's options that are the same for each stack, by section."""

SETTINGS_OF_AIRFLOW_2: dict[str, dict[str, object]] = {
    "api": {"auth_backends": "airflow.api.auth.backend.default"},
    "scheduler": {
        "dag_dir_list_interval": 1,
        "min_file_process_interval": 1,
        "parsing_pre_import_modules": False,  # the tests change what DAG files import
        "schedule_after_task_execution": False,  # SQLite locks no rows: two schedule one task, twice
        "scheduler_zombie_task_threshold": 30,
        "zombie_detection_interval": 2,
    },
    "webserver": {"web_server_host": "127.0.0.1", "workers": 1},
}
"""What is named otherwise in Airflow 2.11, or only there."""

SERVERS = ("api-server", "webserver")
"""The component that users and tests talk to, in Airflow 3 and 2.11."""

# Its webserver wants no login, as SimpleAuthManager of Airflow 3.
WEBSERVER_CONFIG = 'AUTH_ROLE_PUBLIC = "Admin"\n'


class AirflowStackError(AirflowApiError):
    """The stack, or something that was asked of it, did not come about; the message holds what is known."""


class AirflowStack(AirflowApi):
    """A running Airflow of its own on loopback ports, without login; a context manager.

    :param dags_folder: the DAG files.
    :param connections: connection id → its definition as JSON. Default: none.
    :param environment: added to the environment of every component, settings of Airflow among it.
    :param directory: where database, logs and settings go. Default: a temporary one, removed at the end.
    :param python: the interpreter that has Airflow. Default: this one.
    :param triggerers: how many. Default 1.
    :param database: an empty PostgreSQL database, as SQLAlchemy takes it. Default: SQLite.
    :param broker: a Redis database, for CeleryExecutor. Default: LocalExecutor.
    :param workers: with a broker, how many Celery workers. Default 1.
    """

    def __init__(
        self,
        *,
        dags_folder: Path,
        connections: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
        python: Path | None = None,
        triggerers: int = 1,
        database: str | None = None,
        broker: str | None = None,
        workers: int = 1,
    ) -> None:
        super().__init__("", airflow_version(str(python or sys.executable)))
        self.dags_folder = dags_folder
        self.directory = directory or Path()  # a fresh temporary one is made at start
        self.environment: dict[str, str] = {}
        self._own_directory = directory is None
        self._connections = dict(connections or {})
        self._extra = dict(environment or {})
        self._python = str(python or sys.executable)
        self._database = database
        self._broker = broker
        self._triggerers = _numbered("triggerer", triggerers)
        self._workers = _numbered("worker", workers if broker else 0)
        # Airflow 2.11 parses DAGs in its scheduler: with SQLite it has no processor of its own for that.
        servers = ("api-server", "dag-processor") if self.version >= (3, 0) else ("webserver",)
        self.components = (*servers, "scheduler", *self._triggerers, *self._workers)
        self._children: dict[str, Child] = {}

    # Life

    def __enter__(self) -> AirflowStack:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, timeout: float = 180) -> None:
        """Start every component and return once the API server reports all of them healthy."""
        if self._children:
            return
        if self._own_directory:
            self.directory = Path(tempfile.mkdtemp(prefix="airflow-stack-"))
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            port, *log_ports = free_ports(3)
            self.url, self._token = f"http://127.0.0.1:{port}", ""
            self.environment = self._environment(port, log_ports)
            self._create_database()
            for name in self.components:
                self._launch(name)
            self._until(self._healthy, timeout, "a healthy Airflow")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every component, and remove the directory if it is ours."""
        for child in self._children.values():
            child.hang_up()  # all at once: each takes its time
        for child in self._children.values():
            child.wait()
        self._children.clear()
        if self._own_directory and self.directory != Path():
            shutil.rmtree(self.directory, ignore_errors=True)

    def _environment(self, port: int, log_ports: list[int]) -> dict[str, str]:
        """All of the configuration; nothing of the caller's own Airflow leaks into it."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("AIRFLOW")}
        of_airflow_2 = SETTINGS_OF_AIRFLOW_2 if self.version < (3, 0) else {}
        for settings in (SETTINGS, of_airflow_2, self._settings(port, log_ports)):
            for section, options in settings.items():
                for option, value in options.items():
                    environment[f"AIRFLOW__{section}__{option}".upper()] = str(value)
        for connection, definition in self._connections.items():
            environment[f"AIRFLOW_CONN_{connection.upper()}"] = definition
        environment["AIRFLOW_HOME"] = str(self.directory.resolve())
        home = self.directory.resolve() / "home"
        home.mkdir(exist_ok=True)
        environment["HOME"] = str(home)  # jobs begin in login shells, whose profile may do anything
        environment["NO_PROXY"] = environment["no_proxy"] = "127.0.0.1,localhost," + environment.get(
            "NO_PROXY", ""
        )
        environment["PYTHONUNBUFFERED"] = "1"
        if self.version < (3, 0):  # it runs one task at a time with SQLite, as tasks write to the database
            environment["_AIRFLOW__SKIP_DATABASE_EXECUTOR_COMPATIBILITY_CHECK"] = "1"
        return environment | self._extra

    def _settings(self, port: int, log_ports: list[int]) -> dict[str, dict[str, object]]:
        """What is this stack's own of Airflow's options, by section."""
        home = self.directory.resolve()
        logging = {
            "base_log_folder": home / "logs",
            "dag_processor_child_process_log_directory": home / "logs" / "dag_processor",
            "worker_log_server_port": log_ports[0],
            "trigger_log_server_port": log_ports[1],
        }
        settings: dict[str, dict[str, object]] = {
            "api": {"base_url": self.url, "port": port, "secret_key": secrets.token_hex()},
            "api_auth": {"jwt_secret": secrets.token_hex()},
            "core": {
                "dags_folder": self.dags_folder.resolve(),
                "execution_api_server_url": f"{self.url}/execution/",
                "executor": "CeleryExecutor" if self._broker else "LocalExecutor",
            },
            "database": {"sql_alchemy_conn": self._database or f"sqlite:///{home / 'airflow.db'}"},
            "logging": logging,
        }
        if self.version < (3, 0):
            settings["webserver"] = {"secret_key": secrets.token_hex(), "web_server_port": port}
            settings["scheduler"] = {"child_process_log_directory": home / "logs" / "dag_processor"}
        if self._broker:
            settings["celery"] = {"broker_url": self._broker, "result_backend": f"db+{self._database}"}
        return settings

    def _create_database(self) -> None:
        """Copy the empty database that an earlier stack of this Airflow made: migrating takes seconds."""
        (self.directory / "airflow.cfg").touch()  # else every component writes one, all at the same time
        (self.directory / "webserver_config.py").write_text(WEBSERVER_CONFIG)
        if self._database:
            self._run(["-m", "airflow", "db", "migrate"])
            return
        database = self.directory / "airflow.db"
        if database.exists():
            return
        template = _cache() / f"airflow-{_full_version(self._python)}.db"
        if not template.exists():
            self._run(["-m", "airflow", "db", "migrate"])
            _number_triggers_once(database)
            template.parent.mkdir(parents=True, exist_ok=True)
            draft = template.with_suffix(f".{secrets.token_hex(8)}")
            shutil.copyfile(database, draft)
            draft.replace(template)
            return
        shutil.copyfile(template, database)

    def _run(self, arguments: list[str]) -> str:
        command = [self._python, *arguments]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=BUSY * 120
        )
        if done.returncode:
            raise AirflowStackError(
                f"{' '.join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}"
            )
        return done.stdout

    def _healthy(self) -> bool:
        for name in self._children:
            self._check_alive(name)
        try:
            return self.is_ready() and len(self._jobs("triggerer")) >= len(self._triggerers)
        except (AirflowApiError, OSError):
            return False

    def _check_alive(self, name: str) -> None:
        if not self._children[name].alive:
            raise AirflowStackError(f"{name} has ended:\n{self.log_tails([name])}")

    def _jobs(self, component: str) -> set[int]:
        """Airflow's ids of the live processes of a component's kind (the API server has none)."""
        kind = {"scheduler": "SchedulerJob", "dag-processor": "DagProcessorJob"}.get(
            component, "TriggererJob"
        )
        if self.version >= (3, 0):
            return self.live_jobs(kind)
        query = "SELECT id FROM job WHERE job_type = ? AND state = 'running' AND end_date IS NULL"
        with contextlib.closing(sqlite3.connect(self.directory / "airflow.db")) as connection:
            return {job for (job,) in connection.execute(query, [kind])}

    # Components

    def _launch(self, name: str) -> None:
        try:
            self._children[name] = Child(
                [self._python, "-m", "airflow", *self._arguments(name)],
                env=self.environment,
                cwd=self.directory,
                log=self.directory / f"{name}.log",
            )
        except OSError as error:
            raise AirflowStackError(str(error)) from error

    def _arguments(self, name: str) -> list[str]:
        if name in self._workers:
            names = ["--celery-hostname", f"{name}@%h", "--pid", str(self.directory / f"{name}.pid")]
            return ["celery", "worker", "--skip-serve-logs", *names]
        if name in self._triggerers:
            return ["triggerer", "--skip-serve-logs"]
        if name == "scheduler":
            return [name, "--skip-serve-logs"]
        return [name, "--workers", "1"] if name in SERVERS else [name]

    def pid(self, component: str) -> int:
        """The process id of the component itself, not of its launcher."""
        return self._children[component].pid

    def kill(self, component: str, signal_number: int = signal.SIGKILL) -> None:
        """Send a signal to a component's main process. When it ends, its children are killed.

        SIGKILL waits for that; SIGSTOP leaves the children running.
        """
        self._children[component].kill(signal_number)

    def restart(self, component: str, timeout: float = 60) -> None:
        """End a component in the orderly way, unless it has ended already, and start it again.

        Returns when the new one is at work. A triggerer takes 10 s to end: `kill` it first to save them.
        """
        child, before = self._children[component], set[int]()
        reports = component not in SERVERS and component not in self._workers
        if reports:
            before = self._jobs(component)
        if child.alive:
            child.kill(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=30)
        child.stop()
        self._launch(component)

        def at_work() -> bool:
            self._check_alive(component)
            try:
                if not reports:
                    return bool(self.execution_health())
                return bool(self._jobs(component) - before)
            except (AirflowApiError, OSError):
                return False

        self._until(at_work, timeout, f"a new {component}")

    def log_tails(self, components: Iterable[str] | None = None, lines: int = 25) -> str:
        """The last lines that each component wrote."""
        tails = []
        for name in components or self.components:
            with contextlib.suppress(FileNotFoundError):
                text = (self.directory / f"{name}.log").read_text(errors="replace")
                tails.append(f"--- {name} ---\n" + "\n".join(text.splitlines()[-lines:]))
        return "\n".join(tails)

    # DAG runs and tasks

    def trigger(self, dag_id: str, conf: Mapping[str, object] | None = None, timeout: float = 60) -> str:
        """Unpause the DAG and start a run, once its file as it is now has been parsed."""
        self._until(lambda: self._is_parsed(dag_id), timeout, f"DAG {dag_id}", self.dag_import_errors)
        run_id = self.start_run(dag_id, conf or {})
        # Airflow 3.0 replies before it commits, with a newer FastAPI.
        self._until(lambda: self.has_run(dag_id, run_id), timeout, f"DAG run {run_id} of {dag_id}")
        return run_id

    def _is_parsed(self, dag_id: str) -> bool:
        for name, error in self.dag_import_errors().items():
            with contextlib.suppress(OSError):
                if dag_id in (self.dags_folder / name).read_text(errors="replace"):
                    raise AirflowStackError(f"{name}, the file of DAG {dag_id}, cannot be imported:\n{error}")
        return self.is_parsed(dag_id)

    def wait_for_run(self, dag_id: str, run_id: str, timeout: float = 120) -> str:
        """Wait until the run has ended and return its state."""

        def ended() -> str | None:
            state = self.run_state(dag_id, run_id)
            return state if state in ("success", "failed") else None

        return self._until(
            ended, timeout, f"the end of {dag_id} {run_id}", lambda: self.task_states(dag_id, run_id)
        )

    def wait_for_task(
        self,
        dag_id: str,
        run_id: str,
        task_id: str,
        states: Iterable[str] = FINAL,
        timeout: float = 60,
        map_index: int = -1,
    ) -> str:
        """Wait until the task is in one of the states; return that. An error if its run ended without."""
        wanted, name = frozenset(states), task_id + (f"[{map_index}]" if map_index >= 0 else "")

        def reached() -> str | None:
            state = self.task_states(dag_id, run_id).get(name, "none")
            if state in FINAL - wanted and self.run_state(dag_id, run_id) in ("success", "failed"):
                raise AirflowStackError(
                    f"task {name} of {dag_id} {run_id} ended as {state}, not {sorted(wanted)}"
                )
            return state if state in wanted else None

        what = f"task {name} of {dag_id} {run_id} to be in {sorted(wanted)}"
        return self._until(reached, timeout, what, lambda: self.task_states(dag_id, run_id))

    def wait_for_deferral(
        self, dag_id: str, run_id: str, task_id: str, timeout: float = 60, map_index: int = -1
    ) -> None:
        """Wait until the task is deferred and the scheduler knows that its process has ended.

        Airflow fails a task that comes back earlier: the scheduler takes the report on the task's first
        process for one on its second.
        """
        self.wait_for_task(dag_id, run_id, task_id, ["deferred"], timeout, map_index)
        number = self.task_instance(dag_id, run_id, task_id, map_index)["try_number"]
        key = (
            f"Received executor event with state success for task instance TaskInstanceKey(dag_id={dag_id!r},"
            f" task_id={task_id!r}, run_id={run_id!r}, try_number={number}, map_index={map_index})"
        )
        log = self.directory / "scheduler.log"
        self._until(
            lambda: key in log.read_text(errors="replace"), timeout, f"the scheduler to hear of {task_id}"
        )

    def task_log(
        self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1
    ) -> str:
        """The log of one try as text, worker's and triggerer's parts merged by time; "" if there is none.

        From the files: of an unfinished task the API asks log servers, which are not started here.
        """
        folder = self.directory / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task_id}"
        if map_index >= 0:
            folder /= f"map_index={map_index}"
        files = [folder / f"attempt={try_number}.log", *folder.glob(f"attempt={try_number}.log.trigger.*")]
        texts = [file.read_text(errors="replace") for file in files if file.exists()]
        entries = [entry for text in texts for entry in _log_entries(text)]
        return "\n".join(text for _, text in sorted(entries, key=lambda entry: entry[0]))

    def _until(
        self, condition: Callable[[], T | None], timeout: float, what: str, state: Callable[[], object] = str
    ) -> T:
        """Poll until a condition holds; a time-out says what was waited for and what was logged.

        :param timeout: seconds that it may take on a quiet machine; it has ``BUSY`` times as long.
        """
        timeout *= BUSY
        deadline = time.monotonic() + timeout
        while not (result := condition()):
            if time.monotonic() > deadline:
                raise AirflowStackError(f"waited {timeout:g} s for {what}: {state()}\n{self.log_tails()}")
            time.sleep(0.1)
        return result


@functools.cache
def _full_version(python: str) -> str:
    """Return the version of the Airflow that an interpreter has, without importing it."""
    code = (
        "import importlib.metadata as m; names = 'apache-airflow-core', 'apache-airflow';"
        "print(next(d.version for n in names for d in m.distributions(name=n)))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise AirflowStackError(f"{python} has no Airflow:\n{done.stderr}")
    return done.stdout.strip()


def airflow_version(python: str) -> tuple[int, int]:
    """Return the major and the minor version of the Airflow that an interpreter has.

    :raises AirflowStackError: it has none.
    """
    major, minor = _full_version(python).split(".")[:2]
    return int(major), int(minor)


def _numbered(name: str, count: int) -> list[str]:
    return [name, *(f"{name}-{number}" for number in range(2, count + 1))][:count]


_TEXT_LINE = re.compile(r"\[(?P<time>\d{4}-[^\]]+)\] \{[^}]*\} (?P<level>[A-Z]+) - (?P<event>.*)", re.DOTALL)


def _log_entries(text: str) -> list[tuple[str, str]]:
    """The entries of a task log, each as the time to sort by and the text to show.

    They are lines of JSON as a rule. In Airflow 2.11 they are text, and may have further lines.
    """
    entries: list[tuple[str, str]] = []
    for line in text.splitlines():
        entry = _log_entry(line)
        if entry[0] or not entries:
            entries.append(entry)
        else:
            entries.append((entries[-1][0], entry[1]))
    return entries


def _log_entry(line: str) -> tuple[str, str]:
    if match := _TEXT_LINE.match(line):
        return match["time"], f"{match['time']} {match['level'].lower()} {match['event']}"
    try:
        entry = json.loads(line)
        timestamp, event = entry.pop("timestamp"), entry.pop("event")
    except (ValueError, KeyError, AttributeError):
        return "", line
    details = {key: entry[key] for key in ("reason", "error_detail", "exception") if entry.get(key)}
    return timestamp, f"{timestamp} {entry.get('level', '')} {event}" + (
        f" {json.dumps(details)}" if details else ""
    )


def _number_triggers_once(database: Path) -> None:
    """Let trigger ids count up for ever, as in a server database.

    SQLite gives the id of a deleted trigger to the next one. When a task is cleared and defers again at once,
    a triggerer can take the new trigger for the old, which runs on: no `on_kill`, no new trigger.
    """
    with contextlib.closing(sqlite3.connect(database)) as connection:
        schema = "SELECT sql FROM sqlite_master WHERE tbl_name = 'trigger' AND sql IS NOT NULL"
        table, *indexes = (sql for (sql,) in connection.execute(f"{schema} ORDER BY type = 'index'"))
        table = table.replace("id INTEGER NOT NULL", "id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL", 1)
        table = re.sub(r"CONSTRAINT trigger_pkey PRIMARY KEY \(id\),?", "", table)
        table = re.sub(r",\s*\)$", ")", table)  # it was the last of the table
        connection.executescript(";\n".join(["BEGIN", 'DROP TABLE "trigger"', table, *indexes, "COMMIT;"]))


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "airflow-stack"

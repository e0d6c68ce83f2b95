"""The production stack: Airflow on PostgreSQL with Celery over Redis, Jobmon on MariaDB; ``make test-stack``.

Two workers, two triggerers, and heartbeats, failover and log levels as in production: nothing is made quicker
than it would be there, but the time until Airflow notices a dead worker.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dev import services
from dev.airflow_stack import AirflowStack
from dev.jobmon_sandbox import JobmonSandbox
from dev.slurm import Slurm
from dev.submit_host import SubmitHost
from tests.end_to_end.conftest import EXAMPLE_DAGS, SECRETS

INTERVAL, BUFFER = 30.0, 3.1
WINDOW = INTERVAL * BUFFER  # seconds for which a heartbeat is good
FAILOVER = 30.0  # seconds after which a silent triggerer loses its triggers

DAGS = Path(__file__).with_name("dags")


@pytest.fixture(scope="session")
def jobmon() -> Iterator[JobmonSandbox]:
    """Jobmon on MariaDB, with its reaper at work."""
    with (
        services.mariadb_database() as database,
        JobmonSandbox(heartbeat_interval=INTERVAL, report_by_buffer=BUFFER, database_uri=database) as sandbox,
    ):
        sandbox.start_reaper(5)
        yield sandbox


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    with Slurm() as slurm:
        yield slurm


@pytest.fixture(scope="session")
def submit_host(jobmon: JobmonSandbox, slurm: Slurm) -> Iterator[SubmitHost]:
    """OpenSSH's own server, whose sessions find this Jobmon and a Slurm."""
    environment = {**jobmon.environment(), **slurm.environment}
    with SubmitHost(environment, server=services.sshd_server) as host:
        yield host


@pytest.fixture(scope="session")
def production(
    jobmon: JobmonSandbox, submit_host: SubmitHost, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AirflowStack]:
    """Airflow with CeleryExecutor: two workers, two triggerers."""
    dags = tmp_path_factory.mktemp("dags")
    examples = (EXAMPLE_DAGS / f"{name}.py" for name in ("jobmon_resume_many", "jobmon_on_slurm"))
    for file in (*examples, *DAGS.glob("*.py")):
        (dags / file.name).write_text(file.read_text())
    host, port = jobmon.url.removeprefix("http://").split(":")
    server = {"conn_type": "jobmon", "host": host, "port": int(port)}
    credentials = {
        "jobmon_default": {"login": "airflow", "password": SECRETS["password"]},
        "jobmon_newer": {"password": SECRETS["token"]},
    }
    beats = {"workflow_run_heartbeat_interval": INTERVAL, "heartbeat_report_by_buffer": BUFFER}
    extras: dict[str, dict[str, object]] = {
        "jobmon_default": {**beats, "route_prefix": "/api/v2", "headers": {"X-Gateway": SECRETS["header"]}},
        "jobmon_newer": {**beats, "route_prefix": "/api/v3"},
    }
    connections = {
        name: json.dumps({**server, **credentials[name], "extra": extras[name]}) for name in credentials
    }
    connections["submit_host"] = json.dumps(submit_host.connection)
    settings = {
        "AIRFLOW__CORE__DEFAULT_TASK_RETRIES": "3",
        "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "5",
        "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "64",
        "AIRFLOW__CORE__MAX_ACTIVE_RUNS_PER_DAG": "128",
        "AIRFLOW__CORE__PARALLELISM": "64",
        "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "60",
        "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "5",
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": f"{FAILOVER:g}",
        "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "5",
    }
    with (
        services.postgresql_database() as database,
        services.redis_database() as broker,
        AirflowStack(
            dags_folder=dags,
            connections=connections,
            environment=settings,
            database=database,
            broker=broker,
            workers=2,
            triggerers=2,
        ) as stack,
    ):
        yield stack


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print a measured figure, also where a test passes."""

    def say(line: str) -> None:
        with capsys.disabled():
            print(f"\n    {line}", flush=True)

    return say


@contextlib.contextmanager
def in_background(step: Callable[[], None], pause: float = 0.5) -> Iterator[None]:
    """Do something again and again in a thread; what it raises is raised at the end."""
    ended, problems = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            while not ended.wait(pause):
                step()
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    for problem in problems:
        raise problem

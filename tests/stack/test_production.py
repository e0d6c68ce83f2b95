"""Fifty workflows through the production stack, while a worker and a triggerer die."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Callable

import psycopg2
import pytest
import redis

from dev.airflow_stack import AirflowStack
from dev.jobmon_sandbox import JobmonSandbox, wait_until
from dev.launcher import Child
from tests.end_to_end.conftest import SECRETS
from tests.end_to_end.dag_runs import assert_ended, command_lines, provider_beats
from tests.stack.conftest import in_background

DAG, COUNT = "jobmon_resume_many", 50
EXECUTED = 10  # by Jobmon's own client, which takes ten seconds of CPU time for each; the others are moved
EXECUTORS = 3  # at a time

pytestmark = pytest.mark.timeout(1200)


def test_fifty_workflows_are_done_though_a_worker_and_a_triggerer_die(
    jobmon: JobmonSandbox, production: AirflowStack, report: Callable[[str], None]
) -> None:
    workflows = [jobmon.make_workflow_in("E") for _ in range(COUNT)]
    ours = {workflow.workflow_id for workflow in workflows}
    really = sorted(ours)[:EXECUTED]
    for workflow in workflows:
        workflow.release()
    executing: dict[int, Child] = {}
    exposed: set[str] = set()

    def execute() -> None:
        exposed.update(secrets_in_sight(production))
        for run, workflow in jobmon.query("SELECT id, workflow_id FROM workflow_run WHERE status = 'L'"):
            # An executor learns of a run by the task's XCom; a run that is beaten for has one.
            if workflow not in ours or run in executing or not provider_beats(jobmon, run):
                continue
            if workflow not in really:
                for status in "BIORD":
                    jobmon.put(f"/api/v2/workflow_run/{run}/update_status", {"status": status})
            elif sum(child.alive for child in executing.values()) < EXECUTORS:
                executing[run] = jobmon.execute(workflow, run, "sequential")

    def count(state: str) -> int:
        states = production.task_states(DAG, dag_run)
        return sum(task.startswith("resume_and_run.run[") and s == state for task, s in states.items())

    started = time.monotonic()
    dag_run = production.trigger(DAG, {"workflow_ids": sorted(ours)})
    with in_background(execute):
        wait_until(lambda: count("deferred") >= 5, 180, "runs to be deferred")
        production.kill("worker-2")
        wait_until(lambda: count("deferred") + count("success") >= 25, 300, "half of the runs")
        production.kill("triggerer-2")
        wait_until(lambda: production.run_state(DAG, dag_run) in ("success", "failed"), 600, "the end")
    assert_ended(production, DAG, dag_run, "success")
    report(
        f"{COUNT} workflows done in {time.monotonic() - started:.0f} s, with one worker and one triggerer"
        " killed on the way"
    )
    assert len(executing) == EXECUTED
    assert {jobmon.workflow_status(workflow) for workflow in ours} == {"D"}
    for workflow in workflows:
        first, *lost, last = jobmon.runs(workflow.workflow_id)
        assert first == (workflow.workflow_run_id, "E")
        # A: a worker died before anybody knew of the run. G: Jobmon refused another until that was reaped.
        assert {status for _, status in lost} <= {"A", "G"}
        assert last[1] == "D"
    states = collections.Counter(production.task_states(DAG, dag_run).values())
    assert states == {"success": 2 * COUNT + 1}
    assert not exposed
    assert not secrets_written(production)
    for component in ("worker-2", "triggerer-2"):
        production.restart(component)


def secrets_in_sight(airflow: AirflowStack) -> set[str]:
    """The secrets that stand in the broker, or in the arguments of a process."""
    texts: list[bytes | str] = [line.encode() for line in command_lines()]
    with contextlib.closing(
        redis.Redis.from_url(airflow.environment["AIRFLOW__CELERY__BROKER_URL"])
    ) as broker:
        for key in broker.scan_iter():
            kind = broker.type(key)
            if kind == b"list":
                texts += broker.lrange(key, 0, -1)
            elif kind == b"hash":
                texts += broker.hvals(key)
    return {secret for secret in SECRETS.values() if any(secret.encode() in text for text in texts)}


def secrets_written(airflow: AirflowStack) -> list[str]:
    """Where a secret stands in what Airflow has written: its database, its logs and all other files."""
    found = [
        f"{secret} in {file}"
        for file in airflow.directory.rglob("*")
        if file.is_file()
        for secret in SECRETS.values()
        if secret.encode() in file.read_bytes()
    ]
    address = airflow.environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].replace("+psycopg2", "")
    with contextlib.closing(psycopg2.connect(address)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
        tables = [table for (table,) in cursor.fetchall()]
        assert "trigger" in tables
        for table in tables:
            for secret in SECRETS.values():
                cursor.execute(f'SELECT count(*) FROM "{table}" t WHERE t::text LIKE %s', [f"%{secret}%"])
                found += [f"{secret} in {table}"] * cursor.fetchall()[0][0]
    return found

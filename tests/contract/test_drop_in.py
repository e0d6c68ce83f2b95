"""Jobmon's own code works with this project's module in place of Jobmon's.

These run in Jobmon's own environment, which has no Airflow.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from airflow_jobmon_provider.client.protocol import CLIENT_VERSION
from dev.jobmon_sandbox import JobmonSandbox

PROJECT = Path(__file__).resolve().parents[2]

REPLACE_JOBMONS_MODULE = """
import sys
import jobmon.client, jobmon.core.exceptions
from airflow_jobmon_provider.client import exceptions, workflow_run
sys.modules["jobmon.client.workflow_run"] = jobmon.client.workflow_run = workflow_run
jobmon.core.exceptions.WorkflowNotResumable = exceptions.WorkflowNotResumable
"""


def test_jobmons_resume_command_completes_a_failed_workflow(sandbox: JobmonSandbox) -> None:
    workflow = sandbox.make_workflow("fails")
    workflow.release()
    done = sandbox.resume_command(
        workflow.workflow_id, prelude=REPLACE_JOBMONS_MODULE, env={"PYTHONPATH": str(PROJECT)}
    )
    assert done.returncode == 0, done.stderr
    assert "has successfully resumed to completion" in done.stdout
    assert sandbox.workflow_status(workflow.workflow_id) == "D"
    (_, first), (run, second) = sandbox.runs(workflow.workflow_id)
    assert (first, second) == ("E", "D")
    created_by = sandbox.query("SELECT jobmon_version FROM workflow_run WHERE id = ?", run)
    assert created_by == [(CLIENT_VERSION,)]


def test_jobmons_resume_command_reports_a_workflow_that_stays_busy(sandbox: JobmonSandbox) -> None:
    workflow = sandbox.make_workflow_in("L")
    done = sandbox.resume_command(
        workflow.workflow_id,
        arguments=["--timeout", "2"],
        prelude=REPLACE_JOBMONS_MODULE,
        env={"PYTHONPATH": str(PROJECT)},
    )
    assert done.returncode != 0
    # 2 s, and however long the last of the requests took.
    assert re.search(
        rf"workflow {workflow.workflow_id} did not become resumable within [\d.]+ s", done.stderr
    )
    assert [status for _, status in sandbox.runs(workflow.workflow_id)] == ["L"]


def in_jobmons_environment(sandbox: JobmonSandbox, program: str) -> object:
    done = subprocess.run(
        [str(sandbox.python), "-c", program],
        env={**sandbox.environment(), "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_client_imports_and_works_without_airflow(sandbox: JobmonSandbox) -> None:
    workflow = sandbox.make_workflow_in("E")
    program = f"""
import importlib.util, json, sys
from airflow_jobmon_provider.client.workflow_run import WorkflowRunFactory
factory = WorkflowRunFactory({workflow.workflow_id})
factory.set_workflow_resume()
factory.reset_task_statuses()
run = factory.create_workflow_run()
print(json.dumps([importlib.util.find_spec("airflow") is None, run.status, run.log_heartbeat()]))
"""
    assert in_jobmons_environment(sandbox, program) == [True, "L", "L"]


def test_jobmons_own_requester_serves_this_client(sandbox: JobmonSandbox) -> None:
    workflow = sandbox.make_workflow_in("E")
    program = f"""
import json
from jobmon.core.requester import Requester
from airflow_jobmon_provider.client.workflow_run import WorkflowRunFactory
requester = Requester.from_defaults()
requester.retries_attempts = 1
factory = WorkflowRunFactory({workflow.workflow_id}, requester)
factory.set_workflow_resume()
run = factory.create_workflow_run()
said = []
for what in (
    lambda: factory.create_workflow_run(),
    lambda: WorkflowRunFactory(987654321, requester).wait_for_workflow_resume(0),
    lambda: factory.force_cleanup_kill_self(),
):
    try:
        what()
    except Exception as error:
        said.append(type(error).__name__)
requester.base_url = "http://127.0.0.1:9"
try:
    run.peek_status()
except Exception as error:
    said.append(type(error).__name__)
print(json.dumps([run.status, *said]))
"""
    assert in_jobmons_environment(sandbox, program) == [
        "L",
        "WorkflowBusy",
        "WorkflowNotFound",
        "RouteNotSupported",
        "InvalidResponse",
    ]

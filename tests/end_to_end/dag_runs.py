"""What the tests with a real Airflow ask of DAG runs, of their logs and of the machine."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from dev.airflow_stack import AirflowStack
from dev.jobmon_sandbox import JobmonSandbox, SandboxWorkflow, SeenRequest, wait_until

RESUME_AND_CREATE = "jobmon_resume_and_create"


def provider_beats(sandbox: JobmonSandbox, run: int) -> list[SeenRequest]:
    """Everything that the provider sent to a run's heartbeat route."""
    return [request for request in sandbox.requests(f"/workflow_run/{run}/log_heartbeat") if request.is_ours]


def new_run(sandbox: JobmonSandbox, workflow: SandboxWorkflow) -> int:
    """Wait for the workflow's next run and return its id."""

    def newest() -> int | None:
        run, _ = sandbox.runs(workflow.workflow_id)[-1]
        return run if run != workflow.workflow_run_id else None

    return wait_until(newest, 60, "a new workflow run") or 0


def assert_nothing_claimed_of_an_executors_run(beats: list[SeenRequest]) -> None:
    """LINKING is said while a reply has said so, and else nothing that could claim the run."""
    expected = beats[0].body["status"] if beats else "G"
    assert expected in ("L", "G")  # a run that was just created is LINKING; a trigger reads it first
    for beat in beats:
        assert beat.body["status"] == expected
        expected = "L" if beat.reply["status"] == "L" else "G"


def errors(log: str) -> list[str]:
    """The entries of a task log that tell of an error, each with all its lines.

    Airflow 2.11 reports what a task raised twice; of these the first has the stack trace, as on Airflow 3.
    """
    entries = re.split(r"\n(?=\d{4}-\d\d-\d\dT)", log)
    found = [entry for entry in entries if re.match(r"\S+ (error|critical) ", entry)]
    return [entry for entry in found if " error Failed to execute job " not in entry]


def assert_ended(airflow: AirflowStack, dag: str, dag_run: str, state: str) -> None:
    """Wait for a DAG run's end; another end than the expected one shows what its tasks logged."""
    if airflow.wait_for_run(dag, dag_run) != state:
        logs = []
        for name, task_state in airflow.task_states(dag, dag_run).items():
            task, _, index = name.rstrip("]").partition("[")
            for number in itertools.count(1):
                log = airflow.task_log(dag, dag_run, task, number, map_index=int(index or -1))
                if not log:
                    break
                logs.append(f"--- {name}, try {number}: {task_state}\n{log}")
        pytest.fail(f"{dag} did not end {state}\n" + "\n".join(logs))


def command_lines() -> list[str]:
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # it has just ended
    return lines

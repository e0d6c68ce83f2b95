"""A worker that is killed after each step of resuming a workflow and creating its next run."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from dev.airflow_stack import AirflowStack
from dev.jobmon_sandbox import JobmonSandbox, SandboxWorkflow, wait_until
from tests.end_to_end.dag_runs import assert_ended, provider_beats
from tests.stack.conftest import in_background

DAG = "dies_anywhere"
CREATE = "POST /api/v2/workflow_run"
PHASES = [f"{task}.{phase}" for task in ("resume", "run") for phase in ("execute", "execute_complete")]

pytestmark = pytest.mark.timeout(1200)


@dataclass(frozen=True)
class Step:
    """An exchange of a worker with Jobmon or Airflow; number 0 is the moment before the first of a phase."""

    phase: str
    number: int
    name: str


def test_one_run_and_a_finished_workflow_wherever_a_worker_dies(
    jobmon: JobmonSandbox, production: AirflowStack, report: Callable[[str], None]
) -> None:
    workflows: dict[int, SandboxWorkflow] = {}

    def run_the_runs() -> None:
        """Do what executors do: end a run that is told to stop, and take one that Airflow waits for."""
        for run, workflow, status in jobmon.query(
            "SELECT id, workflow_id, status FROM workflow_run WHERE status IN ('C', 'L')"
        ):
            if workflow in workflows and (status == "C" or provider_beats(jobmon, run)):
                for code in "T" if status == "C" else "BIORD":
                    jobmon.put(f"/api/v2/workflow_run/{run}/update_status", {"status": code})

    def start(step: Step | None = None, whom: str = "") -> tuple[SandboxWorkflow, str]:
        workflow = jobmon.make_workflow_in("R")
        workflows[workflow.workflow_id] = workflow
        die = [step.phase, step.number, whom] if step else None
        return workflow, production.trigger(DAG, {"workflow_id": workflow.workflow_id, "die": die})

    with in_background(run_the_runs):
        _, dag_run = start()
        assert_ended(production, DAG, dag_run, "success")
        steps = [Step(phase, 0, "start") for phase in PHASES]
        for task in ("resume", "run"):
            log = production.task_log(DAG, dag_run, task)
            steps += [Step(p, int(n), name) for p, n, name in re.findall(r"STEP (\S+) (\d+) (.*)", log)]
        assert {step.phase for step in steps if step.number} == set(PHASES)
        deaths = [(step, whom) for whom in ("task", "worker") for step in steps]
        begun = {death: start(*death) for death in deaths}
        for _, dag_run in begun.values():
            wait_until(
                lambda run=dag_run: (  # type: ignore[misc]
                    production.run_state(DAG, run) in ("success", "failed")
                ),
                900,
                DAG,
            )
    tries = 0
    for (step, _), (workflow, dag_run) in begun.items():
        assert_ended(production, DAG, dag_run, "success")
        first, *lost, last = jobmon.runs(workflow.workflow_id)
        assert first == (workflow.workflow_run_id, "T")
        assert last[1] == "D"
        # Only where the worker died with the reply in its hand does nobody know of the run: it is reaped.
        # Until then Jobmon refuses another, and keeps a row for each refusal, which stays REGISTERED.
        unknown = step.phase == "run.execute" and step.name == CREATE
        assert [status for _, status in lost if status != "G"] == ["A"] * unknown, step
        assert jobmon.workflow_status(workflow.workflow_id) == "D"
        tries += sum(production.task_instance(DAG, dag_run, task)["try_number"] for task in ("resume", "run"))
    # Each has died, and once; what happens after a task's last words makes no retry.
    last_words = {step.phase: step.number for step in steps if step.name in ("DeferTask", "SucceedTask")}
    assert tries == sum(2 + (step.number < last_words[step.phase]) for step, _ in deaths)
    report(
        f"a worker killed after each of {len(steps)} steps, alone and with its supervisor: {len(deaths)} runs"
        " DONE, 0 left behind"
    )

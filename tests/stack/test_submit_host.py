"""The example that executes on a cluster, by the production stack, OpenSSH's own server and a real Slurm."""

from __future__ import annotations

import pytest

from dev.airflow_stack import AirflowStack
from dev.jobmon_sandbox import JobmonSandbox
from tests.end_to_end.dag_runs import assert_ended, new_run

ON_SLURM = "jobmon_on_slurm"
pytestmark = pytest.mark.timeout(600)


def test_a_run_is_executed_by_a_job_of_slurm(jobmon: JobmonSandbox, production: AirflowStack) -> None:
    workflow = jobmon.make_workflow_in("E", tasks=2)
    workflow.release()
    conf = {
        "workflow_id": workflow.workflow_id,
        "cluster_name": "multiprocess",
        "partition": "long",
        "python": str(jobmon.python),
    }
    dag_run = production.trigger(ON_SLURM, conf)
    run = new_run(jobmon, workflow)
    assert_ended(production, ON_SLURM, dag_run, "success")
    assert production.task_states(ON_SLURM, dag_run) == {"resume": "success", "run": "success"}
    assert jobmon.runs(workflow.workflow_id) == [(workflow.workflow_run_id, "E"), (run, "D")]
    log = production.task_log(ON_SLURM, dag_run, "run")
    for line in (f"executor: executing workflow run {run}", "DONE (D): 2 of 2 tasks done"):
        assert log.count(line) == 1

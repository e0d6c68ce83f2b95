"""Resume a Jobmon workflow and execute its next run as a Slurm job, which a submit host is asked to submit.

Needs an SSH connection ``submit_host`` and ``airflow-provider-jobmon[ssh]``; docs/cluster.md says more.
Trigger it with ``{"workflow_id": 123}``.
"""

from __future__ import annotations

import pendulum
from airflow.providers.common.compat.sdk import DAG, Param

from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator, ResumeWorkflowOperator

start = pendulum.datetime(2026, 1, 1, tz="UTC")
params = {
    "workflow_id": Param(type="integer", minimum=1, description="Id of the Jobmon workflow"),
    "cluster_name": Param("slurm", type="string", description="Where its tasks run, by Jobmon's name"),
    "partition": Param("long", type="string", description="Slurm's partition for the executor"),
    "python": Param("/opt/jobmon/bin/python", type="string", description="The Python with Jobmon's client"),
}
with DAG("jobmon_on_slurm", start_date=start, schedule=None, params=params, tags=["jobmon"]) as dag:
    resume = ResumeWorkflowOperator(task_id="resume", workflow_id="{{ params.workflow_id }}", deferrable=True)
    CreateWorkflowRunOperator(
        task_id="run",
        workflow_id=resume.output,
        cluster_name="{{ params.cluster_name }}",
        jobmon_python="{{ params.python }}",
        ssh_conn_id="submit_host",
        launcher="slurm",
        launcher_options={"partition": "{{ params.partition }}", "time": "7-0"},
        deferrable=True,
    )

"""Resume a Jobmon workflow and execute its next run on this worker, to the end.

Trigger it with the workflow's id and Jobmon's name of the cluster: ``{"workflow_id": 123, "cluster_name":
"slurm"}``. The worker must be able to submit to that cluster, and needs a Python with Jobmon's client: the
connection's ``jobmon_python``, or that of the ``jobmon`` command on PATH.
"""

from __future__ import annotations

import datetime

import pendulum
from airflow.providers.common.compat.sdk import DAG, Param

from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator, ResumeWorkflowOperator

with DAG(
    dag_id="jobmon_resume_and_execute",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    params={
        "workflow_id": Param(type="integer", minimum=1, description="Id of the Jobmon workflow"),
        "cluster_name": Param(
            "slurm", type="string", minLength=1, description="Jobmon's name of the cluster"
        ),
    },
    tags=["jobmon"],
    doc_md=__doc__,
) as dag:
    resume = ResumeWorkflowOperator(
        task_id="resume",
        workflow_id="{{ params.workflow_id }}",
        deferrable=True,
    )
    # If the worker dies, the executor goes on, and the retry watches the same run to its end.
    run = CreateWorkflowRunOperator(
        task_id="run",
        workflow_id=resume.output,
        cluster_name="{{ params.cluster_name }}",
        retries=2,
        retry_delay=datetime.timedelta(seconds=30),
    )

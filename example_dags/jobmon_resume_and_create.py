"""Resume a Jobmon workflow, create its next run, and wait for that run without holding a worker.

Trigger it with the workflow's id: ``{"workflow_id": 123}``. An executor for the run must be started
elsewhere, within an hour; until then Airflow keeps the run alive.
"""

from __future__ import annotations

import pendulum
from airflow.providers.common.compat.sdk import DAG, Param

from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator, ResumeWorkflowOperator

with DAG(
    dag_id="jobmon_resume_and_create",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    params={"workflow_id": Param(type="integer", minimum=1, description="Id of the Jobmon workflow")},
    tags=["jobmon"],
    doc_md=__doc__,
) as dag:
    resume = ResumeWorkflowOperator(
        task_id="resume",
        workflow_id="{{ params.workflow_id }}",
        deferrable=True,
    )
    run = CreateWorkflowRunOperator(
        task_id="run",
        workflow_id=resume.output,
        deferrable=True,
    )

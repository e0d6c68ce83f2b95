"""Resume many Jobmon workflows at once and create the next run of each, as dynamically mapped tasks.

Trigger it with their ids: ``{"workflow_ids": [123, 124, 125]}``. A workflow that is DONE already passes, and
the others go on. It is not skipped: where one of several mapped tasks is skipped, Airflow skips what comes
after all of them. In Airflow's UI, each mapped task is named after its workflow.
"""

from __future__ import annotations

import pendulum
from airflow.providers.common.compat.sdk import DAG, Param, task, task_group

from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator, ResumeWorkflowOperator

with DAG(
    dag_id="jobmon_resume_many",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    params={
        "workflow_ids": Param(
            type="array", items={"type": "integer", "minimum": 1}, description="Ids of the Jobmon workflows"
        )
    },
    tags=["jobmon"],
    doc_md=__doc__,
) as dag:

    @task
    def workflow_ids(params: dict[str, list[int]] | None = None) -> list[int]:
        return (params or {})["workflow_ids"]

    @task_group
    def resume_and_run(workflow_id: int) -> None:
        resume = ResumeWorkflowOperator(
            task_id="resume",
            workflow_id=workflow_id,
            if_done="pass",
            deferrable=True,
            map_index_template="workflow {{ task.workflow_id }}",
        )
        CreateWorkflowRunOperator(
            task_id="run",
            workflow_id=resume.output,
            deferrable=True,
            map_index_template="workflow {{ task.workflow_id }}",
        )

    resume_and_run.expand(workflow_id=workflow_ids())

"""Wait until nothing runs a Jobmon workflow any more, and only then do something about it.

Trigger it with the workflow's id: ``{"workflow_id": 123}``. The sensor signals nothing: a run that is alive
is left in peace, and waited for in the triggerer for up to a day.
"""

from __future__ import annotations

import pendulum
from airflow.providers.common.compat.sdk import DAG, Param, task

from airflow_jobmon_provider.sensors.jobmon import WorkflowResumableSensor

with DAG(
    dag_id="jobmon_gate",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    params={"workflow_id": Param(type="integer", minimum=1, description="Id of the Jobmon workflow")},
    tags=["jobmon"],
    doc_md=__doc__,
) as dag:
    gate = WorkflowResumableSensor(
        task_id="gate",
        workflow_id="{{ params.workflow_id }}",
        timeout=24 * 60 * 60,
        deferrable=True,
    )

    @task.bash(env={"WORKFLOW_ID": "{{ params.workflow_id }}"}, append_env=True)
    def archive() -> str:
        return 'echo "Workflow $WORKFLOW_ID is at rest; archive its logs here."'

    gate >> archive()

"""Create the runs of many workflows and wait for each; no task is tried again, so each ends once."""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator
from airflow_jobmon_provider.sensors.jobmon import WorkflowResumableSensor

with DAG(dag_id="many_runs", schedule=None, default_args={"retries": 0}):

    @task
    def workflow_ids(kind: str, dag_run: Any = None) -> list[int]:
        ids: list[int] = dag_run.conf.get(kind, [])
        return ids

    # Heartbeats as by default; and such as outlive an outage of ten minutes.
    for kind, buffer in (("run", None), ("long_run", 20)):
        CreateWorkflowRunOperator.partial(
            task_id=kind, deferrable=True, heartbeat_report_by_buffer=buffer
        ).expand(workflow_id=workflow_ids.override(task_id=f"of_{kind}")(kind))

with DAG(dag_id="gates", schedule=None, default_args={"retries": 0}):
    for task_id, cleans in (("gate", False), ("cleaning_gate", True)):
        WorkflowResumableSensor(
            task_id=task_id,
            workflow_id="{{ dag_run.conf['workflow_id'] }}",
            jobmon_conn_id="jobmon_newer",
            force_cleanup=cleans,
            deferrable=True,
        )

"""Resume a Jobmon workflow and execute its next run on a submit host, over SSH, without holding a worker.

For HPC sites whose Airflow workers cannot submit jobs. Needs the extra ``airflow-provider-jobmon[ssh]``, an
SSH connection ``jobmon_submit_host``, and on that host a Python with Jobmon's client, configured for the same
server, and a copy of ``airflow_jobmon_provider/execution/executor.py``. Where the extra is not installed,
this file has no DAG.

While the remote job starts, the sensor beside it keeps the run alive; once the executor has taken the run,
the sensor only watches it. If the remote job fails before that, for example because the host is not reached,
the run is aborted, which ends the sensor, too.

Trigger it with ``{"workflow_id": 123, "cluster_name": "slurm"}``.
"""

from __future__ import annotations

import datetime
import logging
import shlex

import pendulum
from airflow.providers.common.compat.sdk import DAG, Param, task

from airflow_jobmon_provider.hooks.jobmon import JobmonHook
from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator, ResumeWorkflowOperator
from airflow_jobmon_provider.sensors.jobmon import WorkflowRunSensor

# Both become part of a command line, which a shell on the submit host reads: hence also `quote` below.
NAME, PATH = r"^[\w.-]+$", r"^[\w./-]+$"


def define() -> DAG:
    from airflow.providers.ssh.operators.ssh_remote_job import SSHRemoteJobOperator

    with DAG(
        dag_id="jobmon_execute_over_ssh",
        schedule=None,
        start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
        catchup=False,
        params={
            "workflow_id": Param(type="integer", minimum=1, description="Id of the Jobmon workflow"),
            "cluster_name": Param(
                "slurm", type="string", pattern=NAME, description="Jobmon's name of the cluster"
            ),
            "python": Param(
                "/opt/jobmon/bin/python",
                type="string",
                pattern=PATH,
                description="The Python with Jobmon's client, on the submit host",
            ),
            "executor": Param(
                "/opt/jobmon/executor.py",
                type="string",
                pattern=PATH,
                description="The copy of executor.py, on the submit host",
            ),
        },
        user_defined_filters={"quote": lambda value: shlex.quote(str(value))},
        tags=["jobmon"],
        doc_md=__doc__,
    ) as dag:
        resume = ResumeWorkflowOperator(
            task_id="resume",
            workflow_id="{{ params.workflow_id }}",
            deferrable=True,
        )
        create = CreateWorkflowRunOperator(
            task_id="create",
            workflow_id=resume.output,
            wait_for_completion=False,
        )
        execute = SSHRemoteJobOperator(
            task_id="execute",
            ssh_conn_id="jobmon_submit_host",
            command=(
                "{{ params.python | quote }} {{ params.executor | quote }}"
                " --cluster-name={{ params.cluster_name | quote }}"
                " --workflow-id={{ params.workflow_id | quote }}"
                " --workflow-run-id={{ ti.xcom_pull(task_ids='create') | quote }}"
            ),
            remote_os="posix",
            cleanup="on_success",
        )
        watch = WorkflowRunSensor(
            task_id="watch",
            workflow_run_id=create.output,
            keep_alive="until_bound",
            timeout=datetime.timedelta(days=7).total_seconds(),
            deferrable=True,
        )

        @task(trigger_rule="one_failed")
        def abort(workflow_run_id: int) -> None:
            JobmonHook().abort_workflow_run(workflow_run_id)

        create >> [execute, watch]
        execute >> abort(create.output)
    return dag


try:
    dag = define()
except ImportError as missing:
    logging.getLogger(__name__).warning("no DAG here, install airflow-provider-jobmon[ssh]: %s", missing)

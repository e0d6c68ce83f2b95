"""One real Jobmon and one real Airflow for all end-to-end tests; starting them takes half a minute."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev.airflow_stack import AirflowStack
from dev.jobmon_sandbox import JobmonSandbox
from dev.submit_host import SubmitHost

SECRETS = {"password": "pass-5e4f21c0", "token": "token-19c2d4e8", "header": "head-77aa03b9"}
EXAMPLE_DAGS = Path(__file__).resolve().parents[2] / "example_dags"

# The example DAGs take nothing but integers, so what a text does needs a DAG of its own.
ANY_ID_DAG = """
from airflow.providers.common.compat.sdk import DAG

from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator, ResumeWorkflowOperator

with DAG(dag_id="any_id", schedule=None):
    ResumeWorkflowOperator(task_id="resume", workflow_id="{{ dag_run.conf['workflow_id'] }}")
    CreateWorkflowRunOperator(task_id="run", workflow_id="{{ dag_run.conf['workflow_id'] }}")
"""

# With all that a gateway may want, which Jobmon's own client could not send.
GATEWAY_DAG = """
from airflow.providers.common.compat.sdk import DAG

from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator

with DAG(dag_id="gateway", schedule=None):
    CreateWorkflowRunOperator(
        task_id="run",
        workflow_id="{{ dag_run.conf['workflow_id'] }}",
        jobmon_conn_id="jobmon_gateway",
        deferrable=True,
    )
"""

# A worker that is killed at the two moments that matter, once; and many runs at once.
DYING_DAGS = """
import os, signal, tempfile
from datetime import timedelta
from pathlib import Path

from airflow.providers.common.compat.sdk import DAG, task

from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator


def die_once(context):
    if context["ti"].try_number == 1:
        os.kill(os.getpid(), signal.SIGKILL)


class DiesBeforeDeferring(CreateWorkflowRunOperator):
    def defer(self, **kwargs):
        die_once(self.context)
        super().defer(**kwargs)

    def execute(self, context):
        self.context = context
        return super().execute(context)


class DiesAfterDeferring(CreateWorkflowRunOperator):
    def execute_complete(self, context, event):
        die_once(context)
        return super().execute_complete(context, event)


options = {
    "task_id": "run", "workflow_id": "{{ dag_run.conf['workflow_id'] }}", "deferrable": True,
    "retries": 1, "retry_delay": timedelta(seconds=1),
    # A window of 90 s, as with Jobmon's defaults: until Airflow has noticed and tried again, nobody beats.
    "workflow_run_heartbeat_interval": 2, "heartbeat_report_by_buffer": 45,
}
with DAG(dag_id="dies_before_deferring", schedule=None) as before:
    DiesBeforeDeferring(**options)
with DAG(dag_id="dies_after_deferring", schedule=None) as after:
    DiesAfterDeferring(**options)
with DAG(dag_id="execute_with_retry", schedule=None) as executing:
    CreateWorkflowRunOperator(**{**options, "deferrable": False}, cluster_name="multiprocess")
    task(task_id="another")(lambda: None)()
"""

TIMED_OUT_DAG = """
from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG

from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator

with DAG(dag_id="timed_out", schedule=None):
    CreateWorkflowRunOperator(
        task_id="run",
        workflow_id="{{ dag_run.conf['workflow_id'] }}",
        deferrable=True,
        execution_timeout=timedelta(seconds=15),
    )
"""

ON_SUBMIT_HOST_DAG = """
from airflow.providers.common.compat.sdk import DAG

from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator

with DAG(dag_id="on_submit_host", schedule=None):
    CreateWorkflowRunOperator(
        task_id="run",
        workflow_id="{{ dag_run.conf['workflow_id'] }}",
        cluster_name="{{ dag_run.conf['cluster_name'] }}",
        ssh_conn_id="submit_host",
        setup_commands=["echo {{ dag_run.conf['greeting'] }}"],
        remote_dir="{{ dag_run.conf['folder'] }}",
        deferrable=True,
    )
"""

BY_NAME_DAG = """
from airflow.providers.common.compat.sdk import DAG

from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator, ResumeWorkflowOperator

with DAG(dag_id="by_name", schedule=None):
    asked = {"workflow_name": "{{ dag_run.conf['name'] }}", "tool_name": "sandbox"}
    resume = ResumeWorkflowOperator(task_id="resume", **asked)
    run = CreateWorkflowRunOperator(task_id="run", cluster_name="multiprocess", deferrable=True, **asked)
    resume >> run
"""

CREATE_MANY_DAG = """
from airflow.providers.common.compat.sdk import DAG, task

from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator

with DAG(dag_id="create_many", schedule=None, max_active_tasks=32):
    @task
    def workflow_ids(dag_run=None):
        return dag_run.conf["workflow_ids"]

    # A window of 90 s, as with Jobmon's defaults: a restart takes more than ten on a busy machine.
    CreateWorkflowRunOperator.partial(
        task_id="run", deferrable=True, workflow_run_heartbeat_interval=2, heartbeat_report_by_buffer=45
    ).expand(workflow_id=workflow_ids())
"""


@pytest.fixture(scope="package")
def e2e_sandbox() -> Iterator[JobmonSandbox]:
    # A window of 40 s: where other work keeps the machine busy, deferring takes seconds, and so does whatever
    # an executor does between two of its own heartbeats.
    with JobmonSandbox(report_by_buffer=20) as sandbox:
        sandbox.start_reaper()
        yield sandbox


@pytest.fixture(scope="package")
def submit_host(e2e_sandbox: JobmonSandbox) -> Iterator[SubmitHost]:
    with SubmitHost(e2e_sandbox.environment()) as host:
        yield host


@pytest.fixture(scope="package")
def airflow(
    e2e_sandbox: JobmonSandbox, submit_host: SubmitHost, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AirflowStack]:
    dags = tmp_path_factory.mktemp("dags")
    for example in EXAMPLE_DAGS.glob("*.py"):
        (dags / example.name).write_text(example.read_text())
    texts = {
        "any_id": ANY_ID_DAG,
        "gateway": GATEWAY_DAG,
        "dying": DYING_DAGS,
        "create_many": CREATE_MANY_DAG,
        "timed_out": TIMED_OUT_DAG,
        "on_submit_host": ON_SUBMIT_HOST_DAG,
        "by_name": BY_NAME_DAG,
    }
    for name, text in texts.items():
        (dags / f"{name}.py").write_text(text)
    host, port = e2e_sandbox.url.removeprefix("http://").split(":")
    server = {"conn_type": "jobmon", "host": host, "port": int(port)}
    extra = {
        "route_prefix": "/api/v2",
        "workflow_run_heartbeat_interval": e2e_sandbox.heartbeat_interval,
        "heartbeat_report_by_buffer": e2e_sandbox.report_by_buffer,
        "jobmon_python": str(e2e_sandbox.python),
        "gui_url": e2e_sandbox.url,
    }
    gateway = {**extra, "headers": {"X-Gateway": SECRETS["header"]}}
    connections = {
        "jobmon_default": {**server, "login": "airflow", "password": SECRETS["password"], "extra": extra},
        "jobmon_gateway": {**server, "password": SECRETS["token"], "extra": gateway},
        "submit_host": submit_host.connection,
    }
    with AirflowStack(
        dags_folder=dags,
        connections={name: json.dumps(connection) for name, connection in connections.items()},
        environment={"JOBMON__HEARTBEAT__TASK_INSTANCE_INTERVAL": "5"},  # by which tasks learn of their end
    ) as stack:
        yield stack

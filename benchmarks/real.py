"""What a resume costs on a real Jobmon, beside Jobmon's own client and command."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from statistics import median
from typing import Any

from benchmarks.figures import Figures
from dev.jobmon_sandbox import JobmonSandbox

_JOBMONS_OWN = """
import sys, time
from jobmon.client.workflow_run import WorkflowRunFactory
factory = WorkflowRunFactory(int(sys.argv[1]))
started = time.perf_counter()
factory.set_workflow_resume()
print(time.perf_counter() - started)
"""


def wait(figures: Figures, *, quick: bool) -> None:
    """`set_workflow_resume` with defaults on a workflow that is resumable already."""
    from airflow_jobmon_provider.client.requester import Requester
    from airflow_jobmon_provider.client.workflow_run import WorkflowRunFactory

    with JobmonSandbox() as sandbox:
        workflow_id = sandbox.make_workflow_in("E").workflow_id
        requester = Requester(f"{sandbox.url}/api/v2")

        def ours() -> float:
            started = time.perf_counter()
            WorkflowRunFactory(workflow_id, requester).set_workflow_resume()
            return time.perf_counter() - started

        ours()  # the first one opens the connection
        before = len(sandbox.requests())
        took = median(ours() for _ in range(9))
        round_trips = (len(sandbox.requests()) - before) / 9
        command = [str(sandbox.python), "-c", _JOBMONS_OWN, str(workflow_id)]
        done = subprocess.run(
            command, env=sandbox.environment(), capture_output=True, text=True, check=True, timeout=120
        )
        jobmons = float(done.stdout.split()[-1])
    figures.add("wait_round_trips", round_trips, "requests", at_most=3)
    figures.add("wait_ms", 1000 * took, "ms")
    figures.add("wait_jobmon_s", jobmons, "s")
    figures.add("wait_vs_jobmon", jobmons / took, at_least=1000)


HOUR = 3600.0


class TaskInstance:
    """A task instance that keeps nothing."""

    try_number = 1

    def xcom_push(self, key: str, value: Any) -> None:
        pass


def worker(figures: Figures, *, quick: bool) -> None:
    """Worker time that one resume-and-create of an hour-long workflow holds, deferrable.

    Beside a BashOperator that runs Jobmon's own command, which holds its worker for the hour and what both
    need besides. Measured are the parts that run on a worker; the trigger's is played by moving the run.
    """
    from airflow.providers.common.compat.sdk import TaskDeferred

    from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator, ResumeWorkflowOperator

    with JobmonSandbox() as sandbox:
        connection = {"conn_type": "jobmon", "host": sandbox.url, "extra": {"route_prefix": "/api/v2"}}
        os.environ["AIRFLOW_CONN_JOBMON_DEFAULT"] = json.dumps(connection)

        def held() -> float:
            """Resume and create, and return for how long a worker was busy with it."""
            workflow_id = sandbox.make_workflow_in("E").workflow_id
            context: Any = {"ti": TaskInstance()}
            started = time.perf_counter()
            ResumeWorkflowOperator(task_id="resume", workflow_id=workflow_id, deferrable=True).execute(
                context
            )
            create = CreateWorkflowRunOperator(task_id="run", workflow_id=workflow_id, deferrable=True)
            try:
                create.execute(context)
            except TaskDeferred as deferred:
                trigger: Any = deferred.trigger
            busy = time.perf_counter() - started
            run = trigger.workflow_run_id
            for status in "BIORD":
                sandbox.put(f"/api/v2/workflow_run/{run}/update_status", {"status": status})

            async def fire() -> dict[str, Any]:
                payload: dict[str, Any] = (await anext(trigger.run())).payload
                return payload

            event = asyncio.run(fire())
            started = time.perf_counter()
            create.execute_complete(context, event)
            return busy + time.perf_counter() - started

        held()
        busy = median(held() for _ in range(5))
    figures.add("worker_seconds", busy, "s")
    figures.add("worker_seconds_vs_bash", busy / (HOUR + busy), at_most=0.01)

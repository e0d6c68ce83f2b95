"""A hundred tasks that want a run of the same workflow at once, on a real Jobmon."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from airflow.providers.common.compat.sdk import AirflowException

from dev.jobmon_sandbox import JobmonSandbox
from tests.airflow_task import TaskInstance, run_task
from tests.operators.tasks import create, resume

CROWD = 100
PATIENCE = 15.0  # seconds for which each of them asks
BOUND = 60  # seconds in which all of them are there, on a busy machine

pytestmark = [pytest.mark.usefixtures("connection"), pytest.mark.timeout(180)]


def test_of_a_crowd_of_tasks_one_gets_the_run_and_the_others_are_told(sandbox: JobmonSandbox) -> None:
    workflow = sandbox.make_workflow_in("E").workflow_id
    before = sandbox.runs(workflow)
    barrier = threading.Barrier(CROWD)

    def compete(_: int) -> int | str:
        ti = TaskInstance()
        barrier.wait(BOUND)
        try:
            run_task(resume(workflow, resume_timeout=PATIENCE), ti)
            task = create(
                workflow,
                wait_for_completion=False,
                create_timeout=PATIENCE,
                heartbeat_report_by_buffer=600.0,
            )
            ended = run_task(task, ti)
        except AirflowException as error:
            return str(error)
        assert ended.xcoms["workflow_run_id"] == ended.result
        return int(ended.result)

    with ThreadPoolExecutor(CROWD) as crowd:
        results = list(crowd.map(compete, range(CROWD)))
    (run,) = [result for result in results if isinstance(result, int)]
    refusals = [result for result in results if isinstance(result, str)]
    assert len(refusals) == CROWD - 1
    clear = re.compile(
        rf"workflow {workflow} did not become resumable within [\d.]+ s: a run of it is still alive\. .+"
        rf"|.*: Jobmon refused workflow {workflow}: .*(is currently ?linking|is not resumable).*"
    )
    assert [refusal for refusal in refusals if not clear.fullmatch(refusal)] == []
    # the others that the server made, if any, are registered only, and nobody holds one
    made = sandbox.runs(workflow)[len(before) :]
    assert [r for r in made if r[1] != "G"] == [(run, "L")]

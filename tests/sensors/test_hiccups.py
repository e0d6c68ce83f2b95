"""A connection that was there at a sensor's first poke, and is not found later for a moment."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from airflow.providers.common.compat.sdk import (  # type: ignore[attr-defined]  # timezone is there
    AirflowNotFoundException,
    timezone,
)

from airflow_jobmon_provider.sensors.jobmon import WorkflowResumableSensor, WorkflowRunSensor
from dev.jobmon_sandbox import JobmonSandbox
from tests.airflow_task import TaskInstance

pytestmark = pytest.mark.usefixtures("connection")


def sensor(sandbox: JobmonSandbox, make: type, **options: object) -> WorkflowRunSensor:
    workflow = sandbox.make_workflow_in("R")
    ids = {"workflow_run_id": workflow.workflow_run_id}
    if make is WorkflowResumableSensor:
        ids = {"workflow_id": workflow.workflow_id}
    made: WorkflowRunSensor = make(task_id="wait", **ids, **options)
    return made


both = pytest.mark.parametrize("make", [WorkflowResumableSensor, WorkflowRunSensor])


@both
def test_a_poke_after_the_first_outlives_a_hiccup_of_airflow(
    make: type, sandbox: JobmonSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = sensor(sandbox, make)
    context = {"ti": TaskInstance()}
    assert wait.poke(context) is False  # type: ignore[arg-type]
    monkeypatch.delenv("AIRFLOW_CONN_JOBMON_DEFAULT")
    assert wait.poke(context) is False  # type: ignore[arg-type]


@both
def test_a_poke_that_was_rescheduled_outlives_a_hiccup_of_airflow(
    make: type, sandbox: JobmonSandbox, monkeypatch: pytest.MonkeyPatch, logged: Callable[[], str]
) -> None:
    wait = sensor(sandbox, make, mode="reschedule", poke_interval=60)
    monkeypatch.delenv("AIRFLOW_CONN_JOBMON_DEFAULT")
    ti = TaskInstance()
    with pytest.raises(AirflowNotFoundException):
        wait.poke({"ti": ti})  # type: ignore[typeddict-item]
    ti.start_date = timezone.utcnow() - timedelta(hours=1)
    assert wait.poke({"ti": ti}) is False  # type: ignore[typeddict-item]
    assert "Connection jobmon_default cannot be read now; will keep trying" in logged()

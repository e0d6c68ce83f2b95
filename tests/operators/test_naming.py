"""A workflow that is named instead of numbered: by operators, the sensor and the hook, on a real Jobmon."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    TaskDeferred,
)

from airflow_jobmon_provider.client.exceptions import WorkflowAmbiguous, WorkflowNotFound
from airflow_jobmon_provider.hooks.jobmon import JobmonHook
from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator, ResumeWorkflowOperator
from airflow_jobmon_provider.sensors.jobmon import WorkflowResumableSensor
from airflow_jobmon_provider.task.templates import InvalidParameter
from dev.jobmon_sandbox import JobmonSandbox, SandboxWorkflow
from tests.airflow_task import Tries, run_task
from tests.operators.tasks import create, last_run, resume
from tests.sensors.waiting import resumable, sense

pytestmark = pytest.mark.usefixtures("connection")

KINDS: list[Any] = [ResumeWorkflowOperator, CreateWorkflowRunOperator, WorkflowResumableSensor]
of_every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def named(sandbox: JobmonSandbox, name: str, **others: str) -> SandboxWorkflow:
    """Make a failed workflow with a name, and perhaps with arguments and attributes."""
    workflow = sandbox.make_workflow_in("E")
    number = workflow.workflow_id
    sandbox.change("UPDATE workflow SET name = ? WHERE id = ?", name, number)
    if args := others.pop("workflow_args", None):
        sandbox.change("UPDATE workflow SET workflow_args = ? WHERE id = ?", args, number)
    for key, value in others.items():
        sandbox.change("INSERT OR IGNORE INTO workflow_attribute_type (name) VALUES (?)", key)
        sandbox.change(
            "INSERT INTO workflow_attribute (workflow_id, workflow_attribute_type_id, value)"
            " SELECT ?, id, ? FROM workflow_attribute_type WHERE name = ?",
            *(number, value, key),
        )
    return workflow


def test_a_workflow_is_found_by_all_that_is_given(sandbox: JobmonSandbox) -> None:
    one = named(sandbox, "nightly fit", workflow_args="2026-01", site="a", kind="full").workflow_id
    other = named(sandbox, "nightly fit", workflow_args="2026-02", site="a", kind="quick").workflow_id
    hook = JobmonHook()
    name: dict[str, Any] = {"workflow_name": "nightly fit"}
    assert hook.find_workflow(**name, workflow_args="2026-01") == one
    assert hook.find_workflow(**name, tool_name="sandbox", workflow_args="2026-02") == other
    assert hook.find_workflow(**name, workflow_attributes={"site": "a", "kind": "quick"}) == other
    assert hook.find_workflow(workflow_attributes={"kind": "full", "site": "a"}) == one
    number = named(sandbox, "nightly fit", workflow_args="2026").workflow_id
    assert hook.find_workflow(**name, workflow_args=2026) == number
    details = hook.get_workflow_details(**name, workflow_args="2026-01")
    assert details is not None
    assert details.name == "nightly fit"
    assert hook.get_workflow_run_factory(**name, workflow_args="2026-01").workflow_id == one


def test_none_and_several_are_one_line_each(sandbox: JobmonSandbox) -> None:
    ids = [named(sandbox, "same name", workflow_args=f"part {n}").workflow_id for n in range(6)]
    hook = JobmonHook()
    with pytest.raises(WorkflowNotFound, match=r"^no workflow with a run has workflow_name 'Same Name'$"):
        hook.find_workflow(workflow_name="Same Name")  # MariaDB would take it for the same
    with pytest.raises(WorkflowAmbiguous) as caught:
        hook.find_workflow(workflow_name="same name", tool_name="sandbox")
    newest = [f"{number} (args 'part {n}', FAILED)" for n, number in enumerate(ids)][:0:-1]
    assert str(caught.value) == (
        f"6 workflows have workflow_name 'same name', tool_name 'sandbox': {'; '.join(newest)} (the newest of"
        " 6). Name one of them by more than that, or by workflow_id"
    )


@of_every_kind
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "workflow_id, or some of workflow_name, tool_name, workflow_args, workflow_attributes, must be"),
        ({"workflow_id": 7, "tool_name": "x"}, "give workflow_id or tool_name, not both"),
        ({"workflow_name": ""}, "workflow_name must be text that is not empty, not ''"),
        ({"workflow_args": True}, "workflow_args must be text that is not empty, not True"),
        ({"workflow_attributes": {}}, "workflow_attributes must be a dict of names and values, not {}"),
        ({"workflow_attributes": {"site": " "}}, r"workflow_attributes\['site'\] must be text"),
    ],
)
def test_what_names_no_workflow_is_refused_in_the_dag_file(
    kind: Any, given: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        kind(task_id="task", **given)


@of_every_kind
def test_a_template_that_renders_to_nothing_is_refused_before_anything_is_asked(
    sandbox: JobmonSandbox, kind: Any
) -> None:
    task = kind(task_id="task", workflow_name="{{ params.name }}")
    task.workflow_name = ""
    asked = len(sandbox.requests(""))
    with pytest.raises((InvalidParameter, ValueError), match="workflow_name must be text"):
        run_task(task)
    assert len(sandbox.requests("")) == asked


@pytest.mark.parametrize("deferrable", [False, True], ids=["blocking", "deferrable"])
def test_a_workflow_is_resumed_by_its_name(sandbox: JobmonSandbox, deferrable: bool) -> None:
    workflow = named(sandbox, f"resumed {deferrable}")
    ended = run_task(resume(None, workflow_name=f"resumed {deferrable}", deferrable=deferrable))
    assert ended.result == workflow.workflow_id
    assert sandbox.task_statuses(workflow.workflow_id) == ["G"]


def test_a_name_that_is_no_workflows_fails_the_task_for_good(sandbox: JobmonSandbox) -> None:
    for task in (resume(None, workflow_name="nobody's"), create(None, workflow_name="nobody's")):
        with pytest.raises(AirflowFailException, match="no workflow with a run has workflow_name"):
            run_task(task)
    for _ in range(2):
        named(sandbox, "two of a name")
    with pytest.raises(AirflowFailException, match="2 workflows have workflow_name 'two of a name'"):
        run_task(create(None, workflow_name="two of a name"))


def test_a_retry_goes_on_with_its_run_though_another_workflow_is_called_so_by_now(
    sandbox: JobmonSandbox,
) -> None:
    workflow = named(sandbox, "called so")
    tries = Tries()
    with pytest.raises(TaskDeferred):
        create(None, workflow_name="called so", deferrable=True).execute(tries.next())
    run, status = last_run(sandbox, workflow.workflow_id)
    assert status == "L"
    named(sandbox, "called so")
    for code in "BIORD":
        sandbox.put(f"/api/v2/workflow_run/{run}/update_status", {"status": code})
    assert create(None, workflow_name="called so").execute(tries.next()) == run


@pytest.mark.parametrize("deferrable", [False, True], ids=["poke", "deferrable"])
def test_the_sensor_waits_for_a_workflow_by_its_name(
    sandbox: JobmonSandbox, deferrable: bool, connection: Callable[..., None]
) -> None:
    workflow = named(sandbox, f"waited for {deferrable}")
    task = resumable(None, workflow_name=f"waited for {deferrable}", deferrable=deferrable)
    assert sense(task).events == []
    assert len(sandbox.requests(f"/workflow/{workflow.workflow_id}/is_resumable")) == 1
    connection("http://127.0.0.1:9")  # nothing listens there
    task = resumable(None, workflow_name="out of reach", deferrable=deferrable, timeout=1, poke_interval=0.2)
    with pytest.raises(AirflowSensorTimeout, match="Jobmon is not answering"):
        sense(task)

"""What docs/protocol.md says about tasks, on a real Jobmon, released and newer routes."""

from __future__ import annotations

import pytest

from airflow_jobmon_provider.client import protocol
from airflow_jobmon_provider.client.async_requester import AsyncRequester
from airflow_jobmon_provider.client.exceptions import InvalidRequest, RouteNotSupported, ServerFailure
from airflow_jobmon_provider.client.protocol import FailedTask, TaskCounts, routes
from airflow_jobmon_provider.client.requester import Requester, ask
from airflow_jobmon_provider.client.settings import Settings
from dev.jobmon_sandbox import JobmonSandbox, SandboxWorkflow

NOBODY = 987_654_321


@pytest.fixture(scope="module")
def failed(sandbox: JobmonSandbox) -> SandboxWorkflow:
    return sandbox.make_workflow("fails")


def tasks_of(sandbox: JobmonSandbox, workflow: SandboxWorkflow) -> list[FailedTask]:
    sql = "SELECT id, name FROM task WHERE workflow_id = ? ORDER BY id DESC"
    return [FailedTask(*row) for row in sandbox.query(sql, workflow.workflow_id)]


def test_tasks_are_counted(failed: SandboxWorkflow, requester: Requester) -> None:
    counts = ask(requester, routes.task_counts(failed.workflow_id))
    assert counts == TaskCounts(total=3, pending=0, scheduled=0, running=0, done=0, fatal=3)


@pytest.mark.parametrize(
    ("statuses", "counts"),
    [
        ("GQIEA", TaskCounts(total=5, pending=5, scheduled=0, running=0, done=0, fatal=0)),
        ("OORDF", TaskCounts(total=5, pending=0, scheduled=2, running=1, done=1, fatal=1)),
    ],
)
def test_every_status_of_a_task_is_counted_once(
    sandbox: JobmonSandbox, requester: Requester, statuses: str, counts: TaskCounts
) -> None:
    workflow = sandbox.make_workflow("new", tasks=5)
    for task, status in zip(tasks_of(sandbox, workflow), statuses, strict=True):
        sandbox.change("UPDATE task SET status = ? WHERE id = ?", status, task.task_id)
    assert ask(requester, routes.task_counts(workflow.workflow_id)) == counts


def test_counting_an_unknown_workflow_is_an_error_of_the_released_server_only(
    requester: Requester, prefix: str
) -> None:
    call = routes.task_counts(NOBODY)
    if prefix == "/api/v3":
        assert ask(requester, call) == TaskCounts(0, 0, 0, 0, 0, 0)
    else:
        with pytest.raises(ServerFailure, match="500"):  # which does not say so
            ask(requester, call, tenacious=False)


def test_failed_tasks_are_listed_last_first(
    sandbox: JobmonSandbox, failed: SandboxWorkflow, requester: Requester
) -> None:
    tasks = tasks_of(sandbox, failed)
    assert [task.name for task in tasks] == ["task-2", "task-1", "task-0"]
    assert ask(requester, routes.failed_tasks(failed.workflow_id, 2)) == tuple(tasks[:2])
    assert ask(requester, routes.failed_tasks(failed.workflow_id, 5)) == tuple(tasks)


def test_only_failed_tasks_are_listed(sandbox: JobmonSandbox, requester: Requester) -> None:
    workflow = sandbox.make_workflow("new", tasks=2)
    assert ask(requester, routes.failed_tasks(workflow.workflow_id, 5)) == ()
    first = tasks_of(sandbox, workflow)[-1]
    sandbox.change("UPDATE task SET status = 'F' WHERE id = ?", first.task_id)
    assert ask(requester, routes.failed_tasks(workflow.workflow_id, 5)) == (first,)


def test_an_unknown_workflow_has_no_failed_tasks(requester: Requester) -> None:
    assert ask(requester, routes.failed_tasks(NOBODY, 5)) == ()


def test_an_error_says_how_the_task_ended(
    sandbox: JobmonSandbox, failed: SandboxWorkflow, requester: Requester
) -> None:
    error = ask(requester, routes.most_recent_error(tasks_of(sandbox, failed)[0].task_id))
    assert "Got exit_code: 1" in error


def test_a_task_that_has_not_failed_or_is_unknown_has_no_error(
    sandbox: JobmonSandbox, requester: Requester
) -> None:
    task = tasks_of(sandbox, sandbox.make_workflow("new", tasks=1))[0]
    assert ask(requester, routes.most_recent_error(task.task_id)) == ""
    assert ask(requester, routes.most_recent_error(NOBODY)) == ""


def test_only_a_newer_server_raises_resources(
    failed: SandboxWorkflow, requester: Requester, prefix: str
) -> None:
    call = routes.increase_resources(failed.workflow_id)
    if prefix == "/api/v3":
        assert ask(requester, call) == 0
        with pytest.raises(InvalidRequest) as refused:  # which tells that the route is there
            ask(requester, routes.probe_increase_resources(failed.workflow_id))
        assert refused.value.status_code == 405
    else:
        with pytest.raises(RouteNotSupported, match="cannot raise the resources of failed tasks"):
            ask(requester, routes.probe_increase_resources(failed.workflow_id))
        with pytest.raises(RouteNotSupported, match="cannot raise the resources of failed tasks"):
            ask(requester, call)


async def test_both_transports_repeat_the_key_of_a_list(
    sandbox: JobmonSandbox, failed: SandboxWorkflow, requester: Requester, prefix: str
) -> None:
    ids = [failed.workflow_id, sandbox.make_workflow("new").workflow_id]
    both = protocol.Call("get", "/workflow_status_viz", {"workflow_ids": ids}, sorted)
    assert ask(requester, both) == sorted(map(str, ids))
    async with AsyncRequester(Settings(sandbox.url + prefix)) as transport:
        assert await transport.ask(both) == sorted(map(str, ids))
        assert (await transport.ask(routes.task_counts(failed.workflow_id))).fatal == 3
        two = await transport.ask(routes.failed_tasks(failed.workflow_id, 2))
        assert len(two) == 2

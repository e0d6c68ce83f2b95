"""Operators on a server that is older than this provider knows: they say so, and have changed nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from airflow.providers.common.compat.sdk import AirflowException, BaseOperator

from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator, ResumeWorkflowOperator
from tests.airflow_task import run_task
from tests.stub_server import Reply, StubServer

NOT_THERE, HEALTHY = Reply(404, {"detail": "Not Found"}), {"status": "OK"}


@pytest.mark.parametrize("deferrable", [False, True], ids=["blocking", "deferrable"])
@pytest.mark.parametrize("make", [ResumeWorkflowOperator, CreateWorkflowRunOperator])
def test_a_server_that_is_too_old_is_refused_before_anything_is_changed(
    make: Callable[..., BaseOperator],
    deferrable: bool,
    connection: Callable[..., None],
    stub: Callable[..., StubServer],
) -> None:
    server = stub([], NOT_THERE, HEALTHY)
    connection(server.url, extra={"route_prefix": ""})
    with pytest.raises(AirflowException, match=r"older than 3\.4.*needs a newer one"):
        run_task(make(task_id="task", workflow_id=7, deferrable=deferrable))
    assert {request.method for request in server.requests} == {"GET"}

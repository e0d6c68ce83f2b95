"""The DAG that executes a run on a submit host, through the production stack and OpenSSH's own server."""

from __future__ import annotations

from pathlib import Path

import pytest

from dev.airflow_stack import AirflowStack
from dev.jobmon_sandbox import JobmonSandbox
from tests.end_to_end.dag_runs import execute_over_ssh

pytestmark = pytest.mark.timeout(600)


def test_a_run_is_executed_on_a_submit_host(
    jobmon: JobmonSandbox, production: AirflowStack, tmp_path: Path
) -> None:
    execute_over_ssh(jobmon, production, tmp_path)

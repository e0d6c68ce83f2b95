"""What another user of the host sees of a job whose connection has a password: nothing of that.

Slurm's jobs, their records and scripts are in ``tests/stack``.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator
from dev.jobmon_sandbox import JobmonSandbox, wait_until
from dev.submit_host import SubmitHost
from tests import stranger
from tests.airflow_task import run_task
from tests.operators.tasks import during, last_run

pytestmark = [pytest.mark.executes, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def host(sandbox: JobmonSandbox) -> Iterator[SubmitHost]:
    with SubmitHost(sandbox.environment()) as host:
        yield host


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder into which everybody may look: what is below sees to itself."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def password(connection: Callable[..., None]) -> str:
    password = f"p/{secrets.token_hex(8)}@:"
    connection(login="me", password=password)
    return password


def test_a_stranger_sees_arguments_and_is_found_out_by_this_search(password: str) -> None:
    """Else the tests below would show nothing."""
    texts = stranger.forms_of("me", password)
    assert stranger.processes_with(texts) == []
    with subprocess.Popen(["/bin/sh", "-c", "read line", password], stdin=subprocess.PIPE) as careless:
        wait_until(lambda: stranger.processes_with(texts), 20, "the careless process")
        assert stranger.processes_with(texts) == [f"/proc/{careless.pid}/cmdline"]


@pytest.mark.parametrize("ssh_conn_id", [None, "submit_host"], ids=["this worker", "submit host"])
def test_nothing_of_a_password_is_seen_by_others(
    sandbox: JobmonSandbox,
    host: SubmitHost,
    folder: Path,
    password: str,
    ssh_conn_id: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_SUBMIT_HOST", json.dumps(host.connection))
    workflow = sandbox.make_workflow_in("E", waits=True)
    sandbox.post(f"/api/v2/task/{workflow.workflow_id}/set_resume_state", {"reset_if_running": True})
    go = folder / "go"
    options: dict[str, Any] = {
        "ssh_conn_id": ssh_conn_id,
        "setup_commands": [f"until test -e {go}; do sleep 0.1; done"],
        "cluster_name": "multiprocess",
        "jobmon_python": str(sandbox.python),
        "remote_dir": str(folder / "jobs"),
        "workflow_run_heartbeat_interval": 2,
        "heartbeat_report_by_buffer": 20,
        "poll_interval": 1,
        "deferrable": True,
    }
    (folder / "jobs").mkdir(mode=0o755)
    (folder / "jobs" / "note").write_text("for everybody")
    assert stranger.readable_below(folder / "jobs") == [str(folder / "jobs" / "note")]
    (folder / "jobs" / "note").unlink()

    def look() -> None:
        texts = stranger.forms_of("me", password)
        handle = wait_until(lambda: next(folder.glob("jobs/runs/*/handle"), None), 60, "the job")
        assert handle is not None
        file = handle.with_name("secrets")
        assert texts[1] in file.read_text()
        assert file.stat().st_mode & 0o777 == 0o600
        assert stranger.processes_with(texts) == []
        assert stranger.readable_below(folder / "jobs") == []
        go.touch()
        wait_until(lambda: last_run(sandbox, workflow.workflow_id)[1] == "R", 60, "the run to be RUNNING")
        assert not file.exists()
        run = last_run(sandbox, workflow.workflow_id)[0]
        assert stranger.processes_with([f"--workflow-run-id={run}"])  # its processes are seen
        assert stranger.processes_with(texts) == []
        assert stranger.readable_below(folder / "jobs") == []

    def look_and_let_it_end() -> None:
        try:
            look()
        finally:
            go.touch()
            workflow.release()

    with during(look_and_let_it_end):
        ended = run_task(
            CreateWorkflowRunOperator(task_id="run", workflow_id=workflow.workflow_id, **options)
        )
    assert last_run(sandbox, workflow.workflow_id) == (ended.result, "D")

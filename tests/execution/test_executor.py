"""executor.py in the Python of a real Jobmon client, as a process of its own, on a real Jobmon server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from airflow_jobmon_provider.execution.executor import Exit
from airflow_jobmon_provider.execution.process import EXECUTOR
from dev.jobmon_sandbox import JobmonSandbox, SandboxWorkflow, wait_until
from tests.execution.conftest import MakeRun, group_members, wait_for_end
from tests.execution.executors import CLIENT_OF_3_6

pytestmark = pytest.mark.timeout(180)


def start(
    sandbox: JobmonSandbox,
    workflow: SandboxWorkflow,
    *,
    python: Path | None = None,
    cluster: str = "multiprocess",
    env: dict[str, str] | None = None,
    options: Sequence[str] = (),
) -> subprocess.Popen[bytes]:
    arguments = [
        f"--workflow-id={workflow.workflow_id}",
        f"--workflow-run-id={workflow.workflow_run_id}",
        f"--cluster-name={cluster}",
        *options,
    ]
    # Not a pipe: what outlives the executor would hold it open.
    with output_of(sandbox, workflow).open("w") as output:
        return subprocess.Popen(
            [str(python or sandbox.python), str(EXECUTOR), *arguments],
            env={**sandbox.environment(), **(env or {})},
            cwd=sandbox.directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def output_of(sandbox: JobmonSandbox, workflow: SandboxWorkflow) -> Path:
    return sandbox.directory / f"executor-{workflow.workflow_run_id}.log"


def outcome(
    sandbox: JobmonSandbox, workflow: SandboxWorkflow, process: subprocess.Popen[bytes]
) -> tuple[Exit, str, list[str]]:
    """Wait for its end; return exit code, last line and all lines."""
    process.wait(timeout=60)
    lines = output_of(sandbox, workflow).read_text().splitlines()
    return Exit(process.returncode), lines[-1], lines


def latest(sandbox: JobmonSandbox, workflow: SandboxWorkflow) -> str:
    return sandbox.run_status(workflow.workflow_run_id or 0)


def test_a_run_is_executed_to_its_end(sandbox: JobmonSandbox, linking: MakeRun) -> None:
    workflow = linking()
    code, last, lines = outcome(sandbox, workflow, start(sandbox, workflow))
    who = f"workflow run {workflow.workflow_run_id} of workflow {workflow.workflow_id}"
    assert code == Exit.DONE
    assert last.startswith(f"executor: {who} ended DONE (D): 2 of 2 tasks done, 0 failed, after ")
    assert lines[0] == f"executor: executing {who} on cluster 'multiprocess'"
    assert not [line for line in lines if "/log_heartbeat" in line]
    assert latest(sandbox, workflow) == "D"
    assert sandbox.workflow_status(workflow.workflow_id) == "D"


def test_tasks_that_fail_make_the_run_end_in_error(sandbox: JobmonSandbox, linking: MakeRun) -> None:
    workflow = linking(released=False)
    code, last, _ = outcome(sandbox, workflow, start(sandbox, workflow))
    assert code == Exit.NOT_DONE
    assert "ended ERROR (E): 0 of 2 tasks done, 2 failed when this executor last looked" in last
    assert latest(sandbox, workflow) == "E"


def test_the_function_of_3_6_is_used_where_there_is_one(
    sandbox: JobmonSandbox, linking: MakeRun, tmp_path: Path
) -> None:
    (tmp_path / "usercustomize.py").write_text("")
    (tmp_path / "sitecustomize.py").write_text(CLIENT_OF_3_6)
    workflow = linking()
    process = start(sandbox, workflow, env={"PYTHONPATH": str(tmp_path)})
    code, last, _ = outcome(sandbox, workflow, process)
    assert (code, latest(sandbox, workflow)) == (Exit.DONE, "D")
    assert "ended DONE (D): 2 of 2 tasks done, 0 failed" in last
    asked = sandbox.requests(f"/workflow_run/{workflow.workflow_run_id}/update_status")
    moves = [(request.body["status"], request.reply["status"]) for request in asked]
    # the distributor asks for I and O, and is refused; then the executor takes the run
    assert moves == [("I", "L"), ("O", "L"), ("B", "B"), ("I", "I"), ("O", "O"), ("R", "R"), ("D", "D")]


def test_an_unknown_cluster_is_told_at_once_and_the_run_aborted(
    sandbox: JobmonSandbox, linking: MakeRun
) -> None:
    workflow = linking()
    started = time.monotonic()
    code, last, _ = outcome(sandbox, workflow, start(sandbox, workflow, cluster="no/such"))
    assert code == Exit.NO_CLUSTER
    assert last == "executor: cluster 'no/such' is unknown to Jobmon; it knows multiprocess, sequential"
    assert latest(sandbox, workflow) == "A"
    assert time.monotonic() - started < 30


def test_a_cluster_without_its_plugin_aborts_the_run(sandbox: JobmonSandbox, linking: MakeRun) -> None:
    workflow = linking()
    sandbox.change("INSERT OR IGNORE INTO cluster_type (id, name) VALUES (77, 'pbs')")
    sandbox.change(
        "INSERT OR IGNORE INTO cluster (id, name, cluster_type_id, connection_parameters)"
        " VALUES (77, 'pbs', 77, '{}')"
    )
    code, last, _ = outcome(sandbox, workflow, start(sandbox, workflow, cluster="pbs"))
    assert code == Exit.NO_CLUSTER
    assert last.startswith("executor: cluster 'pbs' cannot be used: ")
    assert latest(sandbox, workflow) == "A"


def test_a_distributor_that_dies_at_start_aborts_the_run(sandbox: JobmonSandbox, linking: MakeRun) -> None:
    workflow = linking()
    # a setting that only the distributor reads
    env = {"JOBMON__HEARTBEAT__TASK_INSTANCE_INTERVAL": "often"}
    code, last, _ = outcome(sandbox, workflow, start(sandbox, workflow, env=env))
    assert code == Exit.NO_DISTRIBUTOR
    assert last.startswith("executor: Jobmon's distributor did not start: DistributorStartupTimeout: ")
    assert "often" in last
    assert latest(sandbox, workflow) == "A"


def test_a_distributor_that_dies_later_ends_the_run_in_error(
    sandbox: JobmonSandbox, running: MakeRun, groups: list[int]
) -> None:
    workflow = running()
    process = start(sandbox, workflow)
    groups.append(process.pid)
    wait_until(lambda: latest(sandbox, workflow) == "R", 60, "the run to be RUNNING")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    code, last, _ = outcome(sandbox, workflow, process)
    assert code == Exit.FAILED
    assert "was broken off: DistributorNotAlive" in last
    assert latest(sandbox, workflow) == "E"


def test_a_python_without_the_client_says_so(sandbox: JobmonSandbox, linking: MakeRun) -> None:
    workflow = linking()
    code, last, _ = outcome(sandbox, workflow, start(sandbox, workflow, python=Path(sys.executable)))
    assert code == Exit.NO_CLIENT
    assert last.startswith(f"executor: {sys.executable} has no Jobmon client: ")
    assert latest(sandbox, workflow) == "L"


@pytest.mark.parametrize("status", ["B", "R", "D", "A"])
def test_a_run_that_is_not_linking_is_left_alone(sandbox: JobmonSandbox, status: str) -> None:
    workflow = sandbox.make_workflow_in(status)
    code, last, _ = outcome(sandbox, workflow, start(sandbox, workflow))
    assert code == Exit.NOT_TAKEN
    assert last.endswith(f"({status}), not LINKING (L)")
    assert latest(sandbox, workflow) == status


def test_what_the_same_job_has_left_is_not_taken_for_anothers(sandbox: JobmonSandbox, tmp_path: Path) -> None:
    """Slurm has put it back into its queue; the task, which reads the exit code, is to end the run."""
    workflow = sandbox.make_workflow_in("B")
    taken = tmp_path / "taken"
    taken.touch()
    code, last, _ = outcome(sandbox, workflow, start(sandbox, workflow, options=[f"--taken-file={taken}"]))
    assert code == Exit.FAILED
    what = f"its executor then has left workflow run {workflow.workflow_run_id} BOUND (B)"
    assert last == f"executor: this job has begun before, and {what}"


def test_without_its_credentials_a_job_that_begins_again_is_over(
    sandbox: JobmonSandbox, linking: MakeRun, tmp_path: Path
) -> None:
    workflow = linking()
    options = [f"--secrets={tmp_path / 'gone'}"]
    code, last, _ = outcome(sandbox, workflow, start(sandbox, workflow, options=options))
    assert code == Exit.FAILED
    assert last.startswith("executor: the credentials for Jobmon are gone: this job has begun before")


def test_a_run_that_does_not_exist_is_told_at_once(sandbox: JobmonSandbox) -> None:
    workflow = SandboxWorkflow(sandbox.make_workflow("new").workflow_id, 987_654, Path())
    started = time.monotonic()
    code, last, _ = outcome(sandbox, workflow, start(sandbox, workflow))
    assert code == Exit.NOT_TAKEN
    assert last == "executor: workflow run 987654 does not exist"
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_the_run_and_all_that_was_started(
    sandbox: JobmonSandbox, running: MakeRun, groups: list[int], number: signal.Signals
) -> None:
    workflow = running()
    process = start(sandbox, workflow)
    groups.append(process.pid)
    wait_until(lambda: latest(sandbox, workflow) == "R", 60, "the run to be RUNNING")
    process.send_signal(number)
    code, last, _ = outcome(sandbox, workflow, process)
    assert code == Exit.STOPPED
    assert last.endswith(f"was stopped by {number.name}")
    assert latest(sandbox, workflow) == "S"
    assert not [pid for pid in group_members(process.pid) if b"distributor" in cmdline(pid)]


def cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_signal_before_the_run_is_taken_aborts_it(sandbox: JobmonSandbox, linking: MakeRun) -> None:
    workflow = linking()
    sandbox.pause_server()
    try:
        process = start(sandbox, workflow)
        # the handlers are in place by then
        wait_until(lambda: "executing" in output_of(sandbox, workflow).read_text(), 20, "its first line")
        process.send_signal(signal.SIGTERM)
    finally:
        sandbox.resume_server()
    code, _, _ = outcome(sandbox, workflow, process)
    assert code == Exit.STOPPED
    assert latest(sandbox, workflow) == "A"


@pytest.mark.parametrize("wrong", ["0", "-1", "1.5", "x", "", "٣"])
def test_an_id_that_is_none_is_refused(sandbox: JobmonSandbox, wrong: str) -> None:
    workflow = SandboxWorkflow(wrong, 1, Path())  # type: ignore[arg-type]
    code, last, _ = outcome(sandbox, workflow, start(sandbox, workflow))
    assert code == Exit.USAGE
    assert f"must be a positive integer, not {wrong!r}" in last


def test_a_killed_executor_leaves_the_run_to_the_reaper(
    sandbox: JobmonSandbox, running: MakeRun, groups: list[int]
) -> None:
    workflow = running()
    process = start(sandbox, workflow)
    groups.append(process.pid)
    wait_until(lambda: latest(sandbox, workflow) == "R", 60, "the run to be RUNNING")
    process.kill()
    process.wait()
    assert latest(sandbox, workflow) == "R"
    window = sandbox.heartbeat_interval * sandbox.report_by_buffer

    def reaped() -> bool:
        sandbox.reap()
        return latest(sandbox, workflow) == "E"

    wait_until(reaped, window + 20, "Jobmon's reaper to end the run")


def test_every_process_of_the_executor_ends_with_the_run(sandbox: JobmonSandbox, linking: MakeRun) -> None:
    workflow = linking()
    process = start(sandbox, workflow)
    outcome(sandbox, workflow, process)
    wait_for_end(process.pid)

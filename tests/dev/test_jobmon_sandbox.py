"""The sandbox itself: everything else rests on it."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from dev.jobmon_sandbox import JobmonSandbox, SandboxError, install, wait_until
from tests.foreground import processes_that_hold

PROJECT = Path(__file__).resolve().parents[2]


def test_a_sandbox_can_be_started_and_stopped_twice(tmp_path: Path) -> None:
    sandbox = JobmonSandbox(directory=tmp_path)
    sandbox.start()
    url = sandbox.url
    sandbox.start()
    assert sandbox.url == url
    assert sandbox.get("/api/v2/health") == {"status": "OK"}
    assert processes_that_hold(str(tmp_path))
    sandbox.stop()
    sandbox.stop()
    assert not processes_that_hold(str(tmp_path))
    assert sandbox.database.exists()  # a directory that was given is the giver's


def test_two_sandboxes_at_once_do_not_meet(sandbox: JobmonSandbox) -> None:
    with JobmonSandbox() as other:
        assert other.url != sandbox.url
        workflow = other.make_workflow("new")
        assert other.workflow_status(workflow.workflow_id) == "G"
        directory = other.directory
    assert not directory.exists()
    assert sandbox.get("/api/v2/health") == {"status": "OK"}


def test_nothing_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = f"""
import time
from pathlib import Path
from dev.jobmon_sandbox import JobmonSandbox
sandbox = JobmonSandbox(directory=Path({str(tmp_path)!r}))
sandbox.start()
sandbox.make_workflow("running")
print("running", flush=True)
time.sleep(600)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "running\n"
        # server, worker, executor, distributor and the tasks' own processes
        assert len(processes_that_hold(str(tmp_path))) > 5
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not processes_that_hold(str(tmp_path)), 20, "every process to end")


def test_a_restarted_server_keeps_its_address_and_its_data() -> None:
    with JobmonSandbox() as sandbox:
        workflow = sandbox.make_workflow_in("E")
        sandbox.stop_server()
        with pytest.raises(OSError, match="refused"):
            sandbox.get("/api/v2/health")
        sandbox.start_server()
        assert sandbox.get(f"/api/v2/workflow/{workflow.workflow_id}/is_resumable") == {
            "workflow_is_resumable": True
        }


def test_workflows_of_each_kind_are_really_executed(sandbox: JobmonSandbox) -> None:
    fails = sandbox.make_workflow("fails", tasks=2)
    assert sandbox.runs(fails.workflow_id) == [(fails.workflow_run_id, "E")]
    assert sandbox.task_statuses(fails.workflow_id) == ["F", "F"]
    running = sandbox.make_workflow("running")
    assert sandbox.run_status(running.workflow_run_id or 0) == "R"
    running.release()
    done = sandbox.make_workflow("done", tasks=1)
    assert sandbox.workflow_status(done.workflow_id) == "D"
    wait_until(lambda: sandbox.run_status(running.workflow_run_id or 0) == "D", 60, "the released run's end")


def test_a_reply_that_is_too_long_to_log_still_arrives_whole(sandbox: JobmonSandbox) -> None:
    workflow = sandbox.make_workflow("new", tasks=60)
    # nothing that compression could make short
    sandbox.change("UPDATE task SET name = hex(randomblob(100)) WHERE workflow_id = ?", workflow.workflow_id)
    path = f"/api/v2/workflow/{workflow.workflow_id}/workflow_tasks"
    request = urllib.request.Request(f"{sandbox.url}{path}?limit=100", headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(request) as reply:
        assert reply.headers["Content-Encoding"] == "gzip"
        columns = json.loads(json.loads(gzip.decompress(reply.read()))["workflow_tasks"])
    assert len(columns["TASK_ID"]) == 60
    (seen,) = sandbox.requests(path)
    assert str(seen.reply).startswith('{"workflow_tasks"')  # its beginning


def test_details_of_the_newer_routes_have_all_that_the_released_ones_have(sandbox: JobmonSandbox) -> None:
    path = f"workflow_details_viz/{sandbox.make_workflow_in('E').workflow_id}"
    (released,), (newer,) = sandbox.get(f"/api/v2/{path}"), sandbox.get(f"/api/v3/{path}")
    assert newer.keys() - released.keys() == {"wfr_heartbeat_date", "wfr_user"}
    dates = {key: released[key].replace(" ", "T") for key in ("wf_created_date", "wf_status_date")}
    assert {key: newer[key] for key in released} == released | dates


def test_a_sandbox_says_what_it_cannot_do() -> None:
    with pytest.raises(SandboxError, match="the sandbox is not started"):
        JobmonSandbox().make_workflow("new")


def test_a_second_install_is_the_same_environment() -> None:
    assert install() == install()
    assert install().exists()


def test_a_request_that_is_being_logged_is_not_read_yet(tmp_path: Path) -> None:
    entry = {"time": 1.0, "method": "GET", "path": "/api/v2/health", "query": "", "status_code": 200}
    line = json.dumps({**entry, "body": "", "reply": '{"status": "OK"}'}) + "\n"
    (tmp_path / "requests.jsonl").write_text(line + line[:-30])
    (seen,) = JobmonSandbox(directory=tmp_path).requests()
    assert seen.reply == {"status": "OK"}


def test_a_page_shows_workflows_in_place_of_jobmons_gui(sandbox: JobmonSandbox) -> None:
    workflow = sandbox.make_workflow("fails", tasks=1)
    address, _, fragment = sandbox.page(workflow.workflow_id).partition("#")
    with urllib.request.urlopen(address) as reply:
        section = reply.read().decode().partition(f'id="{fragment}"')[2].partition("</section>")[0]
    assert f"Workflow {workflow.workflow_id}: FAILED" in section
    assert f"Workflow run {workflow.workflow_run_id}: ERROR" in section
    assert "task-0<td>ERROR_FATAL<td>" in section
    assert f"cat: {workflow.marker}: No such file or directory" in section


def test_a_page_shows_a_status_that_jobmon_does_not_know(sandbox: JobmonSandbox) -> None:
    workflow = sandbox.make_workflow_in("E")
    sandbox.change("UPDATE workflow_run SET status = 'X' WHERE id = ?", workflow.workflow_run_id)
    with urllib.request.urlopen(sandbox.page(workflow.workflow_id).partition("#")[0]) as reply:
        assert f"Workflow run {workflow.workflow_run_id}: X" in reply.read().decode()

"""The seed's module on a real Jobmon, released and newer routes."""

from __future__ import annotations

import getpass
import inspect
import time
from collections.abc import Callable
from typing import Any

import pytest

from airflow_jobmon_provider.client import workflow_run
from airflow_jobmon_provider.client.exceptions import (
    JobmonError,
    ResumeTimeout,
    RouteNotSupported,
    ServerFailure,
    ServerUnreachable,
    WorkflowNotFound,
    WorkflowNotResumable,
)
from airflow_jobmon_provider.client.requester import Requester
from airflow_jobmon_provider.client.workflow_run import WorkflowRun, WorkflowRunFactory
from dev.jobmon_sandbox import JobmonSandbox
from tests.stub_server import HANG_UP, Reply, StubServer
from tests.stuck_tasks import stop_with_stuck_tasks

NOBODY = 987_654_321


def parameters(of: Callable[..., Any]) -> dict[str, Any]:
    return {name: p.default for name, p in inspect.signature(of).parameters.items() if name != "self"}


def test_signatures_are_the_seeds() -> None:
    required = inspect.Parameter.empty
    heartbeat = {"workflow_run_heartbeat_interval": None, "heartbeat_report_by_buffer": None}
    assert parameters(WorkflowRunFactory) == {"workflow_id": required, "requester": None}
    assert parameters(WorkflowRunFactory.set_workflow_resume) == {
        "reset_running_jobs": True,
        "resume_timeout": 300,
        "force_cleanup": False,
    }
    assert parameters(WorkflowRunFactory.wait_for_workflow_resume) == {
        "resume_timeout": 300,
        "force_cleanup": False,
    }
    assert parameters(WorkflowRunFactory.force_cleanup_kill_self) == {}
    assert parameters(WorkflowRunFactory.reset_task_statuses) == {
        "reset_if_running": True,
        "force_cleanup": False,
    }
    assert parameters(WorkflowRunFactory.create_workflow_run) == heartbeat
    assert parameters(WorkflowRun) == {"workflow_id": required, "requester": None, **heartbeat}
    assert parameters(WorkflowRun._update_status) == {"status": required}
    assert workflow_run.logger.name == "airflow_jobmon_provider.client.workflow_run"


class Counting:
    """Passes requests on and counts the round trips."""

    def __init__(self, requester: Requester) -> None:
        self.requester = requester
        self.routes: list[str] = []

    def send_request(self, **request: Any) -> tuple[int, Any]:
        self.routes.append(request["app_route"].rpartition("/")[2])
        return self.requester.send_request(**request)


def test_a_failed_workflow_gets_its_next_run(sandbox: JobmonSandbox, requester: Requester) -> None:
    workflow = sandbox.make_workflow_in("E", tasks=2)
    factory = WorkflowRunFactory(workflow.workflow_id, requester)
    assert factory.workflow_is_resumable is False
    factory.set_workflow_resume()
    assert factory.workflow_is_resumable is True
    factory.reset_task_statuses()
    assert sandbox.task_statuses(workflow.workflow_id) == ["G", "G"]
    run = factory.create_workflow_run()
    assert sandbox.runs(workflow.workflow_id)[-1] == (run.workflow_run_id, "L")
    assert run.status == "L"
    assert run.user == getpass.getuser()


def test_a_workflow_that_is_resumable_takes_two_round_trips_and_no_waiting(
    sandbox: JobmonSandbox, requester: Requester
) -> None:
    counting = Counting(requester)
    factory = WorkflowRunFactory(sandbox.make_workflow_in("E").workflow_id, counting)
    slept: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", slept.append)
        factory.set_workflow_resume()
    assert counting.routes == ["set_resume", "is_resumable"]
    assert not slept
    factory.set_workflow_resume()  # known to be resumable
    factory.wait_for_workflow_resume()
    assert len(counting.routes) == 2


def test_a_running_workflow_is_stopped_and_waited_for(sandbox: JobmonSandbox, requester: Requester) -> None:
    workflow = sandbox.make_workflow("running")
    factory = WorkflowRunFactory(workflow.workflow_id, requester)
    factory.set_workflow_resume(resume_timeout=60)
    assert sandbox.run_status(workflow.workflow_run_id or 0) == "T"


@pytest.mark.parametrize(("cold", "status"), [(True, "C"), (False, "H")])
def test_the_time_out_leaves_the_signal_standing(
    sandbox: JobmonSandbox, requester: Requester, cold: bool, status: str
) -> None:
    workflow = sandbox.make_workflow_in("R")
    factory = WorkflowRunFactory(workflow.workflow_id, requester)
    with pytest.raises(ResumeTimeout, match=f"workflow {workflow.workflow_id} did not become resumable"):
        factory.set_workflow_resume(reset_running_jobs=cold, resume_timeout=0)
    assert sandbox.run_status(workflow.workflow_run_id or 0) == status
    assert factory.workflow_is_resumable is False


def test_a_forced_clean_up_makes_the_workflow_resumable(sandbox: JobmonSandbox) -> None:
    requester = Requester(sandbox.url + "/api/v3", retries_timeout=0)
    workflow_id, run = stop_with_stuck_tasks(sandbox)
    WorkflowRunFactory(workflow_id, requester).set_workflow_resume(resume_timeout=5, force_cleanup=True)
    assert sandbox.run_status(run) == "T"


def test_a_forced_clean_up_of_a_run_that_obeys_is_an_ordinary_resume(sandbox: JobmonSandbox) -> None:
    workflow = sandbox.make_workflow("running")
    factory = WorkflowRunFactory(workflow.workflow_id, Requester(sandbox.url + "/api/v3", retries_timeout=0))
    factory.set_workflow_resume(resume_timeout=60, force_cleanup=True)
    assert sandbox.run_status(workflow.workflow_run_id or 0) == "T"


def test_a_server_that_cannot_clean_up_says_so_before_anything_is_changed(sandbox: JobmonSandbox) -> None:
    requester = Requester(sandbox.url + "/api/v2", retries_timeout=0)
    workflow = sandbox.make_workflow_in("R")
    factory = WorkflowRunFactory(workflow.workflow_id, requester)
    with pytest.raises(RouteNotSupported, match="cannot force a clean-up; needs a newer one") as caught:
        factory.set_workflow_resume(force_cleanup=True)
    assert requester.url in str(caught.value)
    with pytest.raises(RouteNotSupported):
        factory.force_cleanup_kill_self()
    assert sandbox.run_status(workflow.workflow_run_id or 0) == "R"


def test_a_forced_clean_up_logs_how_many_it_cleaned_up(sandbox: JobmonSandbox) -> None:
    workflow_id, _ = stop_with_stuck_tasks(sandbox)
    factory = WorkflowRunFactory(workflow_id, Requester(sandbox.url + "/api/v3"))
    assert factory.force_cleanup_kill_self() == 1
    assert factory.force_cleanup_kill_self() == 0


@pytest.mark.parametrize(
    "what",
    [
        lambda factory: factory.set_workflow_resume(),
        lambda factory: factory.wait_for_workflow_resume(),
        lambda factory: factory.reset_task_statuses(),
        lambda factory: factory.create_workflow_run(),
    ],
)
def test_a_workflow_that_does_not_exist_is_found_out_at_the_first_call(
    requester: Requester, what: Callable[[WorkflowRunFactory], None]
) -> None:
    with pytest.raises(WorkflowNotFound, match=f"workflow {NOBODY} does not exist") as caught:
        what(WorkflowRunFactory(NOBODY, requester))
    assert requester.url in str(caught.value)
    assert isinstance(caught.value, WorkflowNotResumable)


def test_a_refused_reset_is_an_error(sandbox: JobmonSandbox, requester: Requester) -> None:
    workflow = sandbox.make_workflow_in("E")
    factory = WorkflowRunFactory(workflow.workflow_id, requester)
    factory.wait_for_workflow_resume()
    factory.create_workflow_run()
    with pytest.raises(WorkflowNotResumable, match="is not resumable"):
        factory.reset_task_statuses()


@pytest.mark.parametrize(
    ("status", "words"), [("L", "linking"), ("R", "linking"), ("D", "not in a resume-able")]
)
def test_a_busy_or_done_workflow_gets_no_run(
    sandbox: JobmonSandbox, requester: Requester, status: str, words: str
) -> None:
    workflow = sandbox.make_workflow_in(status)
    with pytest.raises(WorkflowNotResumable, match=words):
        WorkflowRunFactory(workflow.workflow_id, requester).create_workflow_run()


def test_binding_works_as_in_jobmons_own_test(sandbox: JobmonSandbox, requester: Requester) -> None:
    """What Jobmon's test suite does with the two classes, step by step."""
    workflow = sandbox.make_workflow("new")
    factory = WorkflowRunFactory(workflow_id=workflow.workflow_id, requester=requester)
    run = factory.create_workflow_run()
    assert run.status == "L"
    nobody = WorkflowRun(workflow_id=-1, requester=requester)
    with pytest.raises(WorkflowNotResumable):
        nobody.bind()
    with pytest.raises(WorkflowNotResumable):
        factory.create_workflow_run()
    run._update_status("B")
    with pytest.raises(WorkflowNotResumable):
        factory.set_workflow_resume(resume_timeout=0)
    run._update_status("T")
    assert factory.create_workflow_run().status == "L"


def test_a_run_that_is_not_bound_has_no_id_and_no_status(requester: Requester) -> None:
    run = WorkflowRun(7, requester)
    assert repr(run) == "WorkflowRun(workflow_id=7, workflow_run_id=None, status=None)"
    for what in (
        lambda: run.workflow_run_id,
        lambda: run.status,
        run.log_heartbeat,
        run.peek_status,
        lambda: run._update_status("B"),
    ):
        with pytest.raises(WorkflowNotResumable, match=r"bind\(\) it first"):
            what()


def test_binding_twice_makes_one_run(sandbox: JobmonSandbox, requester: Requester) -> None:
    workflow = sandbox.make_workflow_in("E")
    run = WorkflowRun(workflow.workflow_id, requester, 10, 2.0)
    run.bind()
    bound = run.workflow_run_id
    run.bind()
    assert run.workflow_run_id == bound
    assert len(sandbox.runs(workflow.workflow_id)) == 2
    assert repr(run) == f"WorkflowRun(workflow_id={workflow.workflow_id}, workflow_run_id={bound}, status=L)"


def test_a_heartbeat_says_the_status_that_the_server_last_reported(
    sandbox: JobmonSandbox, requester: Requester
) -> None:
    run = WorkflowRun(sandbox.make_workflow_in("E").workflow_id, requester, 1000, 3.0)
    run.bind()
    sandbox.age_heartbeat(run.workflow_run_id, 2000)
    lost_at = sandbox.heartbeat_date(run.workflow_run_id)
    assert run.log_heartbeat() == "L"
    renewed = sandbox.heartbeat_date(run.workflow_run_id)
    assert (renewed - lost_at).total_seconds() > 1900
    for status in "BIOR":
        run._update_status(status)
    assert run.peek_status() == run.status == "R"
    sandbox.age_heartbeat(run.workflow_run_id, 2000)
    assert run.log_heartbeat() == "R"
    assert sandbox.run_status(run.workflow_run_id) == "R"


def test_a_refused_transition_leaves_the_truth(
    sandbox: JobmonSandbox, requester: Requester, caplog: pytest.LogCaptureFixture
) -> None:
    run = WorkflowRun(sandbox.make_workflow_in("E").workflow_id, requester)
    run.bind()
    run._update_status("D")
    assert run.status == "L"
    assert "Jobmon refused to move it to DONE (D)" in caplog.text
    with pytest.raises(ValueError, match="'X' is not a valid RunStatus"):
        run._update_status("X")


BAD_IDS = ["abc", "", "1/../2", True, 3.5, None]


@pytest.mark.parametrize("value", [*BAD_IDS, -1, 0])
def test_a_workflow_id_that_is_none_is_refused_before_any_request(value: Any) -> None:
    with pytest.raises(ValueError, match="workflow_id must be a positive integer"):
        WorkflowRunFactory(value, requester=None)


@pytest.mark.parametrize("value", [*BAD_IDS, -1, 0])
def test_a_run_takes_digits_for_an_id_too(stub: Callable[..., StubServer], value: Any) -> None:
    server = stub({})
    with pytest.raises(ValueError, match="workflow_id must be a positive integer"):
        WorkflowRun(value, Requester(server.url)).bind()
    assert not server.requests


def test_a_factory_takes_digits_for_an_id() -> None:
    requester = Requester("http://127.0.0.1:9")
    assert WorkflowRunFactory(" 7\n", requester).workflow_id == 7
    assert WorkflowRun("7", requester).workflow_id == 7
    assert repr(WorkflowRunFactory(7, requester)) == "WorkflowRunFactory(workflow_id=7)"


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "30", None, True])
def test_a_bad_time_out_is_refused_before_any_request(stub: Callable[..., StubServer], value: Any) -> None:
    server = stub({})
    factory = WorkflowRunFactory(7, Requester(server.url))
    with pytest.raises(ValueError, match="resume_timeout must be a number"):
        factory.set_workflow_resume(resume_timeout=value)
    with pytest.raises(ValueError, match="resume_timeout must be a number"):
        factory.wait_for_workflow_resume(value)
    assert not server.requests


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "30", True])
def test_a_bad_heartbeat_is_refused(stub: Callable[..., StubServer], value: Any) -> None:
    requester = Requester(stub({}).url)
    with pytest.raises(ValueError, match="workflow_run_heartbeat_interval must be a number"):
        WorkflowRun(7, requester, workflow_run_heartbeat_interval=value)
    with pytest.raises(ValueError, match="heartbeat_report_by_buffer must be a number"):
        WorkflowRun(7, requester, heartbeat_report_by_buffer=value)


def test_an_interval_of_zero_is_a_run_that_is_lost_at_once(
    sandbox: JobmonSandbox, requester: Requester
) -> None:
    run = WorkflowRun(sandbox.make_workflow_in("E").workflow_id, requester, 0)
    run.bind()
    sandbox.reap()
    assert sandbox.run_status(run.workflow_run_id) == "A"


# --- creating is not idempotent -----------------------------------------------------------------------------


@pytest.fixture
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)


@pytest.mark.parametrize("reply", [HANG_UP, Reply(500, b"oops"), Reply(502, b"bad gateway")])
def test_a_create_whose_reply_is_lost_is_not_sent_again(
    stub: Callable[..., StubServer], no_sleep: None, reply: Reply
) -> None:
    server = stub(reply)
    with pytest.raises((ServerUnreachable, ServerFailure)) as caught:
        WorkflowRunFactory(7, Requester(server.url)).create_workflow_run()
    error: Any = caught.value
    assert error.processed
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [423, 429])
def test_a_create_that_was_turned_away_is_sent_again(
    stub: Callable[..., StubServer], no_sleep: None, status: int
) -> None:
    server = stub(Reply(status, b""), {"workflow_run_id": 5, "status": "L"})
    assert WorkflowRunFactory(7, Requester(server.url)).create_workflow_run().workflow_run_id == 5
    assert len(server.requests) == 2


def test_a_create_that_nobody_heard_is_tried_again(no_sleep: None, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ServerUnreachable) as caught:
        WorkflowRunFactory(7, Requester("http://127.0.0.1:9", retries_attempts=3)).create_workflow_run()
    assert not caught.value.processed
    assert caplog.text.count("trying again") == 2


def test_every_error_has_one_base() -> None:
    assert issubclass(WorkflowNotResumable, JobmonError)

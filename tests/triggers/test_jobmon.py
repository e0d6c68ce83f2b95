"""Triggers on a real Jobmon, made anew from what Airflow stores of them."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from airflow.triggers.base import BaseTrigger

from airflow_jobmon_provider.hooks.jobmon import JobmonHook
from airflow_jobmon_provider.triggers.jobmon import WorkflowResumableTrigger, WorkflowRunHeartbeatTrigger
from dev.jobmon_sandbox import JobmonSandbox
from tests.airflow_task import fire, kill, stored
from tests.stub_server import HANG_UP, Reply, StubServer
from tests.stuck_tasks import stop_with_stuck_tasks
from tests.triggers.runs import beats, trigger, until

NOBODY = 987_654_321

pytestmark = pytest.mark.usefixtures("connection")


TRIGGERS = [
    WorkflowResumableTrigger(7),
    WorkflowResumableTrigger("7", "other", force_cleanup=True, deadline=123.5),  # type: ignore[arg-type]
    WorkflowResumableTrigger(7, poll_interval=2.5),
    WorkflowRunHeartbeatTrigger(5),
    WorkflowRunHeartbeatTrigger(5, "other", 10, 2.5, "until_done", 15, 1e9, 2e9, True, 1e8, 7, True, 60.0),
]


@pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda t: type(t).__name__)
def test_serialization_round_trips_in_plain_json(trigger: BaseTrigger) -> None:
    assert stored(trigger).serialize() == trigger.serialize()
    assert json.loads(json.dumps(trigger.serialize()[1])) == trigger.serialize()[1]


def test_no_secret_is_serialized(connection: Callable[..., None], sandbox: JobmonSandbox) -> None:
    connection(sandbox.url, login="alice", password="s3cret")
    for each in TRIGGERS:
        assert "s3cret" not in repr(each.serialize())
        assert "s3cret" not in repr(each)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"workflow_run_id": "1/../2"}, "workflow_run_id must be a positive integer"),
        ({"workflow_run_heartbeat_interval": 0}, "workflow_run_heartbeat_interval must be larger than 0"),
        ({"heartbeat_report_by_buffer": 1}, "heartbeat_report_by_buffer must be larger than 1"),
        ({"poll_interval": 0}, "poll_interval must be larger than 0"),
        ({"poll_interval": float("nan")}, "poll_interval must be a number"),
        ({"keep_alive": "always"}, "keep_alive must be one of 'never', 'until_bound', 'until_done'"),
        ({"handoff_deadline": -1}, "handoff_deadline must be a number"),
        ({"deadline": float("inf")}, "deadline must be a number"),
        ({"created_at": "now"}, "created_at must be a number"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        WorkflowRunHeartbeatTrigger(**{"workflow_run_id": 5, **arguments})


def test_bad_arguments_of_the_other(sandbox: JobmonSandbox) -> None:
    with pytest.raises(ValueError, match="workflow_id must be a positive integer"):
        WorkflowResumableTrigger(-1)
    with pytest.raises(ValueError, match="deadline must be a number"):
        WorkflowResumableTrigger(7, deadline=float("nan"))
    with pytest.raises(ValueError, match="poll_interval must be larger than 0"):
        WorkflowResumableTrigger(7, poll_interval=0)


def test_a_trigger_that_was_stored_before_it_had_a_longest_pause_is_loaded() -> None:
    path, arguments = WorkflowResumableTrigger(7, deadline=5.0).serialize()
    del arguments["poll_interval"]
    assert WorkflowResumableTrigger(**arguments).serialize() == (path, {**arguments, "poll_interval": None})


# --- WorkflowResumableTrigger -------------------------------------------------------------------------------


async def test_a_resumable_workflow_fires_at_once(sandbox: JobmonSandbox) -> None:
    workflow_id = sandbox.make_workflow_in("E").workflow_id
    assert await fire(WorkflowResumableTrigger(workflow_id)) == {
        "status": "success",
        "workflow_id": workflow_id,
        "server": f"{sandbox.url}/api/v2",
        "message": f"workflow {workflow_id} is resumable",
    }


async def test_it_fires_when_the_run_has_ended(sandbox: JobmonSandbox) -> None:
    workflow = sandbox.make_workflow_in("C")
    firing = asyncio.create_task(fire(WorkflowResumableTrigger(workflow.workflow_id)))
    route = f"/workflow/{workflow.workflow_id}/is_resumable"
    await until(lambda: sandbox.requests(route), "the first look")
    assert not firing.done()
    sandbox.put(f"/api/v2/workflow_run/{workflow.workflow_run_id}/update_status", {"status": "T"})
    ended = time.monotonic()
    assert (await firing)["status"] == "success"
    assert time.monotonic() - ended < 10


async def test_a_resumable_trigger_ends_at_its_deadline(sandbox: JobmonSandbox) -> None:
    workflow_id = sandbox.make_workflow_in("R").workflow_id
    started = time.monotonic()
    event = await fire(WorkflowResumableTrigger(workflow_id, deadline=time.time() + 1.5))
    assert 1.4 < time.monotonic() - started < 10
    assert event["status"] == "timeout"
    assert f"workflow {workflow_id} did not become resumable within 1." in event["message"]


async def test_a_deadline_that_is_over_is_one_look(sandbox: JobmonSandbox) -> None:
    workflow_id = sandbox.make_workflow_in("R").workflow_id
    event = await fire(WorkflowResumableTrigger(workflow_id, deadline=time.time() - 1000))
    assert event["status"] == "timeout"
    looks = f"/workflow/{workflow_id}/is_resumable"
    await until(
        lambda: sandbox.requests(looks), "the look"
    )  # the trigger waits for its reply a second at most
    assert len(sandbox.requests(looks)) == 1


async def test_a_forced_clean_up(connection: Callable[..., None], sandbox: JobmonSandbox) -> None:
    connection(extra={"route_prefix": "/api/v3"})
    workflow_id, run = stop_with_stuck_tasks(sandbox)
    assert (await fire(WorkflowResumableTrigger(workflow_id, force_cleanup=True)))["status"] == "success"
    assert sandbox.run_status(run) == "T"


async def test_a_server_that_cannot_clean_up(sandbox: JobmonSandbox) -> None:
    workflow_id = sandbox.make_workflow_in("R").workflow_id
    event = await fire(WorkflowResumableTrigger(workflow_id, force_cleanup=True))
    assert event["status"] == "error"
    assert "cannot force a clean-up; needs a newer one" in event["message"]


# --- WorkflowRunHeartbeatTrigger ----------------------------------------------------------------------------


async def test_a_run_is_kept_alive_handed_over_and_watched_to_its_end(sandbox: JobmonSandbox) -> None:
    """Rule 1, against the real reaper: the run lives only by these heartbeats while it is LINKING."""
    workflow = sandbox.make_workflow_in("L", good_for=3)
    run = workflow.workflow_run_id or 0
    update = f"/api/v2/workflow_run/{run}/update_status"
    sandbox.start_reaper(0.2)
    try:
        firing = asyncio.create_task(fire(trigger(run)))
        await until(lambda: len(beats(sandbox, run)) >= 6, "heartbeats for twice the window")
        assert sandbox.run_status(run) == "L"
        for status in "BIOR":
            await asyncio.to_thread(sandbox.put, update, {"status": status})
        bound_at = time.time()
        lost_at = sandbox.heartbeat_date(run)
        await until(lambda: beats(sandbox, run)[-1].time > bound_at + 2, "looks at the running run")
        assert sandbox.heartbeat_date(run) == lost_at
        # nobody beats for it now, so the reaper must see that its executor is dead
        event = await asyncio.wait_for(firing, 20)
    finally:
        sandbox.stop_reaper()
    assert event["status"] == "failed"
    assert event["workflow_run_status"] == "E"
    assert "executor died and Jobmon's reaper ended it" in event["message"]
    seen = beats(sandbox, run)
    linking = [r.time for r in seen if r.body["status"] == "L" and r.reply["status"] == "L"]
    assert max(b - a for a, b in itertools.pairwise(linking)) < 3
    after = [r for r in seen if r.time > bound_at + 0.1]
    assert {r.body["status"] for r in after[1:]} == {"G"}  # the first may have been on its way


async def test_a_trigger_fires_success_when_the_run_is_done(sandbox: JobmonSandbox) -> None:
    run = sandbox.make_workflow_in("D").workflow_run_id
    assert await fire(trigger(run)) == {
        "status": "success",
        "workflow_id": None,
        "workflow_run_id": run,
        "workflow_run_status": "D",
        "server": f"{sandbox.url}/api/v2",
        "message": f"workflow run {run} ended DONE (D): every task is done",
        "exit_code": None,
    }


async def test_a_bystander_sends_nothing_that_could_matter(sandbox: JobmonSandbox) -> None:
    run = sandbox.make_workflow_in("L", good_for=3600).workflow_run_id or 0
    lost_at = sandbox.heartbeat_date(run)
    firing = asyncio.create_task(fire(trigger(run, keep_alive="never")))
    await until(lambda: len(beats(sandbox, run)) >= 3, "looks")
    assert sandbox.heartbeat_date(run) == lost_at
    sandbox.put(f"/api/v2/workflow_run/{run}/update_status", {"status": "A"})
    assert (await firing)["workflow_run_status"] == "A"
    assert {r.body["status"] for r in beats(sandbox, run)} == {"G"}


async def test_until_done_keeps_a_running_run_alive(sandbox: JobmonSandbox) -> None:
    run = sandbox.make_workflow_in("R", good_for=3).workflow_run_id or 0
    firing = asyncio.create_task(fire(trigger(run, keep_alive="until_done")))
    await until(lambda: len([r for r in beats(sandbox, run) if r.body["status"] == "R"]) >= 5, "heartbeats")
    await asyncio.to_thread(sandbox.reap)
    assert sandbox.run_status(run) == "R"
    sandbox.put(f"/api/v2/workflow_run/{run}/update_status", {"status": "D"})
    assert (await firing)["status"] == "success"


async def test_a_run_that_no_executor_takes_is_aborted_at_the_hand_off_deadline(
    sandbox: JobmonSandbox,
) -> None:
    run = sandbox.make_workflow_in("L").workflow_run_id or 0
    event = await fire(trigger(run, handoff_deadline=time.time() + 1.2))
    assert event["status"] == "timeout"
    assert event["workflow_run_status"] == "A"
    assert event["message"].startswith(f"no executor took workflow run {run} within 1 s (handoff_timeout)")
    assert sandbox.run_status(run) == "A"


@pytest.mark.parametrize(("ours", "left"), [(True, "A"), (False, "L")])
async def test_the_deadline_of_the_whole_run(sandbox: JobmonSandbox, ours: bool, left: str) -> None:
    run = sandbox.make_workflow_in("L").workflow_run_id or 0
    event = await fire(trigger(run, deadline=time.time() + 1, owned=ours))
    assert event["status"] == "timeout"
    assert sandbox.run_status(run) == left


async def test_the_connections_heartbeat_is_used(
    connection: Callable[..., None], sandbox: JobmonSandbox
) -> None:
    heartbeat = {"workflow_run_heartbeat_interval": 7, "heartbeat_report_by_buffer": 2}
    connection(extra=heartbeat)
    run = sandbox.make_workflow_in("L").workflow_run_id or 0
    await fire(WorkflowRunHeartbeatTrigger(run, handoff_deadline=time.time() + 2))
    first, second = beats(sandbox, run)[:2]  # the first only reads the status
    assert (first.body["status"], second.body["next_report_increment"]) == ("G", 14)


async def test_a_connection_whose_heartbeat_would_come_too_late(
    connection: Callable[..., None], sandbox: JobmonSandbox
) -> None:
    connection(extra={"heartbeat_report_by_buffer": 0.5})
    event = await fire(WorkflowRunHeartbeatTrigger(5))
    assert event["status"] == "error"
    assert "heartbeat_report_by_buffer must be larger than 1" in event["message"]


# --- outages and final answers ------------------------------------------------------------------------------


async def test_an_outage_is_no_failure(sandbox: JobmonSandbox, logged: Callable[[], str]) -> None:
    """Rule 3, with a server that is killed and started again."""
    run = sandbox.make_workflow_in("L").workflow_run_id or 0
    firing = asyncio.create_task(fire(trigger(run)))
    await until(lambda: beats(sandbox, run), "a heartbeat")
    sandbox.stop_server()
    try:
        await until(lambda: "Jobmon is not answering" in logged(), "the warning")
    finally:
        await asyncio.to_thread(sandbox.start_server)
    sandbox.put(f"/api/v2/workflow_run/{run}/update_status", {"status": "A"})
    assert (await firing)["workflow_run_status"] == "A"
    assert logged().count(f"workflow run {run}: Jobmon is not answering; will keep trying") == 1
    assert logged().count(f"workflow run {run}: Jobmon is answering again after") == 1


@pytest.mark.parametrize("fault", [HANG_UP, Reply(503, b"busy"), Reply(423, b""), Reply(502, b"<html>")])
async def test_each_passing_fault_is_outlived(
    connection: Callable[..., None], stub: Callable[..., StubServer], fault: Reply
) -> None:
    connection(stub(fault, fault, {"status": "R"}, fault, {"status": "D"}).url)
    assert (await fire(trigger(5)))["status"] == "success"


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (Reply(401, b"who?"), "check the login, password or token"),
        (Reply(403, b"no"), "403"),
        (Reply(404, {"detail": "Not Found"}), "route prefix"),
        (Reply(200, b"<html>Log in</html>"), "is this Jobmon?"),
        (Reply(200, {"status": "?"}), "is not a status of a workflow run"),
        (Reply(500, {"error": {"type": "NoResultFound"}}), "workflow run 5 does not exist"),
    ],
)
async def test_a_final_answer_is_an_event_that_says_so(
    connection: Callable[..., None], stub: Callable[..., StubServer], reply: Reply, says: str
) -> None:
    server = stub(reply)
    connection(server.url)
    event = await fire(trigger(5))
    assert event["status"] == "error"
    assert event["workflow_run_status"] is None
    assert says in event["message"]
    assert server.url in event["message"]
    assert len(server.requests) == 1


async def test_unknown_ids_on_the_real_server(sandbox: JobmonSandbox) -> None:
    assert "does not exist" in (await fire(trigger(NOBODY)))["message"]
    assert "does not exist" in (await fire(WorkflowResumableTrigger(NOBODY)))["message"]


async def test_no_connection_is_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_jobmon_provider.triggers.jobmon._CONNECTION_TRIES", 2)
    event = await fire(WorkflowResumableTrigger(7, "nowhere"))
    assert event["status"] == "error"
    assert "connection 'nowhere' is not defined" in event["message"]


async def test_airflows_own_api_may_restart(
    sandbox: JobmonSandbox, monkeypatch: pytest.MonkeyPatch, logged: Callable[[], str]
) -> None:
    """The connection comes from Airflow's API server, which this cannot restart: the end-to-end tests can."""
    run = sandbox.make_workflow_in("D").workflow_run_id
    read = JobmonHook.aserver
    failures = [RuntimeError("API server error"), RuntimeError("API server error")]

    async def failing(self: JobmonHook) -> Any:
        if failures:
            raise failures.pop()
        return await read(self)

    monkeypatch.setattr(JobmonHook, "aserver", failing)
    assert (await fire(trigger(run)))["status"] == "success"
    assert logged().count("Connection jobmon_default cannot be read: API server error") == 2


async def test_a_connection_that_is_never_read_is_an_event_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def failing(self: JobmonHook) -> Any:
        raise RuntimeError("API server error")

    monkeypatch.setattr(JobmonHook, "aserver", failing)
    monkeypatch.setattr("airflow_jobmon_provider.triggers.jobmon._CONNECTION_TRIES", 2)
    event = await fire(trigger(5))
    assert event["status"] == "error"
    assert "connection 'jobmon_default' could not be read within" in event["message"]
    assert ": API server error. The triggerer must find it, too" in event["message"]


async def test_whatever_happens_the_task_learns_of_it(
    monkeypatch: pytest.MonkeyPatch, logged: Callable[[], str]
) -> None:
    """A trigger never dies by an exception, a bug of its own included."""
    monkeypatch.setattr("airflow_jobmon_provider.client.conversations.watch_run", lambda *a, **k: 1 / 0)
    event = await fire(trigger(5))
    assert event["status"] == "error"
    assert event["message"] == "unexpected ZeroDivisionError: division by zero"
    assert "Trigger failed unexpectedly" in logged()


@pytest.mark.parametrize(
    ("owned", "cancel", "status", "left"),
    [
        (True, True, "L", "A"),
        (True, False, "L", "A"),
        (True, True, "R", "C"),
        (True, False, "R", "R"),
        (False, True, "L", "L"),
    ],
)
async def test_a_user_who_ends_the_task_ends_a_run_that_is_its_own(
    sandbox: JobmonSandbox, owned: bool, cancel: bool, status: str, left: str
) -> None:
    workflow = sandbox.make_workflow_in(status)
    run = workflow.workflow_run_id or 0
    options = {"owned": owned, "workflow_id": workflow.workflow_id, "cancel_on_kill": cancel}
    await kill(trigger(run, **options))
    assert sandbox.run_status(run) == left


async def test_a_kill_while_jobmon_is_down_is_said(
    connection: Callable[..., None], logged: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_jobmon_provider.triggers.jobmon.ON_KILL_TIMEOUT", 0.5)
    connection("http://127.0.0.1:9")
    await kill(trigger(5, owned=True))
    assert "workflow run 5 is now out of reach" in logged()


async def test_a_kill_that_is_refused_is_said(
    connection: Callable[..., None], stub: Callable[..., StubServer], logged: Callable[[], str]
) -> None:
    server = stub(Reply(401, b"who?"))
    connection(server.url)
    await kill(trigger(5, owned=True))
    assert f"workflow run 5 could not be stopped: PUT {server.url}" in logged()


async def test_a_triggerer_that_shuts_down_cancels_nothing_at_jobmon(sandbox: JobmonSandbox) -> None:
    run = sandbox.make_workflow_in("L").workflow_run_id or 0
    firing = asyncio.create_task(fire(trigger(run)))
    await until(lambda: beats(sandbox, run), "a heartbeat")
    firing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await firing
    assert sandbox.run_status(run) == "L"


async def test_two_triggerers_for_a_moment_do_no_harm(sandbox: JobmonSandbox) -> None:
    run = sandbox.make_workflow_in("L").workflow_run_id or 0
    both = asyncio.gather(fire(trigger(run)), fire(trigger(run)))
    await until(lambda: len(beats(sandbox, run)) >= 4, "heartbeats")
    assert sandbox.run_status(run) == "L"
    sandbox.put(f"/api/v2/workflow_run/{run}/update_status", {"status": "A"})
    assert [event["workflow_run_status"] for event in await both] == ["A", "A"]


async def test_the_event_loop_is_never_blocked(sandbox: JobmonSandbox) -> None:
    """Rule 5. The bound is wide because the machine is shared; importing aiohttp alone takes longer."""
    run = sandbox.make_workflow_in("L").workflow_run_id or 0
    lags: list[float] = []

    async def tick() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            lags.append(time.monotonic() - before - 0.005)

    ticking = asyncio.create_task(tick())
    await fire(trigger(run, handoff_deadline=time.time() + 1))
    ticking.cancel()
    assert len(lags) > 50
    assert sorted(lags)[len(lags) // 2] < 0.01

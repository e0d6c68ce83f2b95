"""The table of sensors/jobmon.py: what Airflow's flags make of each end, in every mode, early and late."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from dev.jobmon_sandbox import JobmonSandbox, wait_until
from tests.airflow_task import TaskInstance
from tests.sensors.waiting import ending, how_it_ends, resumable, run_ended
from tests.stub_server import HANG_UP, Reply, StubServer

NOBODY = 987_654_321
RUNS, DONE = {"status": "R"}, {"status": "D"}
REFUSED = Reply(401, {"error": "who are you?"})
ALIEN = Reply(200, b"<html>a proxy's page</html>")

FLAGS: list[dict[str, bool]] = [{}, {"soft_fail": True}, {"never_fail": True}, {"silent_fail": True}]

pytestmark = pytest.mark.usefixtures("connection")

Make = Callable[..., Any]
Stub = Callable[..., StubServer]


@pytest.fixture(params=["poke", "reschedule", "deferrable"])
def mode(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options of a sensor for each way to wait."""
    how = {"deferrable": True} if request.param == "deferrable" else {"mode": request.param}
    return {**how, "poke_interval": 0.1}


@pytest.fixture(params=FLAGS, ids=lambda flags: next(iter(flags), "no flag"))
def flags(request: pytest.FixtureRequest) -> dict[str, bool]:
    made: dict[str, bool] = request.param
    return made


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


sensors = pytest.mark.parametrize("make", [resumable, run_ended])


def expected(flags: dict[str, bool], *row: str) -> str:
    """Return the table's cell: what stands in a row for no flag, soft_fail, never_fail and silent_fail."""
    return row[FLAGS.index(flags)]


def an_id(sandbox: JobmonSandbox, make: Make, status: str) -> int:
    workflow = sandbox.make_workflow_in(status)
    return workflow.workflow_id if make is resumable else workflow.workflow_run_id or 0


def later(sandbox: JobmonSandbox, run: int, status: str) -> threading.Thread:
    """Move a run on once a sensor has looked at it twice: on the worker, and where it waits then."""

    def act() -> None:
        looks = f"/workflow_run/{run}/log_heartbeat"
        wait_until(lambda: len(sandbox.requests(looks)) >= 2, 30, "two looks")
        sandbox.put(f"/api/v2/workflow_run/{run}/update_status", {"status": status})

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def coming_back(method: str, kwargs: dict[str, Any], make: Make, **options: Any) -> tuple[str, str]:
    """Return how a task ends that comes back from a deferral."""
    sensor = make(7, deferrable=True, **options)
    context: Any = {"ti": TaskInstance(next_method=method)}
    return ending(lambda: sensor.resume_execution(method, kwargs, context))


# --- The run has ended, and not DONE ------------------------------------------------------------------------

BAD_END = ("fails for good", "skipped", "skipped", "fails for good")


@pytest.mark.parametrize("status", ["E", "A"])
def test_a_run_that_had_ended_badly(
    sandbox: JobmonSandbox, mode: dict[str, Any], flags: dict[str, bool], status: str
) -> None:
    run = an_id(sandbox, run_ended, status)
    ended, reason = how_it_ends(run_ended(run, **mode, **flags))
    assert ended == expected(flags, *BAD_END)
    assert reason.startswith(f"workflow run {run} ended ")


def test_a_run_that_ends_badly_while_it_is_waited_for(
    sandbox: JobmonSandbox, mode: dict[str, Any], flags: dict[str, bool]
) -> None:
    run = an_id(sandbox, run_ended, "R")
    acting = later(sandbox, run, "E")
    ended, reason = how_it_ends(run_ended(run, **mode, **flags))
    acting.join()
    assert ended == expected(flags, *BAD_END)
    assert reason.startswith(f"workflow run {run} ended ERROR (E)")
    if ended == "skipped":
        assert reason.endswith(f"(skipped, not failed, as {next(iter(flags))}=True)")


# --- A limit is over ----------------------------------------------------------------------------------------


@sensors
def test_the_time_out(
    sandbox: JobmonSandbox, mode: dict[str, Any], flags: dict[str, bool], make: Make
) -> None:
    kind = "workflow" if make is resumable else "workflow run"
    number = an_id(sandbox, make, "R")
    ended, reason = how_it_ends(make(number, timeout=0.4, **mode, **flags))
    assert ended == expected(flags, "fails for good", "skipped", "skipped", "fails for good")
    assert reason.startswith(f"{kind} {number} ")


def test_the_execution_timeout(
    connection: Callable[..., None],
    silent: str,
    mode: dict[str, Any],
    flags: dict[str, bool],
) -> None:
    """The server is silent, as in mode reschedule the limit holds for each poke alone."""
    connection(silent)
    ended, reason = how_it_ends(run_ended(7, execution_timeout=timedelta(seconds=0.6), **mode, **flags))
    assert ended == expected(flags, "fails", "skipped", "skipped", "fails")
    if ended == "skipped":
        assert reason.startswith("execution_timeout is over: ")


def test_the_execution_timeout_while_deferred(
    connection: Callable[..., None], stub: Stub, flags: dict[str, bool]
) -> None:
    connection(stub(RUNS).url)
    limit = timedelta(seconds=1)
    sensor = run_ended(7, execution_timeout=limit, poke_interval=0.1, deferrable=True, **flags)
    ended, reason = how_it_ends(sensor)
    assert ended == expected(flags, "fails", "skipped", "skipped", "fails")
    assert reason.startswith("execution_timeout is over: ")


def test_the_execution_timeout_of_a_deferred_task_on_airflow_2(flags: dict[str, bool]) -> None:
    """Its scheduler may end the deferral before the trigger does."""
    ended, reason = coming_back("__fail__", {"error": "Trigger/execution timeout"}, run_ended, **flags)
    assert ended == expected(flags, "fails", "skipped", "skipped", "fails")
    assert reason.startswith("execution_timeout is over: Trigger/execution timeout")


@pytest.mark.parametrize("at_first", [True, False], ids=["at first", "later"])
def test_an_outage_is_waited_out_whatever_the_flags(
    connection: Callable[..., None],
    stub: Stub,
    mode: dict[str, Any],
    flags: dict[str, bool],
    at_first: bool,
) -> None:
    before = [] if at_first else [RUNS]
    connection(stub(*before, HANG_UP, Reply(503), DONE).url)
    assert how_it_ends(run_ended(7, **mode, **flags)) == ("succeeds", "")


# --- An error -----------------------------------------------------------------------------------------------

ERROR = ("fails", "fails", "skipped", "succeeds")


@pytest.mark.parametrize("at_first", [True, False], ids=["at first", "later"])
@pytest.mark.parametrize(("reply", "says"), [(REFUSED, "401"), (ALIEN, "is not JSON")])
def test_an_answer_that_is_an_error(
    connection: Callable[..., None],
    stub: Stub,
    logged: Callable[[], str],
    mode: dict[str, Any],
    flags: dict[str, bool],
    reply: Reply,
    says: str,
    at_first: bool,
) -> None:
    before = [] if at_first else [RUNS]
    connection(stub(*before, reply, *([DONE] if "silent_fail" in flags else [])).url)
    ended, reason = how_it_ends(run_ended(7, **mode, **flags))
    assert ended == expected(flags, *ERROR)
    if ended in ("skipped", "succeeds"):
        assert re.search(rf"\[error.*({says})", logged())
    else:
        assert re.search(says, reason)


@sensors
def test_an_id_that_nobody_has(
    sandbox: JobmonSandbox,
    logged: Callable[[], str],
    mode: dict[str, Any],
    flags: dict[str, bool],
    make: Make,
) -> None:
    ended, reason = how_it_ends(make(NOBODY, timeout=0.5, **mode, **flags))
    # A workflow that is not there never will be; a run may be there later, if its server is slow to commit.
    fails = "fails for good" if make is resumable else "fails"
    assert ended == expected(flags, fails, fails, "skipped", "fails for good")
    assert f"{NOBODY} does not exist" in reason
    if "silent_fail" in flags:
        assert f"{NOBODY} does not exist" in logged()


def test_a_connection_that_is_malformed(
    connection: Callable[..., None], mode: dict[str, Any], flags: dict[str, bool]
) -> None:
    connection(extra={"request_timeout": "soon"})
    ended, reason = how_it_ends(run_ended(7, timeout=0.5, **mode, **flags))
    assert ended == expected(flags, "fails", "fails", "skipped", "fails for good")
    assert "request_timeout in the extra must be a number" in reason


@pytest.mark.parametrize("how", [{"mode": "reschedule"}, {"deferrable": True}])
def test_a_connection_that_becomes_malformed(
    connection: Callable[..., None],
    stub: Stub,
    how: dict[str, Any],
    flags: dict[str, bool],
) -> None:
    """In mode poke it is read once."""
    connection(stub(RUNS).url)
    sensor = run_ended(7, timeout=2, poke_interval=0.3, **how, **flags)
    ended, reason = how_it_ends(sensor, between=lambda: connection(extra={"request_timeout": "soon"}))
    assert ended == expected(flags, "fails", "fails", "skipped", "fails for good")
    assert "request_timeout in the extra must be a number" in reason


def test_a_connection_that_is_not_defined(
    monkeypatch: pytest.MonkeyPatch, mode: dict[str, Any], flags: dict[str, bool]
) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_JOBMON_DEFAULT")
    monkeypatch.setattr("airflow_jobmon_provider.triggers.jobmon._CONNECTION_TRIES", 1)
    ended, reason = how_it_ends(run_ended(7, timeout=0.5, **mode, **flags))
    assert ended == expected(flags, "fails", "fails", "skipped", "fails for good")
    assert "jobmon_default" in reason


# --- No readable event, and bad arguments -------------------------------------------------------------------

UNREADABLE = [
    ("come_back", {"event": None}),
    ("come_back", {"event": {}, "limit": "execution_timeout"}),
    ("come_back", {"event": {"status": "success", "message": None}, "trigger": {"deadline": 4e9}}),
    ("execute_complete", {"event": "success"}),
    ("execute_complete", {}),
    ("come_back", {"event": {"status": "of tomorrow", "message": "workflow 7 is well"}}),
    ("__fail__", {"error": "Trigger failure", "traceback": ["ImportError"]}),
]


@pytest.mark.parametrize(("method", "kwargs"), UNREADABLE)
def test_an_event_that_cannot_be_read_fails_whatever_the_flags(
    flags: dict[str, bool], method: str, kwargs: dict[str, Any]
) -> None:
    ended, reason = coming_back(method, kwargs, run_ended, **flags)
    assert ended == "fails"
    assert reason
    assert "\n" not in reason


def test_an_id_that_a_template_renders_to_nonsense_fails_whatever_the_flags(
    mode: dict[str, Any], flags: dict[str, bool]
) -> None:
    sensor = run_ended("{{ params.id }}", **mode, **flags)
    sensor.workflow_run_id = "nonsense"
    ended, reason = how_it_ends(sensor)
    assert ended == "fails"
    assert "must be a positive integer" in reason


def test_pokes_that_would_lose_the_run_fail_whatever_the_flags(
    sandbox: JobmonSandbox, flags: dict[str, bool]
) -> None:
    run = an_id(sandbox, run_ended, "L")
    ended, reason = how_it_ends(run_ended(run, keep_alive="until_bound", poke_interval=120, **flags))
    assert (ended, sandbox.run_status(run)) == ("fails", "L")
    assert reason.startswith("poke_interval must be shorter than a heartbeat is good for (93 s)")


# --- What an older version has left -------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["error", "failed", "timeout"])
def test_an_error_that_an_older_version_deferred_ends_a_task_that_is_to_go_on_silently(status: str) -> None:
    event = {"status": status, "message": "workflow run 7: so it is"}
    ended, reason = coming_back("come_back", {"event": event}, run_ended, silent_fail=True)
    assert (ended, reason) == ("fails" if status == "error" else "fails for good", event["message"])

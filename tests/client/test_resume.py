"""Making a workflow ready for its next run, in simulated time: what is asked, in which order, how long."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest

from airflow_jobmon_provider.client.conversations import (
    LAST_LOOK,
    Ask,
    Conversation,
    Pause,
    Retries,
    ask_again,
    carry,
    in_time,
    wait_until_resumable,
)
from airflow_jobmon_provider.client.conversations.resume import begin_resume, check_at_rest, reset_tasks
from airflow_jobmon_provider.client.exceptions import (
    InvalidRequest,
    JobmonError,
    ResumeTimeout,
    ServerFailure,
    ServerUnreachable,
    WorkflowBusy,
    WorkflowNotFound,
)
from airflow_jobmon_provider.client.protocol import Call, routes

T = TypeVar("T")

REQUEST_TIMEOUT = 20.0
REFUSED = ServerUnreachable("refused", processed=False)
BROKEN = ServerFailure("502")
RETRIES = Retries(300, 10)
ONCE = Retries(0, 10)


@dataclass
class Server:
    """Answers a conversation as a story says, in simulated time. A route without an answer is silent.

    :param story: (seconds from the start, status of the workflow, whether it says that it is resumable).
    :param answers: end of a route → what it answers instead; a list in turn, the last for ever.
    """

    story: tuple[tuple[float, str, bool], ...] = ()
    answers: dict[str, Any] = field(default_factory=dict)
    now: float = 1000.0
    asked: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def run(self, conversation: Conversation[T]) -> T:
        return carry(conversation, self.answer, self.wait, self)

    def log(self, level: int, line: str, /, *args: object) -> None:
        self.notes.append(line % args)

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def answer(self, step: Ask) -> Any:
        route = step.call.route.split("/")[-1]
        if route.isdigit():
            route = "details"
        self.asked.append("probe" if (step.call.verb, route) == ("get", "increase_resources") else route)
        answers = self.answers.get(self.asked[-1])
        if isinstance(answers, list):
            answers = answers.pop(0) if len(answers) > 1 else answers[0]
        if answers is None:
            answers = self.by_story(route)
        if answers is None:
            limit = REQUEST_TIMEOUT if step.timeout is None else min(step.timeout, REQUEST_TIMEOUT)
            self.now += limit
            raise ServerUnreachable(f"no reply within {limit:g} s")
        if isinstance(answers, Exception):
            raise answers
        return step.call.read(answers)

    def by_story(self, route: str) -> Any:
        passed = [row for row in self.story if self.now >= 1000 + row[0]]
        if not passed:
            return None
        _, status, resumable = passed[-1]
        if route == "details":
            dates = {"wf_status_date": "2026-11-25 01:02:03", "wf_created_date": "2026-11-25T01:02:03"}
            return [{"wf_status": status, "wf_name": "w", **dates}]
        if route == "is_resumable":
            return {"workflow_is_resumable": resumable, "pending_kill_self": 0}
        return {}


def wait(server: Server, timeout: float = 300, signal: Call[None] | None = None, at_rest: bool = True) -> Any:
    return server.run(
        wait_until_resumable(
            7, timeout=timeout, force_cleanup=False, clock=server.clock, at_rest=at_rest, signal=signal
        )
    )


def begin(server: Server, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "reset_running_jobs": True,
        "force_cleanup": False,
        "increase_resources": False,
    }
    settings.update({"server": "http://jobmon", "retries": RETRIES, **options})
    return server.run(begin_resume(7, clock=server.clock, **settings))


SIGNAL = routes.set_resume(7, True)


# --- limits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0.5, 3, 45])
def test_a_silent_server_does_not_stretch_the_wait(timeout: float) -> None:
    server = Server()
    with pytest.raises(ServerUnreachable):
        wait(server, timeout=timeout)
    assert server.now - 1000 <= timeout + LAST_LOOK


def test_a_server_that_falls_silent_at_the_end_leaves_what_is_known() -> None:
    server = Server(((0, "R", False),), {"is_resumable": [{"workflow_is_resumable": False}] * 3 + [None]})
    server.answers["is_resumable"] = [{"workflow_is_resumable": False}, ServerUnreachable("no reply")]
    with pytest.raises(ResumeTimeout, match="a run of it is still alive"):
        wait(server, timeout=0.2)


def test_an_outage_at_the_end_is_what_is_told() -> None:
    server = Server(((0, "R", False),), {"is_resumable": [{"workflow_is_resumable": False}, BROKEN]})
    with pytest.raises(ServerFailure, match="502"):
        wait(server, timeout=30)


def test_a_check_once_has_the_transports_time() -> None:
    server = Server()
    with pytest.raises(ServerUnreachable, match="within 20 s"):
        wait(server, timeout=0)
    assert server.asked == ["is_resumable"]


def test_a_time_out_of_centuries_is_one() -> None:
    server = Server(((0, "R", False), (100, "F", True)))
    assert wait(server, timeout=1e300).status == "F"


def test_requests_are_cut_to_a_limit_and_keep_a_shorter_one_of_their_own() -> None:
    seen = []

    def conversation() -> Conversation[str]:
        seen.append((yield Ask(SIGNAL)))
        seen.append((yield Ask(SIGNAL, 0.5)))
        yield Pause(30)
        seen.append((yield Ask(SIGNAL)))
        return "end"

    limited = in_time(conversation(), 10, lambda: 0.0)
    steps = [next(limited)]
    steps += [limited.send("a"), limited.send("b")]
    assert [getattr(step, "timeout", None) for step in steps] == [10, 0.5, None]
    limited.send(None)
    with pytest.raises(StopIteration, match="end"):
        limited.send("c")
    assert seen == ["a", "b", "c"]


# --- asking again -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "sent"),
    [
        (routes.workflow_details(7), BROKEN, 3),
        (routes.workflow_details(7), REFUSED, 3),
        (routes.set_resume_state(7, True), BROKEN, 1),  # it may still be at work
        (routes.set_resume_state(7, True), REFUSED, 3),
        (routes.increase_resources(7), BROKEN, 1),
        (routes.increase_resources(7), ServerFailure("423", processed=False, retry_after=2), 3),
        (routes.workflow_details(7), InvalidRequest("400", 400), 1),
    ],
)
def test_what_may_have_been_done_is_not_sent_again(call: Call[Any], error: JobmonError, sent: int) -> None:
    server = Server(answers=dict.fromkeys(("details", "set_resume_state", "increase_resources"), error))
    with pytest.raises(type(error)):
        server.run(ask_again(call, Retries(300, 3), server.clock))
    assert len(server.asked) == sent


def test_asking_again_ends_with_its_time() -> None:
    server = Server(answers={"details": REFUSED})
    with pytest.raises(ServerUnreachable):
        server.run(ask_again(routes.workflow_details(7), Retries(8, 1000), server.clock))
    assert server.now - 1000 == pytest.approx(8, abs=0.01)
    assert all("refused; trying again in" in note for note in server.notes)


# --- runs that have missed the signal -----------------------------------------------------------------------


def test_a_run_that_is_about_to_begin_is_told_once_it_can_be() -> None:
    server = Server(((0, "O", True), (5, "R", False), (9, "H", True)))
    details = wait(server, signal=SIGNAL)
    assert details.status == "H"
    seen = [route for route in server.asked if route != "is_resumable"]
    assert seen.count("set_resume") >= 3  # again and again, until it was taken
    after = server.asked[len(server.asked) - server.asked[::-1].index("set_resume") :]
    assert "is_resumable" in after  # R has taken it: only looked at from then on
    assert len([note for note in server.notes if "taken a run of it and not begun" in note]) == 1


@pytest.mark.parametrize("status", ["G", "Q", "I", "O"])
def test_what_may_miss_the_signal_is_told_again(status: str) -> None:
    server = Server(((0, status, status in "IO"), (3, "R", False), (6, "F", True)))
    assert begin(server).signal is not None
    server.asked.clear()
    wait(server, signal=SIGNAL)
    assert server.asked.count("set_resume") >= 2


def test_a_running_one_is_told_once() -> None:
    server = Server(((0, "R", False),))
    begun = begin(server)
    assert not begun.at_rest
    assert begun.signal is None
    assert server.asked == ["details", "is_resumable", "set_resume"]
    assert server.notes == ["workflow 7: telling its run to stop (cold resume), at http://jobmon"]


def test_a_run_that_came_after_the_one_that_ended_is_left_alone() -> None:
    server = Server(((0, "F", False), (2, "R", False)))
    with pytest.raises(ResumeTimeout):
        wait(server, timeout=20, signal=SIGNAL)
    assert "set_resume" not in server.asked


def replies(*resumable: bool) -> list[dict[str, Any]]:
    return [{"workflow_is_resumable": yes, "pending_kill_self": 0} for yes in resumable]


@pytest.mark.parametrize("signal", [SIGNAL, None])
def test_an_executor_that_begins_between_two_questions_is_waited_for(signal: Call[None] | None) -> None:
    """It is INSTANTIATED at the first, which Jobmon calls resumable, and RUNNING at the second."""
    running, ended = [{"wf_status": "R", "wf_name": "w"}], [{"wf_status": "F", "wf_name": "w"}]
    server = Server((), {"is_resumable": replies(True, False, True), "details": [running, ended]})
    server.answers["set_resume"] = {}
    assert wait(server, signal=signal).status == "F"
    signals = [] if signal is None else ["set_resume"]
    assert server.asked == [
        *("is_resumable", "details", "is_resumable", *signals),
        *("is_resumable", "details"),
    ]


def test_a_run_that_was_ended_by_hand_may_have_left_its_workflow_running() -> None:
    server = Server(((0, "R", True),))
    assert wait(server).status == "R"


def test_a_dead_executor_before_it_began() -> None:
    server = Server(((0, "O", True),))
    with pytest.raises(ResumeTimeout) as caught:
        wait(server, timeout=10)
    line = str(caught.value)
    assert "workflow 7 did not become resumable within 10.0 s" in line
    assert "INSTANTIATED or LAUNCHED" in line
    assert 'PUT /workflow_run/<id of the run>/update_status with {"status": "E"}' in line
    assert "set_resume" not in server.asked


def test_what_jobmon_calls_resumable_is_enough_where_nothing_else_is_asked_for() -> None:
    server = Server(((0, "O", True),))
    assert wait(server, at_rest=False) is None
    assert server.asked == ["is_resumable"]


def test_an_outage_between_two_questions_is_waited_out() -> None:
    server = Server(((0, "F", True),), {"details": [BROKEN, None]})
    server.answers["details"] = [BROKEN, [{"wf_status": "F", "wf_name": "w"}]]
    assert wait(server).status_since is None
    server = Server(((0, "F", True),), {"details": BROKEN})
    with pytest.raises(ServerFailure, match="502"):
        wait(server, timeout=0)


def test_a_signal_that_is_not_answered_is_sent_again() -> None:
    server = Server(((0, "R", False), (60, "F", True)), {"set_resume": [BROKEN, {}]})
    wait(server, signal=SIGNAL)
    assert server.asked.count("set_resume") == 2


# --- before anything is changed -----------------------------------------------------------------------------


def test_a_workflow_at_rest_is_told_nothing() -> None:
    server = Server(((0, "F", True),))
    assert begin(server).at_rest
    assert server.asked == ["details", "is_resumable", "details"]


@pytest.mark.parametrize(
    ("answers", "options"),
    [
        ({"is_resumable": WorkflowNotFound("no such")}, {}),
        ({"probe": InvalidRequest("no route", 404)}, {"increase_resources": True}),
        ({"probe": InvalidRequest("no", 403)}, {"increase_resources": True}),
        ({"details": InvalidRequest("no", 403)}, {}),
    ],
)
def test_all_that_keeps_it_from_being_resumed_is_found_before_the_signal(
    answers: dict[str, Any], options: dict[str, Any]
) -> None:
    server = Server(((0, "R", False),), answers)
    with pytest.raises(JobmonError):
        begin(server, **options)
    assert "set_resume" not in server.asked
    assert not server.notes


def test_a_done_one_is_asked_nothing_else() -> None:
    server = Server(((0, "D", True),))
    assert begin(server, increase_resources=True).details.status == "D"
    assert server.asked == ["details"]


def test_the_probe_takes_405_for_a_yes() -> None:
    server = Server(((0, "R", False),), {"probe": InvalidRequest("POST only", 405)})
    begun = begin(server, increase_resources=True)
    assert not begun.at_rest
    assert begun.increase_resources


def test_by_default_resources_are_raised_if_the_server_can() -> None:
    can = Server(((0, "F", True),), {"probe": InvalidRequest("POST only", 405)})
    assert begin(can, increase_resources=None).increase_resources
    cannot = Server(((0, "F", True),), {"probe": InvalidRequest("no route", 404)})
    assert not begin(cannot, increase_resources=None).increase_resources
    assert cannot.notes == ["workflow 7: its tasks keep the resources that they have: no route"]


# --- the reset ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("story", [(0, "G", False), (0, "O", True)])
def test_a_run_that_came_meanwhile_is_in_the_way(story: tuple[float, str, bool]) -> None:
    server = Server((story,))
    with pytest.raises(WorkflowBusy, match="workflow 7 is not resumable any more: a run of it is alive"):
        server.run(check_at_rest(7, RETRIES, server.clock))


def test_a_reset_without_an_answer_says_that_it_may_be_at_work() -> None:
    server = Server()
    with pytest.raises(ServerUnreachable, match="may still be resetting the tasks of workflow 7") as caught:
        server.run(reset_tasks(7, True, RETRIES, server.clock))
    assert "a second reset does no harm" in str(caught.value)
    assert server.asked == ["set_resume_state"]


def test_a_reset_that_was_never_sent_says_only_that() -> None:
    server = Server(answers={"set_resume_state": REFUSED})
    with pytest.raises(ServerUnreachable) as caught:
        server.run(reset_tasks(7, True, ONCE, server.clock))
    assert str(caught.value) == "refused"

"""The state machine that carries our conversations on among executors, Jobmon's reaper and other clients.

It carries each conversation one exchange at a time, so that anything may happen between two of
them, and lets time pass by a clock of its own. After every step, the first two rules (docs/rules.md,
rules 1 and 2) are checked against the database and against what was sent.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from airflow_jobmon_provider.client.conversations import (
    Ask,
    Conversation,
    Driver,
    Pause,
    RunEnd,
    RunOutcome,
    create_run,
    end_without_executor,
    give_up_run,
    wait_until_resumable,
    watch_run,
)
from airflow_jobmon_provider.client.exceptions import (
    JobmonError,
    ResumeTimeout,
    ServerFailure,
    ServerUnreachable,
    WorkflowBusy,
)
from airflow_jobmon_provider.client.heartbeat import Heartbeat, KeepAlive
from airflow_jobmon_provider.client.lifecycle import STAGES, Mover, RunStatus, moves
from airflow_jobmon_provider.client.protocol import Call, CreatedRun, routes
from airflow_jobmon_provider.client.requester import Requester, ask
from dev.jobmon_sandbox import JobmonSandbox, SandboxError

INTERVAL, BUFFER = 30.0, 3.1
GOOD_FOR = INTERVAL * BUFFER  # seconds: far more than the real ones that pass meanwhile
SMALL_STEP = 10  # seconds by which whoever is in time is late at most
FAULTS_IN_ITS_STRIDE = 2  # after so many in a row, a heartbeat still comes in time

TERMINAL = frozenset(status.value for status in RunStatus if status.is_terminal)
LIVE = frozenset(status.value for status in RunStatus) - TERMINAL - {"G"}
BLOCKING = frozenset(status.value for status, stage in STAGES.items() if stage.blocks)


def codes(*movers: Mover) -> set[str]:
    """Return the moves that these may make, as the codes of the old and the new status."""
    return {old.value + new.value for old, new in moves(*movers)}


# What each request of ours may do to a run, old status and new: "-" is a run that was not there before.
MOVES = {
    "log_heartbeat": {"LL"},  # moves the heartbeat date; nothing else does
    "update_status": codes(Mover.CREATOR),
    "workflow_run": {"-L", "-G"},
    "set_resume": codes(Mover.SIGNAL),
    "reap": codes(Mover.REAPER) & {"LA"},  # we look for no others
}
# What ends a run as well whose executor has not begun.
MOVES_OF_AN_UNDERTAKER = {"update_status": codes(Mover.CREATOR, Mover.UNDERTAKER)}
OF_ANY_RUN = ("set_resume", "workflow_run", "reap")  # what a conversation about one run may do to another

SITUATIONS = (
    "a run was taken",
    "a run was reaped",
    "a run was aborted by giving up",
    "a lost reply was recovered from",
    "a running run was told to stop",
    "a second creator was refused",
    "a watch saw DONE",
    "a run in G was looked at",
    "a run that did not begin was ended",
    "a run was told to stop once it had begun",
)


@dataclass(frozen=True)
class Row:
    """A run as the database has it.

    :param lost: whether its heartbeat date has passed, which time does by itself.
    :param workflow: whose run it is.
    """

    status: str
    heartbeat_date: str = ""
    lost: bool = field(default=False, compare=False)
    workflow: int = field(default=0, compare=False)


class Fault(Enum):
    """What becomes of a request."""

    NONE = "none"
    NOT_REACHED = "not reached"
    REPLY_LOST = "reply lost"


@dataclass(eq=False)
class Talk:
    """A conversation of ours that is under way.

    :param kind: create, watch, look, resume, give up, bury; those of a task: try, trigger, kill.
    :param run: the run that it is about; 0: not about one.
    :param workflow: the workflow that it is about.
    :param startup_timeout: seconds after which it ends a run whose executor has not begun; None: it does not.
    :param due: when it wants to go on, by the machine's clock.
    :ivar driver: drives the conversation.
    :ivar told: status that the server last reported to it.
    :ivar all_told: all of those.
    :ivar faults: how many of its requests in a row had no reply.
    :ivar spoilt: how many were not reached, or their reply lost, ever.
    :ivar answered: how many had one.
    :ivar made: runs in L that its last request has made, if it was told of that.
    :ivar lost: runs that it made and was not told of.
    :ivar blocked: whether a run was in the way of its last request.
    """

    kind: str
    conversation: Conversation[Any]
    run: int = 0
    workflow: int = 0
    startup_timeout: float | None = None
    step: Ask | Pause | None = None
    due: float = 0.0
    told: str | None = None
    all_told: set[str] = field(default_factory=set)
    faults: int = 0
    spoilt: int = 0
    answered: int = 0
    made: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    blocked: bool = False

    def __post_init__(self) -> None:
        self.driver = Driver(self.conversation, logging.getLogger(__name__))


@dataclass
class World:
    """Where the machine runs, and which situations it has met.

    :param database: the sandbox's, kept open because it is read after each exchange.
    """

    sandbox: JobmonSandbox
    database: sqlite3.Connection
    requester: Requester
    prefix: str
    original: int
    seen: Counter[str] = field(default_factory=Counter)

    def fresh(self) -> int:
        """Return a workflow that was never run."""
        return self.sandbox.copy_workflow(self.original, 1)[0]


def only_if(condition: Callable[[Any], object]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a rule do nothing where it does not apply.

    Not Hypothesis's precondition: what it draws may not depend on the server, which real time moves, too.
    """

    def decorate(act: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(act)
        def acting(machine: Any, *args: Any, **kwargs: Any) -> None:
            if condition(machine):
                act(machine, *args, **kwargs)

        return acting

    return decorate


class Interleavings(RuleBasedStateMachine):
    """One workflow, and everybody who has to do with it.

    ``pick`` chooses among those that a rule can apply to.
    """

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.workflow = world.fresh()
        self.workflows = [self.workflow]
        self.now = 1000.0
        self.talks: list[Talk] = []
        self.unwatched: list[int] = []  # created a moment ago, and about to be watched
        self.ours: list[int] = []  # created by us, whoever watches it
        self.kept: set[int] = set()  # LINKING runs that must not be lost: somebody of ours is in time
        self.good_since: dict[int, float] = {}  # when a run's heartbeat date was last moved
        self.taken_since: dict[int, float] = {}
        self.executors: dict[int, str] = {}  # runs with a live executor, and the status that it knows
        self.bereft: set[int] = set()  # runs whose executor died
        self.ended: dict[int, str] = {}
        self.rows: dict[int, Row] = {}

    def clock(self) -> float:
        return self.now

    def saw(self, situation: str) -> None:
        self.world.seen[situation] += 1
        with contextlib.suppress(hypothesis.errors.InvalidArgument):  # a script is no example
            hypothesis.event(situation)

    # --- The database --------------------------------------------------------------------------------------

    def read(self) -> dict[int, Row]:
        sql = (
            "SELECT id, status, heartbeat_date, datetime(heartbeat_date) <= datetime('now'), workflow_id"
            f" FROM workflow_run WHERE workflow_id IN ({self.placeholders})"
        )
        rows = self.world.database.execute(sql, self.workflows).fetchall()
        return {run: Row(status, date, bool(lost), workflow) for run, status, date, lost, workflow in rows}

    @property
    def placeholders(self) -> str:
        return ", ".join("?" * len(self.workflows))

    def statuses(self, rows: dict[int, Row], workflow: int = 0) -> set[str]:
        """Return the statuses of one workflow's runs; 0: of the machine's."""
        return {row.status for row in rows.values() if row.workflow == (workflow or self.workflow)}

    @invariant()
    def the_rules_hold(self) -> None:
        self.rows = self.read()
        for workflow in self.workflows:
            rows = {run: row.status for run, row in self.rows.items() if row.workflow == workflow}
            alive = {run: status for run, status in rows.items() if status in LIVE}
            assert len(alive) <= 1, f"two live runs: {alive}"
        for run, status in self.ended.items():
            assert self.rows[run].status == status, f"run {run} had ended {status}"
        self.ended |= {run: row.status for run, row in self.rows.items() if row.status in TERMINAL}
        for run in self.kept:
            row = self.rows[run]
            assert not (row.status == "L" and row.lost), f"run {run} is lost, and was kept alive"

    # --- Time ----------------------------------------------------------------------------------------------

    def age(self, seconds: int) -> None:
        self.now += seconds
        sql = (
            "UPDATE workflow_run SET heartbeat_date = datetime(heartbeat_date, ?)"
            f" WHERE workflow_id IN ({self.placeholders})"
        )
        self.world.database.execute(sql, (f"-{seconds} seconds", *self.workflows))

    @rule(seconds=st.sampled_from([1, 10, 50, 120]), reaper=st.booleans())
    def time_passes_and_all_are_punctual(self, seconds: int, reaper: bool) -> None:
        over = self.now + seconds
        while self.now < over:
            self.catch_up()
            while due := self.due():
                self.exchange(due[0], Fault.NONE)
            for run, status in list(self.executors.items()):
                if status == "R" and self.now - self.good_since[run] >= INTERVAL:
                    self.work(run)
            self.age(min(SMALL_STEP, int(over - self.now)))
            self.the_rules_hold()
        if reaper:
            self.the_reaper_comes_by()

    def catch_up(self) -> None:
        """Begin what is to be begun."""
        while self.unwatched:
            self.watch(0)

    @rule(seconds=st.sampled_from([20, 100, 200]))
    def time_passes_and_nobody_is_scheduled(self, seconds: int) -> None:
        self.kept.clear()
        self.age(seconds)

    # --- Us ------------------------------------------------------------------------------------------------

    def due(self) -> list[Talk]:
        return [talk for talk in self.talks if talk.due <= self.now]

    def begin(
        self, kind: str, conversation: Conversation[Any], run: int = 0, startup_timeout: float | None = None
    ) -> None:
        talk = Talk(kind, conversation, run, self.workflow, startup_timeout)
        self.talks.append(talk)
        self.go_on(talk)

    def go_on(self, talk: Talk, act: Callable[[Driver[Any]], Ask | Pause] = next) -> None:
        """Carry a conversation to its next request, its next pause, or its end."""
        try:
            step = act(talk.driver)
        except StopIteration as end:
            self.talks.remove(talk)
            getattr(self, f"{talk.kind}_returned")(talk, end.value)
        except JobmonError as error:
            self.talks.remove(talk)
            getattr(self, f"{talk.kind}_raised", self.raised)(talk, error)
        else:
            talk.step = step
            talk.due = self.now + (step.seconds if isinstance(step, Pause) else 0.0)

    def exchange(self, talk: Talk, fault: Fault) -> None:
        """Send the request that a conversation wants to send, and give it the reply."""
        if isinstance(talk.step, Pause):
            self.go_on(talk)
        if talk not in self.talks or isinstance(talk.step, Pause):
            return  # it needed no request
        assert isinstance(talk.step, Ask)
        call = talk.step.call
        before = self.read()
        reply: Any = None
        error: JobmonError | None = None
        if fault is Fault.NOT_REACHED:
            error = ServerUnreachable("not reached", processed=False)
        else:
            reply, error = self.send(talk, call)
            if fault is Fault.REPLY_LOST:
                reply, error = None, ServerUnreachable("reply lost")
        after = self.read()
        self.check_what_it_did(talk, call, before, after)
        self.remember(talk, call, before, after, reply, error)
        talk.driver.reply, talk.driver.error = reply, error
        self.go_on(talk)
        self.check_what_follows(talk, call, after, error)

    def send(self, talk: Talk, call: Call[Any]) -> tuple[Any, JobmonError | None]:
        """Send a request, and return the reply, or what came instead."""
        try:
            return ask(self.world.requester, call, tenacious=False), None
        except JobmonError as error:
            return None, error

    def check_what_follows(
        self, talk: Talk, call: Call[Any], after: dict[int, Row], error: JobmonError | None
    ) -> None:
        if talk.kind in ("watch", "look") and talk.told in TERMINAL:
            assert talk not in self.talks, f"run {talk.run} has ended {talk.told}, and it is still watched"
        if self.world.prefix == "/api/v3" and call.route == "/lost_workflow_run" and error is None:
            for run, row in after.items():
                if row.status == "L" and row.lost and row.workflow == talk.workflow:
                    # whoever finds it in the way ends it
                    assert isinstance(talk.step, Ask)
                    assert talk.step.call.route == f"/workflow_run/{run}/reap"

    def may_say(self, talk: Talk) -> set[str | None]:
        """G reads; anything else may move the run, unless it is what the server has last said."""
        return {"G", talk.told}

    def check_what_it_did(
        self, talk: Talk, call: Call[Any], before: dict[int, Row], after: dict[int, Row]
    ) -> None:
        what = call.route.rpartition("/")[2]
        if what == "log_heartbeat":
            assert call.message["status"] in self.may_say(talk), f"{talk.kind} says {call.message}"
        undertakes = talk.kind == "bury" or talk.startup_timeout is not None
        allowed = (MOVES | MOVES_OF_AN_UNDERTAKER if undertakes else MOVES).get(what, set())
        for run, new in after.items():
            old = before.get(run, Row("-"))
            if old == new:
                continue
            move = old.status + new.status
            assert move in allowed, f"{talk.kind}: {call.verb} {call.route} moved run {run}: {move}"
            assert old.status == "-" or (old.heartbeat_date == new.heartbeat_date) == (move != "LL")
            # Jobmon has no signal to one run: it is the workflow's that is told to stop
            assert talk.run in (0, run) or what in OF_ANY_RUN, f"{talk.kind} moved another's run"
            if move in ("BE", "IE", "OE") and talk.startup_timeout is not None:
                assert self.now - self.taken_since[run] >= talk.startup_timeout
                self.saw("a run that did not begin was ended")

    def remember(
        self,
        talk: Talk,
        call: Call[Any],
        before: dict[int, Row],
        after: dict[int, Row],
        reply: Any,
        error: JobmonError | None,
    ) -> None:
        linked = {run for run in after.keys() - before.keys() if after[run].status == "L"}
        for run in linked:
            self.good_since[run] = self.now
        # A refusal is an answer, too.
        silent = isinstance(error, (ServerFailure, ServerUnreachable))
        talk.faults = talk.faults + 1 if silent else 0
        talk.spoilt += isinstance(error, ServerUnreachable)
        talk.answered += not silent
        talk.made = set() if silent else linked
        talk.lost |= linked if silent else set()
        talk.blocked = bool(self.statuses(before, talk.workflow) & BLOCKING)
        if isinstance(reply, RunStatus):
            talk.told = reply.value
            talk.all_told.add(reply.value)
        self.remember_life(talk, call, before, after, silent)
        if call.route.endswith("/set_resume"):
            self.notice_a_stop(before, after, talk)
        if talk.kind == "give_up" and before[talk.run].status == "L" and after[talk.run].status == "A":
            self.saw("a run was aborted by giving up")

    def remember_life(
        self, talk: Talk, call: Call[Any], before: dict[int, Row], after: dict[int, Row], silent: bool
    ) -> None:
        """Remember for how long a run is kept alive."""
        if call.route.endswith("/log_heartbeat") and call.message["status"] == "L":
            if before[talk.run].status == after[talk.run].status == "L" and talk.told is not None:
                self.good_since[talk.run] = self.now
            if talk.told == "L" and not silent:
                self.kept.add(talk.run)
        if talk.faults > FAULTS_IN_ITS_STRIDE:
            self.kept.discard(talk.run)

    def notice_a_stop(self, before: dict[int, Row], after: dict[int, Row], talk: Talk | None = None) -> None:
        if any(old.status == "R" and after[run].status in "CH" for run, old in before.items()):
            self.saw("a running run was told to stop")
            if talk is not None and talk.kind == "give_up" and talk.all_told & set("IO"):
                self.saw("a run was told to stop once it had begun")

    def raised(self, talk: Talk, error: JobmonError) -> None:
        raise AssertionError(f"{talk.kind} of run {talk.run} raised") from error

    @initialize(
        perhaps_lost=st.booleans(), fault=st.sampled_from(Fault), taken=st.booleans(), far=st.integers(0, 3)
    )
    def a_task_starts(self, perhaps_lost: bool, fault: Fault, taken: bool, far: int) -> None:
        self.create(perhaps_lost, 600)
        self.exchange(self.talks[-1], fault)
        self.the_rules_hold()
        if taken and self.linking():
            self.an_executor_takes_the_run(far)

    @rule(perhaps_lost=st.booleans(), timeout=st.sampled_from([0, 60, 600]))
    @only_if(lambda self: sum(talk.kind == "create" for talk in self.talks) < 2)
    def create(self, perhaps_lost: bool, timeout: float) -> None:
        creating = create_run(
            self.workflow,
            user="alice",
            good_for=GOOD_FOR,
            timeout=timeout,
            perhaps_lost=perhaps_lost,
            clock=self.clock,
        )
        self.begin("create", creating)

    def create_returned(self, talk: Talk, created: CreatedRun) -> None:
        run = created.workflow_run_id
        assert talk.made == {run}, f"run {run} is not what the last request has made: {talk.made}"
        assert created.status is RunStatus.LINKING
        self.ours.append(run)
        self.unwatched.append(run)
        self.kept.add(run)
        if talk.lost:
            assert {self.read()[lost].status for lost in talk.lost} <= TERMINAL
            self.saw("a lost reply was recovered from")

    def create_raised(self, talk: Talk, error: JobmonError) -> None:
        if isinstance(error, (ServerFailure, ServerUnreachable)):
            assert talk.faults
        elif isinstance(error, WorkflowBusy):
            self.saw("a second creator was refused")
        else:
            assert self.world.sandbox.workflow_status(self.workflow) in "QRD", error

    @rule(
        pick=st.integers(0, 3),
        handoff_timeout=st.sampled_from([None, None, 100.0]),
        startup_timeout=st.sampled_from([None, 150.0]),
    )
    @only_if(lambda self: self.unwatched or self.without_a_watch())
    def watch(
        self, pick: int, handoff_timeout: float | None = None, startup_timeout: float | None = None
    ) -> None:
        """A triggerer takes a run, the first one or another after that."""
        if self.unwatched:
            run = self.unwatched.pop(0)
        else:
            runs = self.without_a_watch()
            run = runs[pick % len(runs)]
        watching = watch_run(
            run,
            keep_alive=KeepAlive.UNTIL_BOUND,
            heartbeat=Heartbeat(INTERVAL, BUFFER),
            poll_interval=60,
            clock=self.clock,
            handoff_timeout=handoff_timeout,
            startup_timeout=startup_timeout,
            owned=True,
        )
        self.begin("watch", watching, run, startup_timeout)

    def without_a_watch(self) -> list[int]:
        busy = {talk.run for talk in self.talks}
        return [run for run in self.ours if run not in busy and run not in self.unwatched]

    def watch_returned(self, talk: Talk, end: RunEnd) -> None:
        status = self.read()[talk.run].status
        if end.outcome is RunOutcome.HANDOFF_TIMEOUT and not end.answered:
            self.kept.discard(talk.run)  # it could not be aborted, and nobody keeps it alive any more
            assert talk.faults
            return
        assert status in TERMINAL
        assert end.status == status
        assert (end.outcome is RunOutcome.DONE) == (status == "D")
        if end.outcome is RunOutcome.HANDOFF_TIMEOUT:
            assert status == "A"
        if status == "D":
            self.saw("a watch saw DONE")

    @rule(pick=st.integers(0, 3))
    @only_if(lambda self: self.rows and not any(talk.kind == "look" for talk in self.talks))
    def look_on(self, pick: int) -> None:
        """A sensor of ours waits for a run that is not its own, whatever it is in."""
        run = sorted(self.rows)[pick % len(self.rows)]
        looking = watch_run(
            run,
            keep_alive=KeepAlive.UNTIL_BOUND,
            heartbeat=Heartbeat(INTERVAL, BUFFER),
            poll_interval=60,
            clock=self.clock,
            timeout=200.0,
            startup_timeout=100.0,  # of no effect, as the run is not its own
        )
        self.begin("look", looking, run)

    def look_returned(self, talk: Talk, end: RunEnd) -> None:
        self.kept.discard(talk.run)
        if talk.told == "G":
            self.saw("a run in G was looked at")

    @rule(pick=st.integers(0, 3), stop=st.booleans())
    @only_if(lambda self: self.unwatched or any(talk.kind == "watch" for talk in self.talks))
    def give_up(self, pick: int, stop: bool) -> None:
        """A user ends the task: whoever watches its run stops, and gives it up."""
        watches = [talk for talk in self.talks if talk.kind == "watch"]
        if self.unwatched:
            run = self.unwatched.pop(0)
        else:
            talk = watches[pick % len(watches)]
            run = talk.run
            self.drop(talk)
        self.kept.discard(run)
        stop_workflow = self.workflow if stop else None
        giving_up = give_up_run(run, stop_workflow=stop_workflow, timeout=20, clock=self.clock)
        self.begin("give_up", giving_up, run)

    def give_up_returned(self, talk: Talk, status: RunStatus | None) -> None:
        assert (status is None) == (not talk.answered)
        if status is not None:
            left = self.read()[talk.run].status
            assert left != "L", f"run {talk.run} was given up, and is LINKING"
            assert not status.is_terminal or left == status

    @rule(cold=st.booleans(), timeout=st.sampled_from([0, 300]))
    @only_if(lambda self: not any(talk.kind == "resume" for talk in self.talks))
    def resume(self, cold: bool, timeout: float) -> None:
        def resuming() -> Conversation[None]:
            yield Ask(routes.set_resume(self.workflow, cold))
            yield from wait_until_resumable(
                self.workflow, timeout=timeout, force_cleanup=False, clock=self.clock
            )

        self.begin("resume", resuming())

    def resume_returned(self, talk: Talk, result: None) -> None:
        alive = self.statuses(self.read()) & BLOCKING
        assert not alive, f"resumable, with live runs {alive}"

    def resume_raised(self, talk: Talk, error: JobmonError) -> None:
        if isinstance(error, ResumeTimeout):
            assert talk.blocked
        else:
            assert talk.faults
            assert isinstance(error, ServerUnreachable)

    @rule(pick=st.integers(0, 3))
    @only_if(lambda self: self.bereft)
    def bury(self, pick: int) -> None:
        """A worker sees that the executor that it had started has died."""
        run = sorted(self.bereft)[pick % len(self.bereft)]
        self.bereft.discard(run)
        self.begin("bury", end_without_executor(run, clock=self.clock), run)

    def bury_returned(self, talk: Talk, status: RunStatus) -> None:
        assert status == self.read()[talk.run].status
        assert status not in ("L", "B", "I", "O")

    @rule(pick=st.integers(0, 5), fault=st.sampled_from([Fault.NONE, *Fault]))
    @only_if(lambda self: self.due())
    def one_of_us_goes_on(self, pick: int, fault: Fault) -> None:
        due = self.due()
        self.exchange(due[pick % len(due)], fault)

    @rule()
    @only_if(lambda self: self.due())
    def each_of_us_goes_on(self) -> None:
        for talk in self.due():
            self.exchange(talk, Fault.NONE)

    @rule(pick=st.integers(0, 5))
    @only_if(lambda self: self.talks)
    def one_of_us_dies(self, pick: int) -> None:
        """A worker or triggerer is killed, wherever it is."""
        self.drop(self.talks[pick % len(self.talks)])

    def drop(self, talk: Talk) -> None:
        self.talks.remove(talk)
        self.kept.discard(talk.run)
        talk.conversation.close()

    # --- Executors, the reaper, others ---------------------------------------------------------------------

    def put_status(self, run: int, status: str) -> str:
        path = f"{self.world.prefix}/workflow_run/{run}/update_status"
        return str(self.world.sandbox.put(path, {"status": status})["status"])

    def linking(self) -> list[int]:
        return [run for run, row in self.rows.items() if row.status == "L"]

    @rule(far=st.integers(0, 3))
    @only_if(lambda self: self.linking())
    def an_executor_takes_the_run(self, far: int) -> None:
        run = self.linking()[0]
        assert self.put_status(run, "B") == "B"
        self.executors[run] = "B"
        self.taken_since[run] = self.now
        self.saw("a run was taken")
        for _ in range(far):
            self.work(run)

    @rule(pick=st.integers(0, 3))
    @only_if(lambda self: self.executors)
    def an_executor_goes_on(self, pick: int) -> None:
        self.work(list(self.executors)[pick % len(self.executors)])

    def work(self, run: int) -> None:
        """Do what Jobmon's own client does next, by the status that it knows."""
        known = self.executors[run]
        if known == "R":
            path = f"{self.world.prefix}/workflow_run/{run}/log_heartbeat"
            beat = {"status": known, "next_report_increment": GOOD_FOR}
            now = self.world.sandbox.post(path, beat)["status"]
        else:
            now = self.put_status(run, {"B": "I", "I": "O", "O": "R", "C": "T", "H": "T"}[known])
        if now == "R":
            if known == "R":
                self.good_since[run] = self.now
            else:
                self.good_since.setdefault(run, self.now)
        self.learn(run, now)

    def learn(self, run: int, status: str) -> None:
        self.executors[run] = status
        if status in TERMINAL:
            del self.executors[run]

    @rule(how=st.sampled_from("DDES"))
    @only_if(lambda self: "R" in self.executors.values())
    def an_executor_ends_the_run(self, how: str) -> None:
        run = next(run for run, status in self.executors.items() if status == "R")
        self.learn(run, self.put_status(run, how))

    @rule(pick=st.integers(0, 3))
    @only_if(lambda self: self.executors)
    def an_executor_dies(self, pick: int) -> None:
        run = list(self.executors)[pick % len(self.executors)]
        del self.executors[run]
        self.bereft.add(run)

    @rule()
    def the_reaper_comes_by(self) -> None:
        before = self.read()
        self.world.sandbox.reap()
        after = self.read()
        for run, old in before.items():
            new = after[run]
            if old.status == "L" and self.now - self.good_since[run] > GOOD_FOR:
                assert new.status == "A", f"run {run} is nobody's and lost, and {new.status}"
            if run in self.kept:
                assert new.status == old.status or old.status != "L"
            if new.status != old.status:
                self.saw("a run was reaped")

    @rule(good_for=st.sampled_from([0, 40, 300]))
    def another_creates_a_run(self, good_for: int) -> None:
        before = self.read()
        blocked = bool(self.statuses(before) & LIVE)
        body = {"workflow_id": self.workflow, "user": "bob", "jobmon_version": "3.4.8"}
        path = f"{self.world.prefix}/workflow_run"
        try:
            reply = self.world.sandbox.post(path, {**body, "next_report_increment": good_for})
        except SandboxError:  # 3.4.8 fails where the other run is in I or O
            assert self.statuses(before) & set("IO")
            return
        run = reply["workflow_run_id"]
        assert run is None or not blocked
        if run is not None:
            self.good_since[run] = self.now - GOOD_FOR + good_for

    @rule(cold=st.booleans())
    @only_if(lambda self: any(row.status in "BR" for row in self.rows.values()))
    def another_resumes_the_workflow(self, cold: bool) -> None:
        before = self.read()
        path = f"{self.world.prefix}/workflow/{self.workflow}/set_resume"
        self.world.sandbox.post(path, {"reset_running_jobs": cold})
        self.notice_a_stop(before, self.read())

    def teardown(self) -> None:
        """Whatever has happened: once all of us are gone, nothing is left that the reaper cannot end."""
        for talk in list(self.talks):
            self.drop(talk)
        self.time_passes_and_nobody_is_scheduled(400)
        self.the_reaper_comes_by()
        self.the_rules_hold()
        assert not {row.status for row in self.rows.values()} & set("LRCH")


def say(machine: Interleavings, *faults: Fault) -> None:
    """Let the conversation that began last exchange so many requests."""
    for fault in faults or (Fault.NONE,):
        machine.exchange(machine.talks[-1], fault)
        machine.the_rules_hold()


def explore(machine: Callable[[], Interleavings], *, examples: int) -> None:
    """Let chance choose the steps.

    :param machine: returns a new one.
    :param examples: how many times, each of 45 steps, of which a third does not apply.
    """
    run_state_machine_as_test(
        machine,  # type: ignore[arg-type]  # any factory will do
        settings=hypothesis.settings(
            max_examples=examples,
            stateful_step_count=45,
            deadline=None,
            database=None,
            print_blob=True,
            # Each step asks a real server, which takes milliseconds, and tens of them on a busy machine.
            suppress_health_check=[hypothesis.HealthCheck.too_slow],
        ),
    )

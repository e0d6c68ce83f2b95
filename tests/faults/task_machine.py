"""The state machine with a task of ours, whose tries follow one another as Airflow has them do.

Operator and trigger run as they are, each in a process that the machine carries on, kills or tells to end.
What is checked: a run is stopped, and its tasks are reset, only if a user has ended or cleared this very
task; and nothing is sent about a run to another server than its own.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from airflow_jobmon_provider.client.conversations import Ask, Driver, Pause
from airflow_jobmon_provider.client.exceptions import JobmonError, NotAuthorized
from airflow_jobmon_provider.client.protocol import Call, CreatedRun
from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator
from tests.airflow_task import ApiTaskInstance, Tries, fire, resume, stored
from tests.faults.gate import Gate
from tests.faults.machine import (
    BUFFER,
    INTERVAL,
    LIVE,
    TERMINAL,
    Fault,
    Interleavings,
    Row,
    Talk,
    World,
    only_if,
)
from tests.faults.process import Outcome, Process, Time

KEY = "jobmon_workflow_run"
HANDOFF_TIMEOUT, STARTUP_TIMEOUT = 900.0, 600.0
RETRY_DELAY = 30.0
FAR = st.integers(0, 3)
MEANWHILE = st.sampled_from(["", "sibling", "sibling", "clear", "connection", "token"])
TOLD_TO_STOP = frozenset("CT")
WAITING = (None, "scheduled", "up_for_retry")  # states in which the scheduler may start a try
ENDED = ("failed", "restarting")  # those that say of a task on a worker that a user has ended it
LEFT_ALONE = (None, "running", "success")  # those after which a task that is told to end stops no run
OPTIONS = st.fixed_dictionaries(
    {
        "deferrable": st.booleans(),
        "cancel_on_kill": st.booleans(),
        "resume_on_retry": st.booleans(),
        "create_timeout": st.sampled_from([60, 600]),
    }
)

SITUATIONS_OF_A_TASK = (
    "a sibling was cleared, and the run went on",
    "a sibling was cleared, and a DONE run stayed a success",
    "the run of a cleared task was stopped",
    "tasks were reset, once the run of a cleared task had ended",
    "a drained worker let its run go",
    "a task that a user marked as success let its run go",
    "a user ended the task on its worker, and the run was stopped",
    "a user ended the task on its worker, and the run was left to its executor",
    "a user ended a retry that looked at its run, and the run was stopped",
    "a user ended a deferred task, and the run was stopped",
    "a trigger that was told late left the run to the next try",
    "a retry met another server",
    "a trigger met another server",
    "a user ended the task, and the connection named another server",
    "a token was rotated under a worker",
    "a token was rotated under a trigger",
)


@dataclass
class Site(World):
    """Where a machine with a task runs.

    :param here: address of the server on which the task begins.
    :param elsewhere: address of another one.
    :param time: the clock of operators and triggers.
    :param patch: sets the connection.
    """

    here: Gate = field(kw_only=True)
    elsewhere: Gate = field(kw_only=True)
    time: Time = field(kw_only=True)
    patch: pytest.MonkeyPatch = field(kw_only=True)

    def connect(self, gate: Gate, token: str) -> None:
        """Define the connection."""
        extra = {"route_prefix": self.prefix, "retries_timeout": 0}
        value = {"conn_type": "jobmon", "host": gate.url, "password": token, "extra": extra}
        self.patch.setenv("AIRFLOW_CONN_JOBMON_DEFAULT", json.dumps(value))


@dataclass(eq=False)
class Attempt:
    """A process of the task's: a try up to its deferral, its trigger, its return, or its trigger's end.

    :param gate: the server that its connection named.
    :param operator: None: in a triggerer.
    :param options: the operator's.
    :param told_to_end: the task's state in Airflow when it was told to end; None: it was not.
    :param spoilt: how many of its requests had no reply by then.
    :ivar heard: the task's state, as Airflow has told it last.
    :ivar has_heeded_it: it has just done about its run what follows from that, and lives.
    :ivar refused: how many requests the server had refused when it began.
    """

    gate: Gate
    operator: CreateWorkflowRunOperator | None
    options: dict[str, Any]
    told_to_end: str | None = None
    spoilt: int = 0
    heard: str | None = None
    has_heeded_it: bool = False
    refused: int = 0

    def __post_init__(self) -> None:
        self.refused = self.gate.refused


class TaskMachine(Interleavings):
    """One workflow, everybody who has to do with it, and a task of ours.

    :ivar state: the task's state in Airflow.
    :ivar homes: the task's runs, and the address through which each was created.
    :ivar evidence: runs whose task a user has ended or cleared since they were created.
    :ivar to_be_stopped: those of a task that was not running when it was cleared, and what it was granted.
    """

    world: Site

    # The task's own processes hold these conversations.
    create = watch = give_up = bury = None  # type: ignore[assignment]

    def __init__(self, world: Site) -> None:
        super().__init__(world)
        world.time.clock = self.clock
        self.gate = world.here
        for gate in (world.here, world.elsewhere):
            gate.begin_anew()
        self.token = ""
        self.the_token_is_rotated()
        self.stranger = ""
        self.memory = Tries(retries=50)
        self.memo_before: dict[str, Any] = {}
        self.context: Any = {}
        self.options: dict[str, Any] = {}
        self.state: str | None = "scheduled"
        self.not_before = 0.0  # when the next try is due
        self.deferred: TaskDeferred | None = None
        self.attempts: dict[Talk, Attempt] = {}
        self.created_at: dict[int, float] = {}
        self.homes: dict[int, Gate] = {}
        self.evidence: set[int] = set()
        self.to_be_stopped: dict[int, int] = {}

    # --- What is known --------------------------------------------------------------------------------------

    @property
    def memo(self) -> dict[str, Any]:
        """What the task remembers."""
        memo: dict[str, Any] = self.memory.kept.get(KEY, {})
        return memo

    @property
    def active(self) -> Talk | None:
        """The process that executes the task, or waits for it."""
        return next((talk for talk in self.talks if talk.kind in ("try", "trigger")), None)

    def is_on_a_worker(self) -> bool:
        return self.active is not None and self.active.kind == "try"

    def remembered(self) -> int:
        """Return the run that the task remembers, if it is one of the connection's server; else 0."""
        ours = self.memo and self.memo["server"] == self.gate.url + self.world.prefix
        return self.memo["workflow_run_id"] if ours else 0

    def may_be_stopped(self, talk: Talk, rows: dict[int, Row]) -> bool:
        """Whether a user has ended or cleared the task, or the run was stopped and some task was cleared."""
        stopped = talk.run in rows and rows[talk.run].status in TOLD_TO_STOP
        by_a_clear = stopped and self.memory.clear_number > self.memo["clear_number"]
        ended = self.attempts[talk].told_to_end not in LEFT_ALONE
        return ended or by_a_clear or talk.run in self.evidence

    # --- Processes ------------------------------------------------------------------------------------------

    def start(
        self,
        kind: str,
        work: Callable[[], Any],
        operator: CreateWorkflowRunOperator | None = None,
        run: int = 0,
    ) -> None:
        process, attempt = Process(work), Attempt(self.gate, operator, self.options)

        def tell() -> str | None:  # one that is killed learns nothing any more
            attempt.heard = "running" if process.is_dead else self.state
            return attempt.heard

        if operator is not None:
            self.context["ti"].in_airflow = tell
        workflow = self.gate.namesakes.get(self.workflow, self.workflow)
        talk = Talk(kind, process, run, workflow, STARTUP_TIMEOUT)
        self.talks.append(talk)
        self.attempts[talk] = attempt
        self.go_on(talk)

    def send(self, talk: Talk, call: Call[Any]) -> tuple[Any, JobmonError | None]:
        if not isinstance(talk.conversation, Process):
            return super().send(talk, call)
        outcome = talk.conversation.attempt()
        assert outcome.error is None or isinstance(outcome.error, JobmonError)
        return outcome.result, outcome.error

    def drop(self, talk: Talk) -> None:
        super().drop(talk)
        self.attempts.pop(talk, None)
        if talk.kind == "try":
            self.is_over("up_for_retry")

    def is_over(self, state: str) -> None:
        """Take note of a worker's end."""
        if self.state in ("running", "restarting"):  # else it was the user who has decided
            self.state = "up_for_retry" if self.state == "restarting" else state
        self.not_before = self.now + RETRY_DELAY

    def new_operator(self) -> CreateWorkflowRunOperator:
        return CreateWorkflowRunOperator(
            task_id="run",
            workflow_id=self.workflow,
            workflow_run_heartbeat_interval=INTERVAL,
            heartbeat_report_by_buffer=BUFFER,
            handoff_timeout=HANDOFF_TIMEOUT,
            startup_timeout=STARTUP_TIMEOUT,
            **self.options,
        )

    # --- Airflow --------------------------------------------------------------------------------------------

    def catch_up(self) -> None:
        super().catch_up()
        self.a_triggerer_takes_the_task()
        if self.now >= self.not_before and self.state in WAITING:
            self.try_anew()

    @initialize(options=OPTIONS, fault=st.sampled_from([Fault.NONE, *Fault]), taken=st.booleans(), far=FAR)
    def a_task_starts(self, options: dict[str, Any], fault: Fault, taken: bool, far: int) -> None:
        self.a_try_starts(options)
        self.exchange(self.talks[-1], fault)
        self.each_of_us_goes_on()
        self.the_rules_hold()
        if taken and self.linking():
            self.an_executor_takes_the_run(far)

    @rule(options=OPTIONS, meanwhile=MEANWHILE)
    @only_if(lambda self: self.active is not None)
    def its_process_dies(self, options: dict[str, Any], meanwhile: str) -> None:
        """A worker or a triggerer is killed, and before the next one has the task, something happens."""
        assert self.active is not None
        self.drop(self.active)
        if meanwhile == "sibling":
            self.a_sibling_is_cleared()
        elif meanwhile == "clear":
            self.the_user_clears_the_task(True)
        elif meanwhile == "connection":
            self.the_connection_changes("BIOR")
        elif meanwhile == "token":
            self.the_token_is_rotated()
        self.a_try_starts(options)
        self.a_triggerer_takes_the_task()
        self.each_of_us_goes_on()

    @rule(options=OPTIONS)
    @only_if(lambda self: self.active is None and self.state in WAITING)
    def a_try_starts(self, options: dict[str, Any]) -> None:
        self.options = options
        self.try_anew()

    def try_anew(self) -> None:
        if self.active is not None:
            return  # its process has not ended yet
        self.context = self.memory.next()
        self.state = "running"
        operator = self.new_operator()
        self.start("try", lambda: operator.execute(self.context), operator, self.remembered())

    def try_returned(self, talk: Talk, outcome: Outcome) -> None:
        attempt = self.attempts.pop(talk)
        if isinstance(outcome.error, TaskDeferred):
            if self.state == "running":
                self.state, self.deferred = "deferred", outcome.error
                self.a_triggerer_takes_the_task()
            else:  # Airflow refuses it: the task is not running any more
                self.kept.discard(talk.run)
                self.is_over("up_for_retry")
            return
        self.kept.discard(talk.run)
        if attempt.told_to_end is None:
            self.check_end(talk, attempt, outcome.error)
        else:
            self.check_end_by_signal(talk, attempt)
        self.is_over("up_for_retry" if outcome.error else "success")

    @rule()
    def a_triggerer_takes_the_task(self) -> None:
        if self.state == "deferred" and self.active is None:
            assert self.deferred is not None
            trigger: Any = self.deferred.trigger
            self.start("trigger", lambda: asyncio.run(fire(trigger)), None, trigger.workflow_run_id)

    def trigger_returned(self, talk: Talk, outcome: Outcome) -> None:
        attempt = self.attempts.pop(talk)
        if outcome.error is not None:  # a trigger never dies by an exception
            raise outcome.error
        event = outcome.result
        if event["status"] == "error":
            assert self.homes[talk.run] is not self.gate or self.homes[talk.run] is not attempt.gate, event
            self.saw("a trigger met another server")
        operator, deferred = self.new_operator(), self.deferred
        assert deferred is not None
        self.state = "running"
        self.start("try", lambda: resume(operator, deferred, event, self.context), operator, talk.run)

    def kill_returned(self, talk: Talk, outcome: Outcome) -> None:
        attempt = self.attempts.pop(talk)
        if outcome.error is not None:
            raise outcome.error
        row = self.read().get(talk.run)
        if not talk.spoilt and row is not None and self.is_at_home(talk, attempt):
            self.check_stopped(talk, attempt, row, "a user ended a deferred task")

    def late_kill_returned(self, talk: Talk, outcome: Outcome) -> None:
        """The task counts as done, or a user may not have ended it: it asked the server nothing."""
        self.attempts.pop(talk)
        if outcome.error is not None:
            raise outcome.error
        assert not talk.answered
        assert not talk.spoilt
        self.saw("a trigger that was told late left the run to the next try")

    # --- What happens to the task ---------------------------------------------------------------------------

    @rule()
    def a_sibling_is_cleared(self) -> None:
        self.memory.clear_another_task()

    @rule()
    @only_if(lambda self: self.is_on_a_worker() and self.state == "running")
    def the_worker_is_drained(self) -> None:
        self.tell_to_end()

    @rule(tells=st.booleans(), late=st.booleans())
    @only_if(lambda self: self.state != "restarting")
    def the_user_clears_the_task(self, tells: bool, late: bool = False) -> None:
        """What Airflow does then. Only from 3.3 on it tells the trigger of a deferred task.

        :param late: it does so once the scheduler has seen the task, which has no status before that.
        """
        self.take_note_of_the_user()
        if self.state == "running":
            self.memory.clear_another_task()  # which is all that is counted
            self.state = "restarting"
            self.tell_to_end()
            return
        if self.memo:
            self.to_be_stopped[self.memo["workflow_run_id"]] = self.memory.number + self.memory.retries
        self.memory.clear()
        self.end_the_deferral("scheduled" if late else None, tells)

    @rule(state=st.sampled_from(["failed", "success"]), tells=st.booleans())
    @only_if(lambda self: self.state in ("running", "deferred"))
    def the_user_marks_the_task(self, state: str, tells: bool) -> None:
        if state == "failed":
            self.take_note_of_the_user()
        if self.state == "running":
            self.state = state
            self.tell_to_end()
        else:
            self.end_the_deferral(state, tells)

    def take_note_of_the_user(self) -> None:
        self.evidence.update([self.memo["workflow_run_id"]] if self.memo else [])
        self.evidence.update([self.active.run] if self.active else [])

    def tell_to_end(self) -> None:
        """Have the task's process on its worker handle SIGTERM, as Airflow 3 does."""
        talk = self.active
        assert talk is not None
        attempt = self.attempts[talk]
        attempt.told_to_end, attempt.spoilt = self.state, talk.spoilt
        process = talk.conversation
        assert isinstance(process, Process)
        assert attempt.operator is not None
        operator = attempt.operator

        def handle() -> None:
            operator.on_kill()
            # Else it was amid something else, and heeds it later.
            attempt.has_heeded_it = operator._attempt is not None and operator._attempt.settled

        self.go_on(talk, lambda _: process.interrupt(handle))

    def go_on(self, talk: Talk, act: Callable[[Driver[Any]], Ask | Pause] = next) -> None:
        super().go_on(talk, act)
        attempt = self.attempts.get(talk)
        if attempt is not None and attempt.has_heeded_it:
            attempt.has_heeded_it = False
            self.check_end_by_signal(talk, attempt)

    def end_the_deferral(self, state: str | None, tells: bool) -> None:
        self.state = state
        talk = self.active
        if talk is None or talk.kind != "trigger":
            return
        self.drop(talk)
        if tells:
            assert self.deferred is not None
            trigger: Any = stored(self.deferred.trigger)
            trigger.task_instance = ApiTaskInstance(in_airflow={-1: self.state})
            leaves = state == "success" or (state in WAITING and state is not None)
            kind = "late_kill" if leaves else "kill"
            self.start(kind, lambda: asyncio.run(trigger.on_kill()), None, talk.run)

    @rule(status=st.sampled_from(["", "BIOR", "BIORD"]))
    def the_connection_changes(self, status: str) -> None:
        """The connection names the other server from now on, or again."""
        if not self.stranger:
            self.fill_the_other_server(status)
        self.gate = self.world.elsewhere if self.gate is self.world.here else self.world.here
        self.world.connect(self.gate, self.token)

    def fill_the_other_server(self, status: str) -> None:
        """Let the ids of here be somebody else's there.

        :param status: how far somebody else's run has come.
        """
        sandbox = self.world.sandbox
        namesake, strangers = sandbox.copy_workflow(self.world.original, 2)
        body = {"workflow_id": strangers, "user": "bob", "jobmon_version": "3.4.8"}
        path = f"{self.world.prefix}/workflow_run"
        run = sandbox.post(path, {**body, "next_report_increment": 10**6})["workflow_run_id"]
        for step in status:
            self.put_status(run, step)
        self.stranger = (status or "L")[-1]
        self.world.here.stranger = self.world.elsewhere.stranger = run
        self.world.elsewhere.namesakes = {self.workflow: namesake}
        self.workflows.append(namesake)

    @rule()
    def the_token_is_rotated(self) -> None:
        self.token = f"token-{self.now}-{len(self.token)}"
        for gate in (self.world.here, self.world.elsewhere):
            gate.takes = self.token
        self.world.connect(self.gate, self.token)

    # --- What is checked ------------------------------------------------------------------------------------

    @invariant()
    def nobody_asks_about_strangers(self) -> None:
        for gate in (self.world.here, self.world.elsewhere):
            assert gate.asked_about_strangers == []
        if self.stranger:
            assert self.world.sandbox.run_status(self.world.here.stranger) == self.stranger

    @invariant()
    def a_task_goes_on_with_no_run_that_it_is_to_stop(self) -> None:
        memo, before = self.memo, self.memo_before
        self.memo_before = memo
        if memo == before or not before:
            return
        run = memo["workflow_run_id"]
        if memo["server"] != before["server"]:
            self.saw("a retry met another server")
        elif run != before["workflow_run_id"] or run in self.evidence:
            cleared = run in self.to_be_stopped and memo["max_tries"] >= self.to_be_stopped[run]
            assert not cleared or not self.options["cancel_on_kill"], f"run {run} is not stopped"
        elif memo["clear_number"] > before["clear_number"]:
            status = self.read()[run].status
            saw = "a DONE run stayed a success" if status == "D" else "the run went on"
            self.saw(f"a sibling was cleared, and {saw}")

    def may_say(self, talk: Talk) -> set[str | None]:
        attempt = self.attempts.get(talk)
        if attempt is None or attempt.told_to_end is None:
            return super().may_say(talk)
        return super().may_say(talk) | talk.all_told  # its watch does not know what its on_kill was told

    def check_what_it_did(
        self, talk: Talk, call: Call[Any], before: dict[int, Row], after: dict[int, Row]
    ) -> None:
        super().check_what_it_did(talk, call, before, after)
        if talk not in self.attempts:
            return
        what = call.route.rpartition("/")[2]
        status = before[talk.run].status if talk.run else ""
        allowed = self.may_be_stopped(talk, before)
        options = self.attempts[talk].options
        if what == "set_resume":
            assert allowed, f"{talk.kind} stopped run {talk.run}, which is {status}"
            assert options["cancel_on_kill"]
        elif what == "set_resume_state" or (what == "workflow_run" and status):
            assert status in TERMINAL, f"{call.route}, and run {talk.run} is {status}"
            again = options["resume_on_retry"] and status in "EST"
            nothing_to_reset = what == "workflow_run" and status == "A"
            assert allowed or again or nothing_to_reset, f"{call.route}, as run {talk.run} is {status}"
        elif what == "update_status" and status == "L" and after[talk.run].status == "A":
            overdue = self.now - self.created_at[talk.run] >= HANDOFF_TIMEOUT
            assert allowed or overdue, f"{talk.kind} gave run {talk.run} up"
        self.note_what_it_did(talk, what, before, after)

    def note_what_it_did(self, talk: Talk, what: str, before: dict[int, Row], after: dict[int, Row]) -> None:
        if talk.kind != "try" or talk.run not in self.to_be_stopped or self.attempts[talk].told_to_end:
            return
        if before[talk.run] != after[talk.run]:
            self.saw("the run of a cleared task was stopped")
        if what == "set_resume_state":
            self.saw("tasks were reset, once the run of a cleared task had ended")

    def remember(
        self,
        talk: Talk,
        call: Call[Any],
        before: dict[int, Row],
        after: dict[int, Row],
        reply: Any,
        error: JobmonError | None,
    ) -> None:
        super().remember(talk, call, before, after, reply, error)
        attempt = self.attempts.get(talk)
        if attempt is None:
            return
        assert not isinstance(error, NotAuthorized), error
        if error is None and attempt.gate.refused > attempt.refused:
            self.saw(f"a token was rotated under a {'worker' if talk.kind == 'try' else 'trigger'}")
        attempt.refused = attempt.gate.refused
        if isinstance(reply, CreatedRun):
            run = talk.run = reply.workflow_run_id
            assert talk.made == {run}
            talk.told = reply.status.value  # what it had been told before was of another run
            talk.all_told = {talk.told}
            self.created_at[run] = self.now
            self.homes[run] = attempt.gate
            if attempt.told_to_end not in LEFT_ALONE:
                self.evidence.add(run)
            self.ours.append(run)
            self.kept.add(run)

    def is_at_home(self, talk: Talk, attempt: Attempt) -> bool:
        """Whether a process has met, from beginning to end, the server on which its run lives."""
        home = self.homes.get(talk.run)
        return attempt.gate is home and self.gate is home

    def check_end(self, talk: Talk, attempt: Attempt, error: BaseException | None) -> None:
        """Check how a task ended by itself."""
        row = self.read().get(talk.run)
        if error is None:
            assert row is not None
            assert row.status == "D", f"a success, and run {talk.run} is {row.status}"
        elif row is not None and row.status == "D" and talk.run not in self.evidence:
            assert talk.spoilt or not self.is_at_home(talk, attempt), f"run {talk.run} is DONE: {error}"

    def check_end_by_signal(self, talk: Talk, attempt: Attempt) -> None:
        row = self.read().get(talk.run)
        if row is None or talk.spoilt > attempt.spoilt:
            return
        if attempt.heard not in ENDED:  # a user who clears the task meanwhile is heeded by the next try
            if attempt.told_to_end == "running" and row.status in LIVE:
                self.saw("a drained worker let its run go")
            if attempt.told_to_end == "success" and row.status in LIVE:
                self.saw("a task that a user marked as success let its run go")
        elif self.is_at_home(talk, attempt):
            ours = attempt.operator._attempt if attempt.operator is not None else None
            looked_only = attempt.operator is not None and (ours is None or ours.own is None)
            by = (
                "a user ended a retry that looked at its run"
                if looked_only
                else "a user ended the task on its worker"
            )
            self.check_stopped(talk, attempt, row, by)
        elif self.homes.get(talk.run) is attempt.gate:
            self.saw("a user ended the task, and the connection named another server")

    def check_stopped(self, talk: Talk, attempt: Attempt, row: Row, by: str) -> None:
        """Check that a run was stopped as ``cancel_on_kill`` says."""
        assert row.status != "L", f"{by}, and run {talk.run} is LINKING"
        if attempt.options["cancel_on_kill"]:
            assert row.status not in "BR" or talk.all_told & set("IO"), (
                f"{by}, and {talk.run} is {row.status}"
            )
            self.saw(f"{by}, and the run was stopped")
        elif row.status in LIVE:
            self.saw(f"{by}, and the run was left to its executor")

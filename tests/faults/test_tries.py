"""The tries of a task of ours among users, siblings, drained workers, other servers and rotated tokens.

What is checked after every step is in ``task_machine.py``. Chance has more time in ``tests/proofs``.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults.machine import Fault, explore, say
from tests.faults.task_machine import SITUATIONS_OF_A_TASK, Site, TaskMachine

# --- Scripts: what chance may miss --------------------------------------------------------------------------


def options(**others: Any) -> dict[str, Any]:
    usual = {"deferrable": False, "cancel_on_kill": True, "resume_on_retry": False, "create_timeout": 600}
    return {**usual, **others}


def creates_its_run(machine: TaskMachine) -> None:
    """Answer what a try asks until it has created its run."""
    of_its_age = 2 if machine.world.prefix == "/api/v2" else 1  # requests; Jobmon 3.3 has that prefix, too
    say(machine, *[Fault.NONE] * (2 + of_its_age))


def to_status(machine: TaskMachine, far: int, **others: Any) -> int:
    """Let a try create a run, and an executor bring it so far; return it."""
    machine.a_try_starts(options(**others))
    creates_its_run(machine)
    (run,) = machine.linking()
    machine.an_executor_takes_the_run(far)
    machine.the_rules_hold()
    return run


def dies_on_its_worker(machine: TaskMachine) -> None:
    assert machine.active is not None
    machine.drop(machine.active)


def check(machine: TaskMachine) -> None:
    machine.the_rules_hold()
    machine.nobody_asks_about_strangers()
    machine.a_task_goes_on_with_no_run_that_it_is_to_stop()


def goes_on(machine: TaskMachine, **others: Any) -> None:
    """Let the next try look at the run, and watch it."""
    check(machine)
    machine.a_try_starts(options(**others))
    machine.time_passes_and_all_are_punctual(10, reaper=False)
    check(machine)


def script_sibling(machine: TaskMachine) -> None:
    run = to_status(machine, 3)
    dies_on_its_worker(machine)
    machine.a_sibling_is_cleared()
    goes_on(machine)
    assert machine.active is not None
    assert machine.active.run == run
    assert machine.world.seen["a sibling was cleared, and the run went on"]


def script_sibling_of_a_done_one(machine: TaskMachine) -> None:
    to_status(machine, 3)
    dies_on_its_worker(machine)
    machine.an_executor_ends_the_run("D")
    machine.a_sibling_is_cleared()
    goes_on(machine)
    assert machine.state == "success"
    assert machine.world.seen["a sibling was cleared, and a DONE run stayed a success"]


def script_cleared(machine: TaskMachine) -> None:
    to_status(machine, 1)
    dies_on_its_worker(machine)
    machine.the_user_clears_the_task(True)
    machine.a_try_starts(options())
    for _ in range(2):  # to R
        machine.time_passes_and_all_are_punctual(10, reaper=False)
        machine.an_executor_goes_on(0)
    machine.time_passes_and_all_are_punctual(10, reaper=False)
    machine.an_executor_goes_on(0)  # learns it
    machine.an_executor_goes_on(0)
    machine.time_passes_and_all_are_punctual(50, reaper=False)
    check(machine)
    assert [row.status for row in machine.rows.values()] == ["T", "L"]
    assert machine.world.seen["the run of a cleared task was stopped"]
    assert machine.world.seen["tasks were reset, once the run of a cleared task had ended"]


def script_drained(machine: TaskMachine) -> None:
    machine.a_try_starts(options())
    creates_its_run(machine)
    machine.the_worker_is_drained()  # while nobody has the run
    machine.time_passes_and_all_are_punctual(50, reaper=True)
    (run,) = machine.linking()
    machine.an_executor_takes_the_run(3)
    machine.time_passes_and_all_are_punctual(10, reaper=False)
    machine.the_worker_is_drained()
    machine.time_passes_and_all_are_punctual(10, reaper=False)
    assert machine.world.seen["a drained worker let its run go"]
    goes_on(machine, deferrable=True)
    assert machine.active is not None
    assert (machine.active.kind, machine.active.run) == ("trigger", run)
    machine.time_passes_and_all_are_punctual(10, reaper=False)
    machine.an_executor_ends_the_run("D")
    machine.time_passes_and_all_are_punctual(120, reaper=False)
    assert machine.state == "success"


def script_ended_on_its_worker(machine: TaskMachine) -> None:
    for cancel, left in ((True, "T"), (False, "D")):
        run = to_status(machine, 3, cancel_on_kill=cancel)
        machine.time_passes_and_all_are_punctual(10, reaper=False)
        machine.the_user_marks_the_task("failed", True)
        machine.time_passes_and_all_are_punctual(1, reaper=False)
        if cancel:
            machine.an_executor_goes_on(0)
            machine.an_executor_goes_on(0)
        else:
            machine.an_executor_ends_the_run("D")
        machine.time_passes_and_all_are_punctual(120, reaper=False)
        assert machine.read()[run].status == left
        if cancel:
            machine.the_user_clears_the_task(True)
            machine.memory.kept.clear()
            machine.memo_before = {}
    assert machine.world.seen["a user ended the task on its worker, and the run was stopped"]


def script_marked_as_success(machine: TaskMachine) -> None:
    run = to_status(machine, 3)
    machine.time_passes_and_all_are_punctual(10, reaper=False)
    machine.the_user_marks_the_task("success", True)
    machine.time_passes_and_all_are_punctual(10, reaper=False)
    assert machine.read()[run].status == "R"
    machine.an_executor_ends_the_run("D")
    machine.time_passes_and_all_are_punctual(120, reaper=False)
    assert machine.read()[run].status == "D"


def script_ended_amid_the_look(machine: TaskMachine) -> None:
    to_status(machine, 3)
    dies_on_its_worker(machine)
    machine.a_try_starts(options())
    say(machine, Fault.NOT_REACHED)
    machine.the_user_marks_the_task("failed", True)
    machine.time_passes_and_all_are_punctual(50, reaper=False)
    assert machine.world.seen["a user ended a retry that looked at its run, and the run was stopped"]


def script_ended_while_deferred(machine: TaskMachine) -> None:
    to_status(machine, 3, deferrable=True)
    machine.time_passes_and_all_are_punctual(10, reaper=False)
    machine.the_user_marks_the_task("failed", True)
    machine.time_passes_and_all_are_punctual(50, reaper=False)
    assert machine.world.seen["a user ended a deferred task, and the run was stopped"]


def script_told_late(machine: TaskMachine) -> None:
    to_status(machine, 3, deferrable=True)
    machine.time_passes_and_all_are_punctual(10, reaper=False)
    machine.the_user_clears_the_task(True, late=True)
    machine.time_passes_and_all_are_punctual(50, reaper=False)
    (run,) = (run for run, row in machine.rows.items() if row.status in "CH")
    assert run in machine.to_be_stopped


def script_another_server(machine: TaskMachine) -> None:
    to_status(machine, 0)
    dies_on_its_worker(machine)
    machine.the_connection_changes("BIORD")
    goes_on(machine)
    assert sorted(row.status for row in machine.rows.values()) == ["B", "L"]
    assert machine.world.seen["a retry met another server"]
    machine.the_connection_changes("")
    machine.the_user_marks_the_task("failed", True)
    machine.time_passes_and_all_are_punctual(10, reaper=False)
    check(machine)


def script_another_server_for_a_trigger(machine: TaskMachine) -> None:
    to_status(machine, 3, deferrable=True)
    assert machine.active is not None
    machine.drop(machine.active)  # its triggerer dies
    machine.the_connection_changes("")
    machine.a_triggerer_takes_the_task()
    machine.time_passes_and_all_are_punctual(10, reaper=False)
    check(machine)
    assert machine.world.seen["a trigger met another server"]
    assert machine.state == "up_for_retry"


def script_rotated(machine: TaskMachine) -> None:
    for deferrable, whom in ((False, "worker"), (True, "trigger")):
        machine.a_try_starts(options(deferrable=deferrable))
        creates_its_run(machine)
        for _ in range(3):
            machine.the_token_is_rotated()
            machine.time_passes_and_all_are_punctual(120, reaper=True)
        check(machine)
        assert [row.status for row in machine.rows.values()] == ["L"]
        assert machine.world.seen[f"a token was rotated under a {whom}"]
        if not deferrable:
            dies_on_its_worker(machine)


SCRIPTS = (
    script_sibling,
    script_sibling_of_a_done_one,
    script_cleared,
    script_drained,
    script_ended_on_its_worker,
    script_marked_as_success,
    script_ended_amid_the_look,
    script_ended_while_deferred,
    script_told_late,
    script_another_server,
    script_another_server_for_a_trigger,
    script_rotated,
)


@pytest.mark.timeout(600)  # a failure is made small by trying it again and again
def test_no_try_harms_a_run_that_its_user_has_not_ended(site: Site) -> None:
    for script in SCRIPTS:
        machine = TaskMachine(site)
        script(machine)
        machine.the_rules_hold()
        machine.teardown()
    assert [situation for situation in SITUATIONS_OF_A_TASK if not site.seen[situation]] == []
    explore(lambda: TaskMachine(site), examples=3)

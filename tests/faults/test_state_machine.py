"""Our conversations among executors, Jobmon's reaper and other clients, in any order, on a real Jobmon.

What is checked after every step is in ``machine.py``. Chance has more time in ``tests/proofs``.
"""

from __future__ import annotations

import math

import pytest

from tests.faults.machine import FAULTS_IN_ITS_STRIDE, SITUATIONS, Fault, Interleavings, World, explore, say

# --- Scripts: what chance may miss --------------------------------------------------------------------------


def to_running(machine: Interleavings) -> None:
    """Create a run and have it executed."""
    machine.create(False, 600)
    say(machine)
    machine.time_passes_and_all_are_punctual(120, reaper=True)
    machine.an_executor_takes_the_run(3)
    machine.the_rules_hold()


def script_kept(machine: Interleavings) -> None:
    machine.create(False, 600)
    say(machine)
    machine.time_passes_and_all_are_punctual(600, reaper=True)
    (watch,) = machine.talks
    for _ in range(FAULTS_IN_ITS_STRIDE):
        machine.age(max(0, math.ceil(watch.due - machine.now)))
        say(machine, Fault.NOT_REACHED)
    machine.time_passes_and_all_are_punctual(120, reaper=True)
    assert [row.status for row in machine.rows.values()] == ["L"]


def script_taken_at_the_last_moment(machine: Interleavings) -> None:
    machine.create(False, 600)
    say(machine)
    machine.watch(0, handoff_timeout=100.0)
    machine.time_passes_and_all_are_punctual(100, reaper=False)
    say(machine)  # it hears LINKING, and is about to abort the run
    machine.an_executor_takes_the_run(0)
    say(machine)
    assert [talk.told for talk in machine.talks] == ["B"]


def script_buried(machine: Interleavings) -> None:
    machine.create(False, 600)
    say(machine)
    machine.the_rules_hold()
    machine.an_executor_takes_the_run(0)
    machine.an_executor_dies(0)
    machine.bury(0)
    say(machine, Fault.NONE, Fault.NONE)
    assert [row.status for row in machine.rows.values()] == ["E"]


def script_done(machine: Interleavings) -> None:
    to_running(machine)
    machine.time_passes_and_all_are_punctual(120, reaper=False)
    machine.an_executor_ends_the_run("D")
    machine.time_passes_and_all_are_punctual(120, reaper=False)
    assert machine.world.seen["a watch saw DONE"]


def script_reaped(machine: Interleavings) -> None:
    to_running(machine)
    machine.an_executor_dies(0)
    machine.time_passes_and_all_are_punctual(120, reaper=True)
    assert machine.world.seen["a run was reaped"]
    machine.time_passes_and_all_are_punctual(120, reaper=False)
    assert not machine.talks  # the watch has seen it


def script_given_up(machine: Interleavings) -> None:
    machine.create(False, 600)
    say(machine)
    machine.give_up(0, stop=True)
    say(machine, Fault.NOT_REACHED)
    machine.age(1)
    say(machine)
    assert machine.world.seen["a run was aborted by giving up"]


def script_lost_reply(machine: Interleavings) -> None:
    machine.create(False, 600)
    say(machine, Fault.REPLY_LOST)
    (lost,) = machine.linking()
    # 3.4.8 tells nobody but its own reaper which run is lost
    machine.time_passes_and_all_are_punctual(100, reaper=machine.world.prefix == "/api/v2")
    machine.time_passes_and_all_are_punctual(30, reaper=False)
    assert machine.read()[lost].status == "A"
    assert machine.world.seen["a lost reply was recovered from"]


def script_stopped(machine: Interleavings) -> None:
    to_running(machine)
    machine.resume(True, 300)
    say(machine, Fault.NONE, Fault.NONE)
    machine.an_executor_goes_on(0)  # its heartbeat tells it
    machine.an_executor_goes_on(0)
    machine.time_passes_and_all_are_punctual(120, reaper=False)
    assert not machine.talks
    machine.create(False, 0)
    say(machine)
    assert [row.status for row in machine.rows.values()] == ["T", "L"]


def script_refused(machine: Interleavings) -> None:
    machine.another_creates_a_run(300)
    machine.create(False, 600)
    say(machine)
    if machine.talks:
        say(machine)  # asks whose run it is
    assert machine.world.seen["a second creator was refused"]
    refused = [run for run, row in machine.rows.items() if row.status == "G"]
    machine.look_on(sorted(machine.rows).index(*refused))
    machine.time_passes_and_all_are_punctual(120, reaper=False)
    machine.time_passes_and_all_are_punctual(120, reaper=False)
    assert machine.world.seen["a run in G was looked at"]


def script_not_begun(machine: Interleavings) -> None:
    machine.create(False, 600)
    say(machine)
    machine.watch(0, startup_timeout=150.0)
    machine.an_executor_takes_the_run(1)
    machine.look_on(0)
    for _ in range(2):
        machine.time_passes_and_all_are_punctual(120, reaper=True)
    assert machine.world.seen["a run that did not begin was ended"]
    machine.an_executor_goes_on(0)
    assert not machine.executors  # it has learnt it


def script_given_up_before_it_began(machine: Interleavings) -> None:
    machine.create(False, 600)
    say(machine)
    machine.an_executor_takes_the_run(1)
    machine.give_up(0, stop=True)
    for _ in range(2):
        say(machine)
        machine.age(1)
        machine.an_executor_goes_on(0)
    say(machine, Fault.NONE, Fault.NONE)
    assert machine.world.seen["a run was told to stop once it had begun"]


SCRIPTS = (
    script_kept,
    script_taken_at_the_last_moment,
    script_buried,
    script_done,
    script_reaped,
    script_given_up,
    script_lost_reply,
    script_stopped,
    script_refused,
    script_not_begun,
    script_given_up_before_it_began,
)


@pytest.mark.timeout(600)  # a failure is made small by trying it again and again
def test_whatever_the_order_the_rules_hold(world: World) -> None:
    for script in SCRIPTS:
        machine = Interleavings(world)
        script(machine)
        machine.the_rules_hold()
        machine.teardown()
    assert [situation for situation in SITUATIONS if not world.seen[situation]] == []
    explore(lambda: Interleavings(world), examples=4)

"""The state machines of ``tests/faults`` with more chance, on each of the two sets of routes."""

from __future__ import annotations

import pytest

from tests.faults.machine import Interleavings, World, explore
from tests.faults.task_machine import Site, TaskMachine

pytestmark = pytest.mark.timeout(900)  # a failure is made small by trying it again and again


def test_whatever_the_order_the_rules_hold(world: World) -> None:
    explore(lambda: Interleavings(world), examples=18)


def test_no_try_harms_a_run_that_its_user_has_not_ended(site: Site) -> None:
    explore(lambda: TaskMachine(site), examples=10)

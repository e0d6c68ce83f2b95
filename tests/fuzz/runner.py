"""Runs a target for a given time. Hypothesis counts cases only, so it is run in rounds."""

from __future__ import annotations

import itertools
import time
import traceback
from dataclasses import dataclass
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, settings

from tests.fuzz.targets import Target

ROUND = 500  # cases


@dataclass
class Done:
    """What a run of a target came to.

    :ivar readings: a case is read in several ways.
    :ivar finding: the smallest case that fails, and how; "": none.
    """

    cases: int = 0
    readings: int = 0
    seconds: float = 0.0
    finding: str = ""


def fuzz(target: Target, seconds: float, seed: int, round_of: int = ROUND, shrinks: bool = True) -> Done:
    """Feed a target with cases until the time is over or one of them fails.

    :param seconds: at least one round is run, however short the time.
    :param seed: the same seed makes the same cases.
    :param round_of: cases in a round.
    :param shrinks: make a case that fails smaller, where the target allows it.
    """
    done = Done()

    def count(case: Any) -> None:
        done.readings += target.check(case)
        done.cases += 1

    options = settings(
        max_examples=round_of,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        report_multiple_bugs=False,
        phases=[phase for phase in Phase if (shrinks and target.shrinks) or phase is not Phase.shrink],
    )
    started = time.monotonic()
    for number in itertools.count(seed):
        try:
            hypothesis.seed(number)(options(hypothesis.given(target.cases)(count)))()
        except Exception as error:
            done.finding = "\n".join(
                line[:500] for line in "".join(traceback.format_exception(error)).split("\n")
            )
        done.seconds = time.monotonic() - started
        if done.finding or done.seconds >= seconds:
            return done
    raise AssertionError("counting has no end")

"""A moment of fuzzing, so that it does not rot, and whether it finds what is wrong; else ``make fuzz``."""

from __future__ import annotations

import re
from typing import Any

import pytest

from airflow_jobmon_provider.client import redaction
from airflow_jobmon_provider.client._http import heartbeat_pool
from airflow_jobmon_provider.client.protocol import reading
from tests.fuzz import runner, targets
from tests.fuzz.targets import TARGETS
from tests.routes import ROUTES, public_functions


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_moment_of_it_finds_nothing(name: str) -> None:
    done = runner.fuzz(TARGETS[name], seconds=0, seed=1, round_of=20)
    assert not done.finding
    assert done.readings >= done.cases >= 20


def test_every_route_is_fuzzed() -> None:
    assert [call.route for call, _ in targets.CALLS] == [row.call().route for row in ROUTES.values()]
    assert public_functions() == set(ROUTES)


def mistake(name: str) -> tuple[Any, str, Any]:
    """Return where to make a mistake, and what to put there."""
    return {
        "a password in an address is shown": (redaction, "_USERINFO", re.compile(r"(?!)")),
        "a secret is shown": (targets, "SECRETS", redaction.NO_SECRETS),
        "a number is not checked": (reading, "_PAST_ALL_NUMBERS", 10**5000),
        "a line is read differently": (heartbeat_pool, "_CLOSE", re.compile(rb"\r\nconnection: close")),
    }[name]


@pytest.mark.parametrize(
    ("target", "planted"),
    [
        ("texts", "a password in an address is shown"),
        ("replies", "a secret is shown"),
        ("replies", "a number is not checked"),
        ("wire", "a line is read differently"),
    ],
)
def test_it_finds_a_mistake(target: str, planted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*mistake(planted))
    assert runner.fuzz(TARGETS[target], seconds=180, seed=1, round_of=200, shrinks=False).finding

"""What users pass in is checked before anything is sent (issue's table "Bad input")."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_jobmon_provider.client.validation import number, one_of, positive_id, seconds, whole

BAD_IDS = [
    "abc",
    -1,
    0,
    "",
    "1/../2",
    True,
    False,
    3.5,
    None,
    "-1",
    "+1",
    "1e3",
    "٣",
    "0",
    [1],
    2**63,
    "9" * 30,
]


@pytest.mark.parametrize("value", BAD_IDS)
def test_a_value_that_is_no_id_is_refused_by_name_and_value(value: object) -> None:
    with pytest.raises(ValueError, match="workflow_id must be a positive integer") as caught:
        positive_id("workflow_id", value)
    assert repr(value) in str(caught.value)


@given(st.integers(min_value=1, max_value=2**63 - 1))
def test_an_id_is_the_same_as_text(number: int) -> None:
    assert positive_id("workflow_id", number) == number
    assert positive_id("workflow_id", f" {number}\n") == number


@given(st.text())
def test_text_is_an_id_or_refused_and_never_anything_else(text: str) -> None:
    try:
        number = positive_id("workflow_id", text)
    except ValueError:
        return
    assert text.strip().isdigit()
    assert number == int(text)
    assert number > 0


BAD_NUMBERS = [-1, -0.1, math.nan, math.inf, -math.inf, "3", "60", None, True, False, [], "abc", 10**400]


@pytest.mark.parametrize("value", [*BAD_NUMBERS, timedelta(seconds=-1)])
def test_a_value_that_is_no_span_of_time_is_refused_by_name_and_value(value: object) -> None:
    with pytest.raises(ValueError, match="limit must be a number of seconds or a timedelta") as caught:
        seconds("limit", value)
    assert repr(value)[:40] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [*BAD_NUMBERS, timedelta(seconds=30)])
def test_a_value_that_is_no_number_is_refused_by_name_and_value(value: object) -> None:
    with pytest.raises(ValueError, match="buffer must be a number, at least 0") as caught:
        number("buffer", value)
    assert repr(value)[:40] in str(caught.value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(timedelta(minutes=5), 300.0), (timedelta(milliseconds=250), 0.25), (timedelta(0), 0.0), (90, 90)],
)
def test_a_span_of_time_is_seconds_or_a_timedelta(value: object, expected: float) -> None:
    assert seconds("timeout", value) == expected
    assert isinstance(seconds("timeout", value), (int, float))


def test_a_timedelta_that_is_too_short_is_refused_as_it_was_given() -> None:
    with pytest.raises(ValueError, match=r"pause must be larger than 0, not datetime\.timedelta\(0\)$"):
        seconds("pause", timedelta(0), above=0)


def test_the_longest_timedelta_is_a_span_of_time() -> None:
    assert seconds("timeout", timedelta.max) > 10**13


def test_zero_is_a_number_of_seconds_unless_it_must_be_above() -> None:
    assert seconds("retries_timeout", 0) == 0
    with pytest.raises(ValueError, match=r"interval must be larger than 0, not 0: too late"):
        seconds("interval", 0, above=0, why="too late")
    with pytest.raises(ValueError, match=r"buffer must be larger than 1, not 1\.0$"):
        seconds("buffer", 1.0, above=1)


def test_an_int_stays_an_int() -> None:
    assert repr(seconds("interval", 30)) == "30"


def test_a_count_must_be_a_whole_number() -> None:
    assert repr(whole("retries_attempts", 3.0)) == "3"
    for value in (-1, 1.5, True, "3", None):
        with pytest.raises(ValueError, match="retries_attempts must be an integer, at least 0, not"):
            whole("retries_attempts", value)


def test_a_value_must_be_one_of_those_named() -> None:
    assert one_of("if_done", "skip", ("skip", "fail")) == "skip"
    with pytest.raises(ValueError, match="if_done must be one of 'skip', 'fail', not 'ignore'"):
        one_of("if_done", "ignore", ("skip", "fail"))

"""Checks of what users pass in, one function a rule, before anything is sent or stored."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

from airflow_jobmon_provider.client.redaction import shown

_LARGEST_ID = 2**63 - 1  # the largest integer that Jobmon's databases can compare an id with
_LARGEST_NUMBER = 1e300


def positive_id(name: str, value: Any) -> int:
    """Return an id as an integer, also where a template or an XCom made it text.

    :param name: the parameter's name, for the message.
    :param value: an integer, or its decimal digits as text.
    :raises ValueError: it is anything else, or not positive. An id never leaves its place in a URL
        (docs/rules.md, rule 8).
    """
    number = value
    if isinstance(value, str):
        text = value.strip()
        number = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None
    if isinstance(number, bool) or not isinstance(number, int) or not 0 < number <= _LARGEST_ID:
        raise ValueError(f"{name} must be a positive integer, not {shown(value)}")
    return number


def seconds(name: str, value: Any, *, above: float | None = None, why: str = "") -> float:
    """Return a span of time in seconds, at least 0 and finite.

    :param name: the parameter's name, for the message.
    :param value: an int or a float, in seconds, or a ``timedelta``.
    :param above: the seconds must be more than this. Default: 0 is allowed, as in Jobmon.
    :param why: what would happen otherwise, for the message.
    :raises ValueError: it is negative, NaN, infinite, neither a number nor a ``timedelta``, or too small.
    """
    given = value.total_seconds() if isinstance(value, timedelta) else value
    return _in_range(name, value, given, "a number of seconds or a timedelta", above, why)


def number(name: str, value: Any, *, above: float | None = None, why: str = "") -> float:
    """Return a number, at least 0 and finite: a factor, or seconds where no ``timedelta`` can be meant.

    :param name: the parameter's name, for the message.
    :param value: an int or a float.
    :param above: the value must be larger than this. Default: 0 is allowed.
    :param why: what would happen otherwise, for the message.
    :raises ValueError: it is negative, NaN, infinite, no number or too small.
    """
    return _in_range(name, value, value, "a number", above, why)


def _in_range(name: str, value: Any, given: Any, kind: str, above: float | None, why: str) -> float:
    numeric = isinstance(given, (int, float)) and not isinstance(given, bool)
    # In this order: no float holds an integer of hundreds of digits.
    if not numeric or not 0 <= given <= _LARGEST_NUMBER or not math.isfinite(given):
        raise ValueError(f"{name} must be {kind}, at least 0 and finite, not {shown(value)}")
    if above is not None and given <= above:
        raise ValueError(
            f"{name} must be larger than {above:g}, not {shown(value)}" + (f": {why}" if why else "")
        )
    return given  # type: ignore[no-any-return]  # an int stays an int: Jobmon's users print it


def whole(name: str, value: Any) -> int:
    """Return a whole number, at least 0.

    :param name: the parameter's name, for the message.
    :param value: an int, or a float without a fraction.
    :raises ValueError: it is anything else.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} must be an integer, at least 0, not {shown(value)}")
    return value


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return the value if it is one of the choices.

    :raises ValueError: it is not.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {shown(value)}")
    return str(value)

"""Reads the values of a reply, each checked: a server may send anything."""

from __future__ import annotations

from typing import Any

from airflow_jobmon_provider.client.exceptions import (
    UnreadableReply,
)
from airflow_jobmon_provider.client.lifecycle import RunStatus, read_status
from airflow_jobmon_provider.client.redaction import (
    excerpt,
)

TOO_OLD = "this provider needs Jobmon 3.4 or newer on the server"

_NAME_LENGTH = 80

_PAST_ALL_NUMBERS = 2**63  # Jobmon's databases hold none that is larger


def nothing(reply: Any) -> None:
    """Check that a reply is an object; what is in it says nothing."""
    read_object(reply)


def unexpected(what: str, reply: Any) -> UnreadableReply:
    """Return the error for a reply of another kind than a route's.

    :param what: what it should have been.
    """
    if reply is None:  # several routes of Jobmon before 3.4 answer so, and have done what they were asked
        return UnreadableReply(f"expected {what}, got null, as from a server that is too old: {TOO_OLD}")
    return UnreadableReply(f"expected {what}, got {excerpt(reply)}")


def read_object(reply: Any) -> dict[str, Any]:
    """Return a JSON object.

    :raises UnreadableReply: it is not an object.
    """
    if not isinstance(reply, dict):
        raise unexpected("a JSON object", reply)
    return reply


def read_key(reply: Any, key: str, kind: Any) -> Any:
    """Return a value of a JSON object.

    :param kind: of which type it must be.
    :raises UnreadableReply: the reply is no object, or the value is missing or of another type.
    """
    value: Any = read_object(reply).get(key)
    # bool is an int to Python, but a server that sends true for a count or an id did not mean 1
    wrong = not isinstance(value, kind) or (
        kind is int and (isinstance(value, bool) or abs(value) >= _PAST_ALL_NUMBERS)
    )
    if wrong:
        name = excerpt(key, _NAME_LENGTH)  # a row's, which the server has named
        raise UnreadableReply(f"expected {name!r} to be of type {kind.__name__}, got {excerpt(reply)}")
    return value


def read_id(reply: Any, key: str) -> int:
    """Return an id, which is going to stand in an address."""
    number: int = read_key(reply, key, int)
    if not is_id(number):
        raise UnreadableReply(f"expected {excerpt(key, _NAME_LENGTH)!r} to be an id, got {excerpt(reply)}")
    return number


def is_id(value: Any) -> bool:
    """Whether a value can be the id of a row in Jobmon's database."""
    return type(value) is int and 0 < value < _PAST_ALL_NUMBERS


def read_name(reply: Any, key: str) -> str:
    """Return a name, which a user has chosen and which is going to be shown, as one short line."""
    return excerpt(read_key(reply, key, str), _NAME_LENGTH)


def indented(line: str) -> str:
    """Return a line's excerpt with its indentation, which a traceback is read by."""
    return " " * min(len(line) - len(line.lstrip(" ")), 8) + excerpt(line)


def read_run_status(reply: Any) -> RunStatus:
    """Return the status of a workflow run that a reply tells."""
    code = read_key(reply, "status", str)
    try:
        return read_status(code)
    except ValueError:
        raise UnreadableReply(f"{excerpt(code)!r} is not a status of a workflow run") from None

"""The registry of routes: it is complete, and its samples are what real servers were recorded to reply."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_jobmon_provider.client.protocol import Call
from tests.contract.recordings import recorded
from tests.routes import ROUTES, ROWS, SAMPLES, VERSIONS, Row, Sample, mismatches, public_functions

RECORDED = {version: recorded(version) for version in VERSIONS}
COMPARED = [
    pytest.param(row, sample, version, id=f"{name}, {version}")
    for name, (row, sample) in SAMPLES.items()
    if sample.like is not None
    for version in sample.versions
]


def test_every_route_has_a_row_and_every_row_a_route() -> None:
    found = mismatches(public_functions(), [row.name for row in ROWS])
    assert not found, "\n".join(found)


def test_a_route_without_a_row_and_a_row_without_a_route_are_told() -> None:
    module = "airflow_jobmon_provider/client/protocol/routes.py"
    assert mismatches({"health", "pause"}, ["health"]) == [
        f"{module} has pause(): add a row for it to tests/routes.py"
    ]
    assert mismatches({"health"}, ["health", "gone"]) == [
        f"tests/routes.py has a row for 'gone', which is no public function of {module}: remove it"
    ]
    assert mismatches({"health"}, ["health", "health"]) == [
        "tests/routes.py has several rows for 'health': keep one"
    ]
    assert mismatches({"health", "reap"}, ["reap", "health"]) == []


@pytest.mark.parametrize("row", ROUTES.values(), ids=ROUTES)
def test_a_row_makes_a_call_and_has_samples(row: Row) -> None:
    assert isinstance(row.call(), Call)
    assert row.samples
    assert not (row.changes and row.call().verb == "get")


@pytest.mark.parametrize("row", ROUTES.values(), ids=ROUTES)
def test_a_route_that_was_recorded_has_a_sample_like_a_recording(row: Row) -> None:
    """No sample escapes the comparison because its row forgot to name a recording."""
    cases = {case for replies in RECORDED.values() for case in replies if case.partition(":")[0] == row.name}
    assert row.recorded.keys() <= cases
    if cases:
        assert row.recorded, f"{row.name} was recorded: say what the replies mean, and see recorder.py"
        assert {sample.like for sample in row.samples} <= cases


@pytest.mark.parametrize(("row", "sample", "version"), COMPARED)
def test_a_sample_has_the_fields_of_a_real_servers_reply(row: Row, sample: Sample, version: str) -> None:
    recording = RECORDED[version][sample.like or ""]
    assert recording["function"] == row.name
    assert recording["status"] == sample.status
    found = list(differences("the reply", sample.reply, recording["body"]))
    assert not found, f"{sample.like!r} of Jobmon {version}: " + "; ".join(found)


def differences(where: str, sample: Any, real: Any) -> Iterator[str]:
    """Yield what is wrong with a sample: a field that is missing, or made up, or of another type.

    :param where: what is compared.
    :param sample: a part of a sample.
    :param real: the same part of a reply that was recorded.
    """
    sample, real = _unpacked(sample), _unpacked(real)
    if type(sample) is not type(real):
        yield f"{where} is {type(sample).__name__}, and was {type(real).__name__}"
    elif isinstance(sample, dict):
        mine, theirs = _by_kind(sample), _by_kind(real)
        yield from (f"{where} has no {key!r}" for key in theirs if key not in mine)
        yield from (f"{where} has {key!r}, which was not sent" for key in mine if key not in theirs)
        for key in (key for key in mine if key in theirs):
            for value in mine[key]:
                yield from _best(f"{where}[{key!r}]", value, theirs[key])
    elif isinstance(sample, list):
        for n, each in enumerate(sample):
            if real:  # of an empty list nobody can tell what would be in it
                yield from _best(f"{where}[{n}]", each, real)


def _best(where: str, sample: Any, candidates: list[Any]) -> list[str]:
    """Return the differences from whatever it is most like."""
    return min((list(differences(where, sample, real)) for real in candidates), key=len)


def _by_kind(fields: dict[str, Any]) -> dict[str, list[Any]]:
    """Return the values of fields by key, where all keys that are numbers are the same."""
    found: dict[str, list[Any]] = {}
    for key, value in fields.items():
        found.setdefault(re.sub(r"^\d+$", "<number>", key), []).append(value)
    return found


def _unpacked(value: Any) -> Any:
    """Return what is in a text that is JSON itself, as in replies of ``workflow_tasks``."""
    return json.loads(value) if isinstance(value, str) and value.startswith("{") else value


TABLE = {"tasks": json.dumps({"ID": {"0": 12, "1": 11}, "NAME": {}}), "runs": [[5, 7]], "user": None}


@pytest.mark.parametrize(
    ("sample", "says"),
    [
        (TABLE, []),
        (TABLE | {"tasks": '{"ID": {"0": 1}, "NAME": {}}', "runs": [[1, 2], [3, 4], []]}, []),
        ([], ["the reply is list, and was dict"]),
        ({"tasks": TABLE["tasks"], "runs": []}, ["the reply has no 'user'"]),
        (TABLE | {"more": 1}, ["the reply has 'more', which was not sent"]),
        (TABLE | {"user": "bob"}, ["the reply['user'] is str, and was NoneType"]),
        (TABLE | {"runs": [[5, True]]}, ["the reply['runs'][0][1] is bool, and was int"]),
        (TABLE | {"tasks": '{"ID": {"0": 1}}'}, ["the reply['tasks'] has no 'NAME'"]),
        (TABLE | {"tasks": '{"ID": {}, "NAME": {}}'}, ["the reply['tasks']['ID'] has no '<number>'"]),
    ],
)
def test_a_sample_that_is_wrong_is_told_field_by_field(sample: Any, says: list[str]) -> None:
    assert list(differences("the reply", sample, TABLE)) == says

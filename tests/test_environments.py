"""docs/environments.md: what it says of the Airflow that runs this, and how its table of cells is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import airflow
import pytest
from airflow.providers.common.compat.sdk import Connection, Context
from airflow.providers_manager import ProvidersManager
from airflow.triggers.base import BaseTrigger

from airflow_jobmon_provider.links.jobmon import JobmonWorkflowLink
from dev import matrix
from tests.running_airflow import airflow_has


def form_as_data() -> bool:
    return '"conn-fields"' in (Path(airflow.__path__[0]) / "providers_manager.py").read_text()


def link_is_registered() -> bool:
    path = f"{JobmonWorkflowLink.__module__}.{JobmonWorkflowLink.__name__}"
    manager: Any = ProvidersManager
    return path in manager().extra_links_class_names


PROBES: dict[str, Callable[[], bool]] = {
    "a call of a trigger's `on_kill`": lambda: hasattr(BaseTrigger, "on_kill"),
    "a task state store": lambda: "task_state_store" in Context.__annotations__,
    "a connection's extra": lambda: hasattr(Connection, "aextra_dejson"),
    "the connection form as data": form_as_data,
    "links of operators": link_is_registered,
}
WITH_A_REAL_AIRFLOW = {"`execution_timeout` that ends", "another try of a task"}
"""The rows that tests/end_to_end read, and hold the real Airflow to."""


@pytest.mark.parametrize("feature", PROBES)
def test_the_page_says_what_this_airflow_has(feature: str) -> None:
    assert airflow_has(feature) == PROBES[feature]()


def test_every_row_is_checked_and_says_what_holds_where_it_is_lacking() -> None:
    _, *rows = matrix.features()
    checked = {*PROBES, *WITH_A_REAL_AIRFLOW}
    found = [name for row in rows for name in checked if row[0].startswith(name)]
    assert sorted(found) == sorted(checked)
    assert len(rows) == len(checked)
    assert [bool(row[-1]) for row in rows] == ["no" in row for row in rows]


def test_the_table_of_cells_keeps_what_was_not_run(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    gone = "| 1.0 | 3.9 | newest | 2020-01-01 | x 1 | y |"
    page.write_text(f"before\n{matrix.BEGIN}\n{gone}\n{matrix.END}\nafter\n")
    first, second = matrix.CELLS[:2]
    for cell, passed in ((second, 1), (first, 2), (first, 3)):
        matrix.write([matrix.row(cell, "2026-01-01", "x 2", matrix.Count(passed, 9))], page)
    titles, _, *rows = page.read_text().partition(matrix.BEGIN)[2].partition(matrix.END)[0].split("\n")[1:-1]
    assert titles.startswith("| Airflow |")
    version = first.airflow.version
    assert rows == [
        f"| {version} | {cell.python} | {cell.way} | 2026-01-01 | x 2"
        f" | {passed} tests passed, 9 with a real Airflow |"
        for cell, passed in ((first, 3), (second, 1))
    ]
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("\nafter\n")


def test_a_report_is_counted(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    cases = [
        '<testcase classname="tests.test_a" name="test_b"/>',
        '<testcase classname="tests.test_a" name="test_c"><failure/></testcase>',
        '<testcase classname="tests.end_to_end.test_d" name="test_e"/>',
        '<testcase classname="tests.end_to_end.test_d" name="test_f"><skipped/></testcase>',
        '<testcase classname="tests.end_to_end.test_d" name="test_g"><error/></testcase>',
    ]
    report.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    count = matrix.counts(report)
    bad = ("tests.test_a::test_c", "tests.end_to_end.test_d::test_f", "tests.end_to_end.test_d::test_g")
    assert count == matrix.Count(1, 1, bad)
    assert not count.ok
    assert str(count).endswith("**3 failed, such as tests.test_a::test_c**")


def test_a_cell_without_a_report_or_without_a_real_airflow_is_not_ok(tmp_path: Path) -> None:
    assert not matrix.counts(tmp_path / "none.xml").ok
    assert not matrix.Count(5, 0).ok
    assert matrix.Count(5, 1).ok


def test_what_an_installation_changed_is_told() -> None:
    before = {"aiohttp": "3.13.3", "requests": "2.32.5", "yarl": "1.0"}
    after = {"aiohttp": "3.13.3", "requests": "2.34.0", "tenacity": "9.0"}
    assert matrix.changed(before, after) == ["requests 2.32.5 → 2.34.0", "yarl 1.0 → none"]

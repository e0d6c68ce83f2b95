"""How the code is laid out: functions that a reader sees at once, and what may be imported from where."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
LONGEST = 40
SOURCES = [
    path
    for folder in ("airflow_jobmon_provider", "benchmarks", "dev")
    for path in (PROJECT / folder).rglob("*.py")
]
TESTS = sorted((PROJECT / "tests").rglob("*.py"))


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return how many lines a function has, from its name to its end, without its docstring."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        lines -= (first.end_lineno or 0) - first.lineno + 1
    return lines


def lengths(source: str) -> dict[str, int]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, functions)]
    return {f"{node.name}, line {node.lineno}": lines_of(node) for node in found}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_no_function_is_longer_than_a_reader_sees_at_once(path: Path) -> None:
    too_long = {name: lines for name, lines in lengths(path.read_text()).items() if lines > LONGEST}
    assert too_long == {}


def test_lines_are_counted_without_the_docstring() -> None:
    source = 'def one():\n    """Say\n\n    a lot."""\n    a = 1\n    return a\n'
    assert lengths(source) == {"one, line 1": 3}


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_nothing_is_imported_from_a_test_module(path: Path) -> None:
    tree = ast.walk(ast.parse(path.read_text()))
    imported = [node.module or "" for node in tree if isinstance(node, ast.ImportFrom)]
    assert [module for module in imported if module.rpartition(".")[2].startswith("test_")] == []

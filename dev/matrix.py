"""Which environments are supported, and the table in docs/environments.md of what each of them showed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree  # reports that our own pytest has written

PROJECT = Path(__file__).resolve().parent.parent
PAGE = PROJECT / "docs" / "environments.md"
BEGIN, END = "<!-- cells: written by make test-matrix -->", "<!-- end of the cells -->"
WAYS = {
    "newest": "the newest libraries",
    "dated": "the libraries of the day after the release, as its constraints have them",
    "lowest": "the oldest libraries that the provider asks for",
}
SHOWN = {
    "common-compat": "apache-airflow-providers-common-compat",
    "aiohttp": "aiohttp",
    "requests": "requests",
}
"""The distributions whose versions a cell tells, by a short name."""


@dataclass(frozen=True)
class Airflow:
    """A release of Airflow.

    :param version: the newest patch of its minor version.
    :param date: the day after its release, whose libraries stand for its constraints.
    :param pythons: the oldest and the newest Python that both it and the provider support.
    :param caps: what keeps libraries older than the newest, as Airflow itself does not run with those.
    :param upgraded: distributions that are too old for the provider as of that date, each with the date as of
        which it is taken instead.
    """

    version: str
    date: str
    pythons: tuple[str, ...]
    caps: tuple[str, ...] = ()
    upgraded: tuple[tuple[str, str], ...] = ()

    @property
    def minor(self) -> str:
        """Major and minor version."""
        return self.version.rpartition(".")[0]


AIRFLOWS = (
    Airflow("2.11.2", "2026-03-15", ("3.10", "3.12")),
    # Its API for tasks refuses the requests of its own tasks with a newer FastAPI.
    Airflow(
        *("3.0.6", "2025-08-30", ("3.10", "3.12")),
        caps=("fastapi<0.132",),
        upgraded=(("apache-airflow-providers-common-compat", "2026-03-12"),),
    ),
    Airflow("3.1.8", "2026-03-12", ("3.10", "3.13")),
    # Its processes do not start with a newer FastAPI.
    Airflow("3.2.2", "2026-05-30", ("3.10", "3.13"), caps=("fastapi<0.137",)),
    Airflow("3.3.2", "2026-09-18", ("3.10", "3.13")),
)


@dataclass(frozen=True)
class Cell:
    """One environment.

    :param way: how its libraries are chosen, one of ``WAYS``.
    """

    airflow: Airflow
    python: str
    way: str

    @property
    def name(self) -> str:
        """What selects it: ``make test-matrix CELLS="3.1-3.12-dated"``."""
        return f"{self.airflow.minor}-{self.python}-{self.way}"


CELLS = (
    *(Cell(airflow, python, way) for airflow in AIRFLOWS for python in airflow.pythons for way in WAYS),
    Cell(AIRFLOWS[2], "3.12", "dated"),  # what Airflow 3.1's own images have; a part of CI
)


def features() -> list[list[str]]:
    """Return the cells of the page's table of what an older Airflow lacks, its titles first."""
    text = PAGE.read_text().partition("## What an older Airflow lacks")[2].partition("\n## ")[0]
    return [
        [part.strip() for part in line.split("|")[1:-1]] for line in text.splitlines() if line[:2] == "| "
    ]


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Say which of an environment's distributions have another version now, or are gone.

    :param before: names and versions.
    :param after: the same, later.
    """
    return [
        f"{name} {version} → {after.get(name, 'none')}"
        for name, version in sorted(before.items())
        if after.get(name) != version
    ]


@dataclass(frozen=True)
class Count:
    """How tests went.

    :param passed: how many passed of those without a real Airflow.
    :param real_passed: how many passed of those with one.
    :param bad: the names of those that did not pass.
    """

    passed: int
    real_passed: int
    bad: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether tests of both kinds passed, and all of them."""
        return not self.bad and self.passed > 0 and self.real_passed > 0

    def __str__(self) -> str:
        """What a cell's row says of them."""
        said = f"{self.passed} tests passed, {self.real_passed} with a real Airflow"
        return f"{said}; **{len(self.bad)} failed, such as {self.bad[0]}**" if self.bad else said


def counts(report: Path) -> Count:
    """Count the tests of a JUnit report that pytest has written.

    :param report: its file; if there is none, no test passed.
    """
    passed = {True: 0, False: 0}
    bad = []
    cases = ElementTree.parse(report).iter("testcase") if report.exists() else ()  # noqa: S314
    for case in cases:
        if case.find("failure") is None and case.find("error") is None and case.find("skipped") is None:
            passed["end_to_end" in case.get("classname", "")] += 1
        else:
            bad.append(f"{case.get('classname')}::{case.get('name')}")
    return Count(passed[False], passed[True], tuple(bad))


def row(cell: Cell, date: str, versions: str, count: Count) -> str:
    """Return a cell's row of the table.

    :param date: when it was run.
    :param versions: of its distributions.
    :param count: how its tests went.
    """
    airflow = cell.airflow
    return f"| {airflow.version} | {cell.python} | {cell.way} | {date} | {versions} | {count} |"


def write(rows: Iterable[str], page: Path = PAGE) -> None:
    """Put rows into the page's table, each in the place of the one for the same cell.

    Rows of cells that are no longer among ``CELLS`` are removed.

    :param page: has a table between ``BEGIN`` and ``END``.
    """
    text = page.read_text()
    head, rest = text.split(BEGIN)
    table, tail = rest.split(END)
    lines = re.findall(r"^\| *\d.*$", table, flags=re.MULTILINE)
    known = {_key(line): line for line in [*lines, *rows]}
    wanted = [(cell.airflow.version, cell.python, cell.way) for cell in CELLS]
    titles = [
        "| Airflow | Python | libraries | tested | with | what it showed |",
        "|---|---|---|---|---|---|",
    ]
    body = [known[key] for key in wanted if key in known]
    page.write_text("\n".join([f"{head}{BEGIN}", *titles, *body, f"{END}{tail}"]))


def _key(line: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in line.split("|")[1:4])

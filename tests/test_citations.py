"""What the code cites is in the repository: each citation names a heading of a page in docs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
FOLDERS = ("airflow_jobmon_provider", "benchmarks", "dev", "docs", "example_dags", "tests")
NAMED = re.compile(r'docs/(\w+\.md)(?:, "([^"]+)"|, rules? (\d+)(?: (and|to) (\d+))?)?')
# What was cited before there were pages to cite.
UNRESOLVED = re.compile("|".join(("protocol " + "page", "design " + "rule", r"design\.md")), re.IGNORECASE)


def sources() -> list[Path]:
    python = [path for folder in FOLDERS for path in (PROJECT / folder).rglob("*.py")]
    return sorted([*python, *(PROJECT / "docs").glob("*.md"), *PROJECT.glob("*.md")])


def prose(path: Path) -> str:
    """Return a file's text as one line, without the marks that begin a line of a comment."""
    return re.sub(r"\s*\n\s*(?:# )?", " ", path.read_text())


def citations(text: str) -> Iterator[tuple[str, str | None]]:
    """Yield each page that a text names, and a heading of it, if it names one."""
    for page, heading, first, how, last in NAMED.findall(text):
        numbers = [int(number) for number in (first, last) if number]
        if how == "to":
            numbers = list(range(numbers[0], numbers[1] + 1))
        yield from ((page, f"Rule {number}") for number in numbers)
        if not numbers:
            yield page, heading or None


def headings(page: str) -> set[str]:
    """Return a page's headings; of those with a number, such as ``Rule 1: …``, the number only."""
    found = re.findall(r"^#+ (.+)$", (PROJECT / "docs" / page).read_text(), re.MULTILINE)
    return {re.sub(r"^(Rule \d+): .*", r"\1", heading) for heading in found}


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PROJECT)))
def test_every_citation_names_a_heading(path: Path) -> None:
    text = prose(path)
    assert UNRESOLVED.search(text) is None
    for page, heading in citations(text):
        assert (PROJECT / "docs" / page).is_file(), f"{path} cites docs/{page}"
        assert heading is None or heading in headings(page), f"{path} cites docs/{page}, {heading!r}"


def test_the_code_cites_both_pages() -> None:
    cited = {page for path in sources() for page, _ in citations(prose(path))}
    assert cited >= {"protocol.md", "rules.md"}


def test_a_citation_is_read_across_lines_and_with_several_numbers() -> None:
    text = 'see docs/protocol.md, "Size", docs/rules.md, rules 1 to 3, and docs/rules.md, rules 7 and 9'
    rules = [("rules.md", f"Rule {number}") for number in (1, 2, 3, 7, 9)]
    assert list(citations(text)) == [("protocol.md", "Size"), *rules]

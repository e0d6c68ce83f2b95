"""The table of Jobmon's versions in docs/protocol.md says what was recorded, and what is done with it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.contract.recordings import IN_THE_SANDBOX, REPLIES, TOO_OLD
from tests.routes import VERSIONS

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"
OLD = {".".join(version.split(".")[:2]): version for version in TOO_OLD}
"""Which version was recorded for those that are refused, by what the page calls them."""


def table() -> dict[str, list[str]]:
    """Return the cells of each row of the page's first table, by what the version is called."""
    lines = PAGE.read_text().partition("| called here |")[2].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: cells for name, *cells in rows}


def test_the_page_has_the_versions_that_were_recorded() -> None:
    recorded = {path.stem for path in REPLIES.glob("*.json") if not path.stem.endswith("-login")}
    assert {OLD.get(name, name) for name in table()} == recorded
    assert recorded == {*VERSIONS, *TOO_OLD}


def test_the_page_says_which_commit_was_recorded() -> None:
    for name, (what, *_) in table().items():
        version = json.loads((REPLIES / f"{OLD.get(name, name)}.json").read_text())["version"]
        commits = re.findall(r"commit (\w+)", what)
        assert commits == re.findall(r"commit (\w+)", version), name
        assert bool(commits) == ("public source" in what), name


def test_the_page_says_what_is_refused_and_below_which_prefix_the_routes_are() -> None:
    for name, (_, prefix, works, _) in table().items():
        assert works == ("refused" if name in OLD else "yes"), name
        expected = TOO_OLD[OLD[name]] if name in OLD else IN_THE_SANDBOX[name].removeprefix("/3.6")
        assert prefix.startswith(f"`{expected}`" if expected else "no prefix"), name

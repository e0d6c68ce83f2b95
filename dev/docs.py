"""Writes what the docs take from the code: the table of a run's life, the table of the connection's fields.

python -m dev.docs
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dev import connection_table, lifecycle_page

PROJECT = Path(__file__).parent.parent


class Part(NamedTuple):
    """A part of a page that comes from the code; it stands between two comments.

    :param page: path of the page, below the project's folder.
    :param source: path of the module that it comes from, below the package.
    :param render: returns it, as Markdown.
    """

    page: str
    source: str
    render: Callable[[], str]


PARTS = (
    Part("docs/protocol.md", "client/lifecycle.py", lifecycle_page.render),
    Part("README.md", "hooks/fields.py", connection_table.render),
)


def insert(text: str, part: Part) -> str:
    """Return the text of a page with one part as the code has it now.

    :raises ValueError: the page has no place for it.
    """
    start = f"<!-- From {part.source}: make docs -->\n"
    marked = re.compile(f"({re.escape(start)}).*?(<!-- End -->)", re.DOTALL)
    written, places = marked.subn(lambda match: match[1] + part.render() + match[2], text)
    if places != 1:
        raise ValueError(f"{part.page} has {places} places for what comes from {part.source}, not one")
    return written


if __name__ == "__main__":
    for each in PARTS:
        path = PROJECT / each.page
        path.write_text(insert(path.read_text(), each))

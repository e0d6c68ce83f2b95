"""The pages show what the code says."""

from __future__ import annotations

import pytest

from dev import docs


@pytest.mark.parametrize("part", docs.PARTS, ids=lambda part: part.page)
def test_a_page_shows_what_the_code_says(part: docs.Part) -> None:
    page = (docs.PROJECT / part.page).read_text()
    assert docs.insert(page, part) == page, "run: make docs"


def test_a_page_without_a_place_for_a_part_is_refused() -> None:
    with pytest.raises(ValueError, match="0 places"):
        docs.insert("# A page", docs.PARTS[0])

"""The page about Jobmon's server shows the table of a run's life as the code has it."""

from __future__ import annotations

import pytest

from dev import lifecycle_page


def test_the_page_shows_the_table_that_the_code_uses() -> None:
    page = lifecycle_page.PAGE.read_text()
    assert lifecycle_page.insert(page) == page, "run: make docs"


def test_a_page_without_a_place_for_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="0 places"):
        lifecycle_page.insert("# A page")

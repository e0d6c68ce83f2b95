"""Operators start jobs, in login shells."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _at_home(own_home: None) -> None:
    """Run jobs with a home of the tests' own."""

"""The calls that cost the server O(tasks), on MariaDB; `make bench` does the same with a million tasks."""

from __future__ import annotations

import pytest

from benchmarks.big_workflow import big_workflow
from benchmarks.figures import Figures


@pytest.mark.timeout(300)
def test_each_costly_call_is_one_request_that_does_not_time_out_and_is_right() -> None:
    figures = Figures()
    big_workflow(figures, quick=True)
    found = {figure.name: figure.value for figure in figures.found}
    assert found["big_workflow_requests"] == 1
    assert found["big_workflow_timeouts"] == 0

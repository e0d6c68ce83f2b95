"""What holds of a run wherever it is executed, with jobs of a real Slurm."""

from __future__ import annotations

import pytest

from dev.jobmon_sandbox import JobmonSandbox
from tests.operators.placements import (  # noqa: F401  # collected here, too
    test_a_cluster_that_jobmon_does_not_know_makes_no_retry,
    test_a_python_that_is_not_there,
    test_a_retry_goes_on_with_the_job,
    test_a_retry_of_a_run_that_has_ended_tells_the_rest_and_leaves_nothing_behind,
    test_a_retry_that_finds_no_job_of_ours_watches_the_run_as_ever,
    test_a_worker_that_defers_leaves_the_output_to_the_trigger,
    test_each_line_is_logged_once_though_a_triggerer_takes_over,
    test_the_run_is_executed_to_its_end,
    test_what_cannot_begin_aborts_the_run_and_says_why_first,
    test_what_was_over_before_the_trigger_began_is_told_all_the_same,
)

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("connected")]


@pytest.fixture
def sandbox(jobmon: JobmonSandbox) -> JobmonSandbox:
    return jobmon

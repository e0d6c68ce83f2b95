"""Ends a test session whose teardown hangs.

pytest-timeout and pytest's own faulthandler stop their clocks at the first failure of a test, so that a
debugger may take its time. Where the test has left something that does not end, its teardown would then hang
for ever.
"""

from __future__ import annotations

import faulthandler
from collections.abc import Generator

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key  # standard error, which is captured by then

LIMIT = 300.0
"""Seconds for the teardown of one test, with that of the fixtures that end with it."""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """Show where each thread is, and end the process, if the teardown takes too long."""
    stderr = item.config.stash[fault_handler_stderr_fd_key]
    faulthandler.dump_traceback_later(LIMIT, file=stderr, exit=True)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()

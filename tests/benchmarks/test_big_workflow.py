"""The part that needs MariaDB: it runs where there is one, and says so where there is none."""

from __future__ import annotations

import socket

import pytest

from benchmarks.big_workflow import big_workflow
from benchmarks.figures import Figures


def test_without_mariadb_it_says_so_and_has_no_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setenv("TEST_STACK_MARIADB", f"mysql://root@127.0.0.1:{taken.getsockname()[1]}")
        figures = Figures()
        big_workflow(figures, quick=True)
    assert not figures.found
    assert not figures.missed
    assert capsys.readouterr().out.startswith("big_workflow: not measured: ")

"""The demo on a cluster says at once what it needs; the demo itself runs in tests/proofs/test_newcomer.py."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from dev import demo

LINE = "apt-get install --no-install-recommends openssh-server slurmctld slurmd slurm-client munge"


@pytest.fixture
def on_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["demo", "--hpc"])


@pytest.mark.usefixtures("on_slurm")
def test_without_slurm_and_sshd_it_says_how_to_get_them_and_starts_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert demo.main() == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.endswith(f"have to be installed: {LINE}\n")
    assert said.err.count("\n") == 1


@pytest.mark.usefixtures("on_slurm")
def test_without_root_it_says_so_and_starts_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, **_: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert demo.main() == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == (
        "",
        "make demo HPC=1 needs to be run by root: only root can start jobs as their users\n",
    )

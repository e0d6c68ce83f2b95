"""Under which name Jobmon records who made a run."""

from __future__ import annotations

import os
import pwd

import pytest

from airflow_jobmon_provider.client.user import current_user

NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")


def test_a_user_id_that_the_system_does_not_know_is_a_name_itself(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nobody = max(entry.pw_uid for entry in pwd.getpwall()) - 1
    while nobody in {entry.pw_uid for entry in pwd.getpwall()}:
        nobody -= 1
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: nobody)
    assert current_user() == f"uid-{nobody}"
    (line,) = caplog.messages
    assert f"the user id {nobody} has no name" in line
    assert "LOGNAME" in line


def test_the_environment_names_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "alice")
    assert current_user() == "alice"

"""The Airflow settings of the user who runs tests or benchmarks take no part in them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from airflow.configuration import AIRFLOW_HOME, conf  # here, as in other tests: before any fixture

PROJECT = Path(__file__).resolve().parents[1]
READS_A_SETTING = (
    "from airflow.configuration import conf; print(conf.getboolean('operators', 'default_deferrable'))"
)


@pytest.fixture
def python(tmp_path: Path) -> list[str]:
    """The beginning of a command that runs where ``~/airflow/airflow.cfg`` lets a setting not be read."""
    (tmp_path / "airflow").mkdir()
    (tmp_path / "airflow" / "airflow.cfg").write_text("[operators]\ndefault_deferrable = broken\n")
    return ["env", "--unset=AIRFLOW_HOME", f"HOME={tmp_path}", sys.executable]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)


@pytest.mark.parametrize("package", ["tests", "benchmarks"])
def test_the_users_airflow_is_left_out(python: list[str], package: str) -> None:
    assert run(*python, "-c", READS_A_SETTING).returncode != 0  # else this shows nothing
    done = run(*python, "-c", f"import {package}; {READS_A_SETTING}")
    assert done.stdout.splitlines()[-1:] == ["False"], done.stderr


def test_pytest_sets_the_home_before_any_test_imports_airflow(python: list[str]) -> None:
    one = f"{__file__}::{test_this_process_has_a_home_of_its_own.__name__}"
    done = run(*python, "-m", "pytest", "-q", "-p", "no:cacheprovider", one)
    assert done.returncode == 0, done.stdout + done.stderr


def test_this_process_has_a_home_of_its_own() -> None:
    assert conf.getboolean("operators", "default_deferrable") is False
    assert os.environ["AIRFLOW_HOME"] == AIRFLOW_HOME
    assert Path(AIRFLOW_HOME) != Path.home() / "airflow"

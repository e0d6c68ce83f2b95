"""What people start in a terminal leaves nothing behind, whenever and however they end it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.foreground import PROJECT, processes_that_hold, started

MOMENTS = {
    "at once": "jobmon-dev-*",
    "Jobmon starts": "jobmon-dev-*/jobmon-sandbox-*/server.log",
    "Airflow starts": "jobmon-dev-*/airflow-stack-*/scheduler.log",
}
"""What is in the temporary folder at a moment of the start-up."""


@pytest.mark.parametrize(
    ("module", "moment", "number"),
    [
        ("dev.jobmon_sandbox", "at once", signal.SIGINT),
        ("dev.jobmon_sandbox", "Jobmon starts", signal.SIGTERM),
        ("dev.demo", "at once", signal.SIGTERM),
        ("dev.demo", "Jobmon starts", signal.SIGHUP),
        ("dev.demo", "Airflow starts", signal.SIGINT),
    ],
)
def test_nothing_is_left_when_the_start_is_interrupted(
    module: str, moment: str, number: signal.Signals, tmp_path: Path
) -> None:
    with started(tmp_path / "output", module) as foreground:
        foreground.wait_for(lambda: [*foreground.temporary.glob(MOMENTS[moment])], 60, moment)
        assert foreground.end(number) == 128 + number
        foreground.assert_that_nothing_is_left()
        assert f"{number.name}: everything has been ended" in foreground.output
        assert "Traceback" not in foreground.output


@pytest.mark.parametrize(
    ("module", "command", "number"),
    [
        ("dev.demo", ("-m", "venv"), signal.SIGINT),
        ("dev.demo", ("uv", "pip", "install"), signal.SIGHUP),
        ("dev.jobmon_sandbox", ("uv", "pip", "install"), signal.SIGTERM),
    ],
)
def test_nothing_is_left_when_the_installation_is_interrupted(
    module: str, command: tuple[str, ...], number: signal.Signals, tmp_path: Path
) -> None:
    environment = tmp_path / "environment"
    with started(tmp_path / "output", module, JOBMON_SANDBOX_ENV=str(environment)) as foreground:
        text = "\0".join(command)
        foreground.wait_for(lambda: processes_that_hold(text, str(environment)), 60, "the installation")
        assert foreground.end(number) == 128 + number
        foreground.assert_that_nothing_is_left()
    assert not (environment / ".installed").exists()  # the next one does it anew


def test_a_second_signal_does_not_stop_the_removal(tmp_path: Path) -> None:
    with started(tmp_path / "output", "dev.jobmon_sandbox") as foreground:
        foreground.wait_for(lambda: [*foreground.temporary.glob(MOMENTS["Jobmon starts"])], 60, "the start")
        foreground.process.send_signal(signal.SIGINT)
        assert foreground.end(signal.SIGTERM) > 128
        foreground.assert_that_nothing_is_left()


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path) -> None:
    """As under nohup, which people use to keep something running."""
    program = f"""
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)
os.chdir({str(PROJECT)!r})
os.execv(sys.executable, [sys.executable, "-m", "dev.jobmon_sandbox"])
"""
    (tmp_path / "nohup_sandbox.py").write_text(program)
    with started(tmp_path / "output", "nohup_sandbox", PYTHONPATH=str(tmp_path)) as foreground:
        foreground.wait_for(lambda: [*foreground.temporary.glob("jobmon-dev-*")], 60, "the start")
        foreground.process.send_signal(signal.SIGHUP)
        foreground.wait_for_output("Ctrl-C here ends", 120)
        assert foreground.end(signal.SIGTERM) == 0
        foreground.assert_that_nothing_is_left()


def test_the_exit_code_and_the_arguments_are_those_of_the_module(tmp_path: Path) -> None:
    with started(tmp_path / "output", "dev.demo", "--nonsense") as foreground:
        assert foreground.process.wait(60) == 2
        assert "unrecognized arguments: --nonsense" in foreground.output
        foreground.assert_that_nothing_is_left()

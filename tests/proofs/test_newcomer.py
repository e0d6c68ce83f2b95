"""What a newcomer sees: ``make demo`` and ``make sandbox``, with the commands that they print."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.foreground import started

pytestmark = pytest.mark.timeout(1200)  # a Jobmon, an Airflow, and two DAG runs, on a machine that is busy
DAG_ID = "jobmon_resume_and_execute"


def read(url: str) -> str:
    with urllib.request.urlopen(url) as reply:
        text: str = reply.read().decode()
        return text


def pasted(output: str) -> str:
    """Return the commands that the sandbox tells people to paste."""
    lines = output.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("cd "))
    return "\n".join(lines[first : lines.index("", first)])


def test_what_the_sandbox_prints_can_be_pasted_and_ends_done(tmp_path: Path) -> None:
    with started(tmp_path / "output", "dev.jobmon_sandbox") as sandbox:
        sandbox.wait_for_output("Ctrl-C here ends", 300)
        (url,) = set(re.findall(r"http://127.0.0.1:\d+", sandbox.output))
        assert "Workflow 1: FAILED" in read(url)
        assert "Its cluster is called multiprocess" in sandbox.output
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW", "JOBMON"))}
        shell = subprocess.run(
            ["/bin/bash", "-e"],
            input=pasted(sandbox.output),
            cwd=tmp_path,
            env={**kept, "TMPDIR": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert shell.returncode == 0, shell.stdout + shell.stderr
        assert "workflow run 2 ended DONE" in shell.stdout + shell.stderr
        assert "Workflow 1: DONE" in read(url)
        assert sandbox.end(signal.SIGTERM) == 0
        sandbox.assert_that_nothing_is_left()


def test_the_demo_ends_done_and_leaves_nothing(tmp_path: Path) -> None:
    with started(tmp_path / "output", "dev.demo") as demo:
        assert demo.process.wait(900) == 0, demo.output
        assert "workflow 1: DONE" in demo.output
        demo.assert_that_nothing_is_left()


def of_airflow(url: str, run: str, path: str = "") -> Any:
    return json.loads(read(f"{url}/api/v2/dags/{DAG_ID}/dagRuns/{quote(run)}{path}"))


def test_the_demo_that_is_kept_shows_a_run_that_ends_well_and_one_that_fails(tmp_path: Path) -> None:
    with started(tmp_path / "output", "dev.demo", "--keep") as demo:
        demo.wait_for_output("Ctrl-C ends both", 300)
        url, done = re.findall(rf"^  (.*)/dags/{DAG_ID}/runs/(\S+)$", demo.output, re.MULTILINE)[0]
        (failed,) = re.findall(rf"^  {url}/dags/{DAG_ID}/runs/(\S+)/tasks/run$", demo.output, re.MULTILINE)
        assert of_airflow(url, done)["state"] == "success"
        assert of_airflow(url, failed)["state"] == "failed"
        assert of_airflow(url, failed, "/taskInstances/run")["try_number"] == 1  # the last one: rule 10
        log = json.dumps(of_airflow(url, failed, "/taskInstances/run/logs/1"))
        assert "tasks failed, 0 done" in log
        assert "No such file or directory" in log
        for run, workflow in ((done, "DONE"), (failed, "FAILED")):
            link = of_airflow(url, run, "/taskInstances/run/links")["extra_links"]["Jobmon workflow"]
            address, _, fragment = link.partition("#")
            assert f'id="{fragment}"><h2>Workflow {fragment[-1]}: {workflow}' in read(address)
        assert demo.end(signal.SIGINT) == 0
        demo.assert_that_nothing_is_left()

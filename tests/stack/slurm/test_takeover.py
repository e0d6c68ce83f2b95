"""Many deferred runs whose executors are jobs of Slurm: their triggerer is killed, and another takes over."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from airflow.triggers.base import BaseTrigger

from dev.jobmon_sandbox import JobmonSandbox, SandboxWorkflow, wait_until
from dev.launcher import Child
from dev.slurm import Slurm
from tests.stack.slurm import triggerer
from tests.stack.slurm.runs import Make, deferred

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("connected")]

COUNT = 50

# In place of Jobmon's client: so many of these would take the machine minutes. It takes a run as an executor
# does, waits until it may end it, and keeps a line for each time that it was started.
STAND_IN = """\
#!{python} -IS
import os, sys, time, urllib.request
url = os.environ["JOBMON__HTTP__SERVICE_URL"] + os.environ["JOBMON__HTTP__ROUTE_PREFIX"]
options = dict(word.lstrip("-").split("=", 1) for word in sys.argv[2:])
run = options["workflow-run-id"]
with open({started!r}, "a") as file:
    file.write(run + "\\n")
open(options["taken-file"], "w").close()
for status in "BIORD":
    while status == "D" and not os.path.exists({go!r}):
        time.sleep(0.2)
    body = b'{{"status": "' + status.encode() + b'"}}'
    headers = {{"Content-Type": "application/json"}}
    where = url + "/workflow_run/" + run + "/update_status"
    urllib.request.urlopen(urllib.request.Request(where, body, headers, method="PUT")).read()
print("executor: the stand-in has done workflow run", run)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Child]]:
    """Start a triggerer, by its name."""
    children: list[Child] = []

    def begin(name: str) -> Child:
        files = (triggerer.__file__, tmp_path / "triggers", tmp_path / "events")
        command = [sys.executable, *map(str, files)]
        children.append(Child(command, env=os.environ, cwd=tmp_path, log=tmp_path / name))
        return children[-1]

    yield begin
    for child in children:
        child.stop()


def stand_in(folder: Path) -> Path:
    program = folder / "python"
    files = {"started": str(folder / "started"), "go": str(folder / "go")}
    program.write_text(STAND_IN.format(python=sys.executable, **files))
    program.chmod(0o755)
    return program


def defer_all(jobmon: JobmonSandbox, make: Make, folder: Path) -> None:
    """Create the runs and submit their jobs; every second one is held. The triggers are stored."""
    original = jobmon.make_workflow("new", tasks=1)
    python = str(stand_in(folder))

    def defer(number: int, workflow_id: int) -> BaseTrigger:
        workflow = SandboxWorkflow(workflow_id, None, original.marker)
        hold = {"launcher_options": {"hold": number % 2 == 0}, "jobmon_python": python}
        return deferred(make(workflow, ssh_conn_id="submit_host", deferrable=True, **hold))

    with ThreadPoolExecutor(6) as threads:
        ids = jobmon.copy_workflow(original.workflow_id, COUNT)
        triggers = list(threads.map(defer, range(COUNT), ids))
    triggerer.store(triggers, folder / "triggers")


def test_fifty_runs_outlive_their_triggerer(
    jobmon: JobmonSandbox,
    slurm: Slurm,
    make: Make,
    tmp_path: Path,
    start: Callable[[str], Child],
) -> None:
    defer_all(jobmon, make, tmp_path)
    first = start("first")
    seen = first.log or Path()
    wait_until(lambda: seen.read_text().count("is RUNNING (R)") == COUNT // 2, 60, "half to run")
    wait_until(lambda: seen.read_text().count("PENDING: JobHeldUser") == COUNT // 2, 60, "half to wait")
    first.kill()
    assert not (tmp_path / "events").exists()
    second = start("second")
    wait_until(lambda: (second.log or Path()).read_text().count("JobHeldUser") == COUNT // 2, 60, "another")
    slurm.run(
        "scontrol", "release", slurm.run("squeue", "-h", "-t", "PENDING", "-o", "%i").replace("\n", ",")[:-1]
    )
    (tmp_path / "go").touch()
    assert second.wait(180) == 0
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    runs = {event["workflow_run_id"] for event in events}
    assert len(events) == len(runs) == COUNT
    assert {jobmon.run_status(run) for run in runs} == {"D"}
    assert Counter((tmp_path / "started").read_text().split()) == Counter(map(str, runs))
    names = Counter(slurm.run("squeue", "-h", "-t", "all", "-o", "%j").split())
    written = (second.log or Path()).read_text()
    for run in runs:
        assert sum(count for name, count in names.items() if name.endswith(f"-{run}")) == 1
        assert written.count(f"the stand-in has done workflow run {run} ") == 1

"""Tasks whose worker is killed at a step each, and what becomes of them when Airflow tries them again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator
from dev.jobmon_sandbox import JobmonSandbox
from tests.airflow_task import execute, fire, resume
from tests.operators.mortal import Life

CREATED = "after POST /api/v2/workflow_run"
UNKNOWN = (CREATED, "before Airflow's memory")
"""Where nobody knows of the run: it is reaped, and the retry creates another."""

_AT_ONCE = 3

_STAND_IN = """\
#!{python} -SE
import json, os, sys, time, urllib.request

words = dict(word[2:].split("=", 1) for word in sys.argv[2:])
run, prefix = words["workflow-run-id"], os.environ["JOBMON__HTTP__ROUTE_PREFIX"]
address = os.environ["JOBMON__HTTP__SERVICE_URL"] + prefix + "/workflow_run/" + run + "/update_status"
open(words["taken-file"], "w").close()
opener = urllib.request.build_opener(urllib.request.ProxyHandler({{}}))
for status in "BIORD":
    deadline = time.monotonic() + 120
    while status == "D" and not os.path.exists({go!r} + words["workflow-id"]) and time.monotonic() < deadline:
        time.sleep(0.1)
    body, headers = json.dumps({{"status": status}}).encode(), {{"Content-Type": "application/json"}}
    request = urllib.request.Request(address, body, headers, method="PUT")
    reply = json.loads(opener.open(request, timeout=60).read())
    if reply["status"] != status:
        sys.exit("the run is " + reply["status"])
print("executor: stand-in for run", run)
"""


def stand_in(folder: Path) -> Path:
    """Return a program that does what an executor does with a run, but has no tasks to execute.

    It ends the run once there is a file ``go-`` with the workflow's id in that folder.
    """
    program = folder / "stand_in"
    program.write_text(_STAND_IN.format(python=sys.executable, go=str(folder / "go-")))
    program.chmod(0o755)
    return program


@dataclass
class Death:
    """A worker that was killed at a step of a task."""

    step: str
    workflow_id: int
    life: Life
    operator: CreateWorkflowRunOperator
    context: Any = None


class Deaths:
    """Workers that die, and what becomes of their tasks.

    :param sandbox: the Jobmon.
    :param folder: a folder of the test's; the jobs have theirs below.
    :param python: what executes the executor.
    :param workflow: makes a workflow and returns its id. Default: one without tasks.
    """

    def __init__(
        self,
        sandbox: JobmonSandbox,
        folder: Path,
        *,
        python: Path,
        workflow: Callable[[], int] | None = None,
    ) -> None:
        self._sandbox = sandbox
        self._folder = folder
        self._jobs = folder / "a b;$(touch pwned)'"  # its name is no friend of shells
        self._begun = folder / "begun"
        self._begun.touch()
        self._python = python
        self._original = 0 if workflow else sandbox.make_workflow("new", tasks=1).workflow_id
        self._workflow = workflow or self._copy

    def _copy(self) -> int:
        return self._sandbox.copy_workflow(self._original, 1)[0]

    def life(self, place: dict[str, Any], step: str | None = None) -> Death:
        """Return a task that is to begin, on a worker that is to die at a step."""
        workflow_id = self._workflow()
        options = {
            "workflow_id": workflow_id,
            "cluster_name": "multiprocess",
            "jobmon_python": str(self._python),
            "remote_dir": str(self._jobs),
            "setup_commands": [f'echo "${{run##*-}}" >>{self._begun}'],
            "workflow_run_heartbeat_interval": 2,
            "heartbeat_report_by_buffer": 300,  # none is lost by chance
            "poll_interval": 1,
            **place,
        }
        life = Life(options, self._folder / f"life-{workflow_id}", step)
        return Death(step or "", workflow_id, life, CreateWorkflowRunOperator(task_id="run", **options))

    def happen(self, steps: Sequence[str], place: dict[str, Any]) -> None:
        """Let a worker die at each of these steps; try each task again at once, as Airflow may do, and go on
        to its end. Look at what has become of the runs.
        """
        deaths = [self.life(place, step) for step in steps]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            begun = list(pool.map(self._die_and_begin_again, deaths))
        for death in deaths:
            self._let_executor_end(death)

        async def to_the_end() -> list[Any]:
            deferred = (each for each in begun if isinstance(each, TaskDeferred))
            return list(await asyncio.gather(*(fire(each.trigger) for each in deferred)))

        events = iter(asyncio.run(to_the_end()))
        for death, result in zip(deaths, begun, strict=True):
            if isinstance(result, TaskDeferred):
                result = resume(death.operator, result, next(events), death.context)
            self._has_one_run_and_one_job(death, result)
        assert not (Path.home() / "pwned").exists()

    def _die_and_begin_again(self, death: Death) -> Any:
        """Let a worker die, and return the result of the next try, or its deferral."""
        end = death.life.run()
        assert end == -signal.SIGKILL, f"{death.step}: {death.life.said}"
        # What a thread does beside the task may be too late to be a step of it.
        may_be_later = "command" in death.step and not death.step.endswith("command 1")
        assert death.life.steps[-1] == death.step or may_be_later
        if death.step in UNKNOWN:
            self._reap(death)
        if not death.operator.deferrable:
            self._let_executor_end(death)
        death.context = death.life.tries().next()
        try:
            return execute(death.operator, death.context)
        except TaskDeferred as deferred:
            return deferred

    def _reap(self, death: Death) -> None:
        run, status = self._sandbox.runs(death.workflow_id)[-1]
        assert status == "L"
        self._sandbox.age_heartbeat(run, 3600)
        self._sandbox.reap()

    def _let_executor_end(self, death: Death) -> None:
        (self._folder / f"go-{death.workflow_id}").touch()

    def _has_one_run_and_one_job(self, death: Death, result: Any) -> None:
        runs = [row for row in self._sandbox.runs(death.workflow_id)[-2:] if row[0] >= self._first_run(death)]
        *lost, last = runs
        assert last == (result, "D"), death.step
        assert [status for _, status in lost] == ["A"] * (death.step in UNKNOWN), death.step
        begun = self._begun.read_text().split()
        assert [begun.count(str(run)) for run, _ in runs] == [0] * len(lost) + [1], death.step
        assert self._sandbox.workflow_status(death.workflow_id) == "D", death.step

    def _first_run(self, death: Death) -> int:
        """Return the first run that the task has created: a workflow that has failed had others."""
        runs = self._sandbox.runs(death.workflow_id)
        return next(run for run, status in runs if status != "E")

    def kill_what_is_left(self) -> None:
        """Kill what executors have left behind."""
        for handle in self._jobs.glob("runs/*/handle"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(handle.read_text().split()[0]), signal.SIGKILL)


def steps_of(deaths: Deaths, place: dict[str, Any]) -> list[str]:
    """Return the steps of a deferrable task, of which one is executed until it is deferred."""
    whole = deaths.life(place)
    assert whole.life.run() == 0, whole.life.said
    return whole.life.steps


def failed_workflow(sandbox: JobmonSandbox) -> int:
    """Make a workflow whose run has ended in error, and whose one task is reset and succeeds from now on."""
    workflow = sandbox.make_workflow_in("E")
    workflow.release()
    sandbox.post(f"/api/v2/task/{workflow.workflow_id}/set_resume_state", {"reset_if_running": True})
    return workflow.workflow_id

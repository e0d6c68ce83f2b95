"""Runs that are executed on a submit host: what they hold of a worker, and how late their output is logged.

The host is a real SSH server with real sessions and processes, the server a real Jobmon's.
``python -m benchmarks.submit_host`` is the process of a task.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figures import Figures
from benchmarks.load import consume, quantile
from benchmarks.real import TaskInstance
from dev.jobmon_sandbox import CLUSTER, JobmonSandbox
from dev.submit_host import SubmitHost

_HOST = "submit_host"  # id of its connection


@contextlib.contextmanager
def _cluster(heartbeat_interval: float = 2) -> Iterator[tuple[JobmonSandbox, Path]]:
    """Run a Jobmon and a submit host, with connections to both; give a folder on that host, too."""
    with (
        JobmonSandbox(heartbeat_interval=heartbeat_interval) as sandbox,
        SubmitHost(sandbox.environment()) as host,
    ):
        os.environ["AIRFLOW_CONN_JOBMON_DEFAULT"] = sandbox.connection()
        os.environ[f"AIRFLOW_CONN_{_HOST.upper()}"] = json.dumps(host.connection)
        yield sandbox, sandbox.directory / "remote"


# --- Worker -------------------------------------------------------------------------------------------------


def submission(figures: Figures, *, quick: bool) -> None:
    """Seconds of a worker slot that one deferred run on the submit host takes: submission and end.

    Each of both has a fresh process, which has imported Airflow, as one of a task has. Counted is from the
    import of the operator, over ``execute`` until it defers, or ``execute_complete`` until it returns, to the
    end of the process; not what Airflow itself takes to start a task's process. The run is really executed
    in between, followed by its trigger.
    """
    with _cluster() as (sandbox, folder):
        seconds = [_worker_seconds(sandbox, folder) for _ in range(1 if quick else 5)]
    figures.add("worker_seconds_of_a_run", median(seconds), "s", at_most=5)


def _worker_seconds(sandbox: JobmonSandbox, folder: Path) -> float:
    """Have a workflow resumed by a deferred run, and return for how long that has held a worker."""
    workflow = sandbox.make_workflow_in("E")
    sandbox.post(f"/api/v2/task/{workflow.workflow_id}/set_resume_state", {"reset_if_running": True})
    workflow.release()
    parameters = {
        "workflow_id": workflow.workflow_id,
        "cluster_name": CLUSTER,
        "ssh_conn_id": _HOST,
        "jobmon_python": str(sandbox.python),
        "remote_dir": str(folder),
        "deferrable": True,
    }
    held, deferred = _in_a_task_process(parameters)
    path, kwargs = deferred.pop("trigger")
    module, _, name = path.rpartition(".")
    trigger = getattr(importlib.import_module(module), name)(**kwargs)

    async def fire() -> Any:
        return (await anext(trigger.run())).payload

    back = {**deferred, "event": asyncio.run(fire())}
    held_again, result = _in_a_task_process(parameters, back)
    if sandbox.run_status(result) != "D":
        raise RuntimeError(f"run {result} is not DONE but {sandbox.run_status(result)}")
    return held + held_again


def _in_a_task_process(*given: Any) -> tuple[float, Any]:
    """Execute or complete a task; return for how long it has held its worker, and what came of it."""
    command = [sys.executable, "-m", "benchmarks.submit_host"]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, check=False)
    ended = time.time()
    if done.returncode:
        raise RuntimeError(f"a task failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    began, result = json.loads(done.stdout.splitlines()[-1])
    return ended - began, result


def _be_a_task(parameters: dict[str, Any], back: dict[str, Any] | None = None) -> tuple[float, Any]:
    """Execute a task in this process; return when it began, and what came of it.

    :param back: from where it comes back. Default: it begins.
    """
    from airflow.providers.common.compat.sdk import BaseOperator, TaskDeferred  # noqa: F401

    began = time.time()
    from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator

    operator = CreateWorkflowRunOperator(task_id="run", **parameters)
    context: Any = {"ti": TaskInstance()}
    if back is not None:
        kwargs = {**back["kwargs"], "event": back["event"]}
        return began, operator.resume_execution(back["method"], kwargs, context)
    try:
        operator.execute(context)
    except TaskDeferred as deferred:
        trigger: Any = deferred.trigger
        kept = {"method": deferred.method_name, "kwargs": deferred.kwargs or {}}
        return began, {**kept, "trigger": trigger.serialize()}
    raise RuntimeError("it did not defer")


# --- Output -------------------------------------------------------------------------------------------------

_EXECUTOR = """#!/bin/bash
LC_ALL=C
for ((line = 0; line < {lines}; line++)); do
  echo "line $line, written $EPOCHREALTIME"
  sleep 1
done
exec sleep 1d
"""
_LINE = re.compile(r"line (\d+), written (\d+\.\d+)")


class _TaskLog:
    """The log of a deferred task: how late each line of its executor came into it."""

    def __init__(self) -> None:
        self.lags: list[float] = []

    def log(self, level: int, line: str, /, *args: object) -> None:
        found = _LINE.fullmatch(line % args)
        if found is None:
            return
        if int(found[1]) != len(self.lags):
            raise RuntimeError(f"line {found[1]} came after {len(self.lags)} lines")
        self.lags.append(time.time() - float(found[2]))


def log_lag(figures: Figures, *, quick: bool) -> None:
    """50 deferred runs on one submit host, followed by triggers of one event loop: how late a line is logged.

    Their jobs are real, started by the triggers; in the executor's place is a script that writes a line a
    second, as 50 of Jobmon's clients would want more than two cores. A line is logged when the trigger hands
    it to its task's logger.
    """
    count, lines = (5, 10) if quick else (50, 40)
    with _cluster(heartbeat_interval=30) as (sandbox, folder):
        executor = sandbox.directory / "executor"
        executor.write_text(_EXECUTOR.format(lines=lines))
        executor.chmod(0o755)
        sandbox.copy_run(sandbox.make_workflow_in("L"), count - 1)
        logs = asyncio.run(_follow(sandbox, executor, folder, lines))
    lags = [lag for log in logs for lag in log.lags]
    figures.add("executor_log_lag_p95_s", quantile(lags, 0.95), "s", at_most=10)
    figures.add("executor_log_lag_max_s", max(lags), "s")
    figures.add("executor_log_missing_lines", count * lines - len(lags), "lines", at_most=0)


async def _follow(sandbox: JobmonSandbox, executor: Path, folder: Path, lines: int) -> list[_TaskLog]:
    """Run the triggers of all runs until each line is logged, or none has come for a minute."""
    from airflow_jobmon_provider.execution.deferred import kept
    from airflow_jobmon_provider.execution.placement import Placement
    from airflow_jobmon_provider.triggers.jobmon import WorkflowRunHeartbeatTrigger

    placement = Placement(CLUSTER, _HOST, python=str(executor), remote_dir=str(folder))
    logs, tasks = [], []
    for run, workflow in sandbox.query("SELECT id, workflow_id FROM workflow_run"):
        trigger = WorkflowRunHeartbeatTrigger(run, workflow_id=workflow, executor=kept(placement, None))
        logs.append(_TaskLog())
        vars(trigger)["logger"] = lambda log=logs[-1]: log
        tasks.append(asyncio.create_task(consume(trigger)))
    seen, changed = 0, time.monotonic()
    while seen < lines * len(logs) and time.monotonic() < changed + 60 and not any(map(_is_done, tasks)):
        await asyncio.sleep(0.1)
        now = sum(len(log.lags) for log in logs)
        seen, changed = now, time.monotonic() if now != seen else changed
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return logs


def _is_done(task: asyncio.Task[None]) -> bool:
    return task.done()


if __name__ == "__main__":
    print(json.dumps(_be_a_task(*json.load(sys.stdin))))

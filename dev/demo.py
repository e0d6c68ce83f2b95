"""Fail a Jobmon workflow and let Airflow resume it, with everything real; ``make demo`` runs this.

Airflow's scheduler and triggerer run the example DAG; its worker executes the new workflow run, with Jobmon's
own client.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from airflow_jobmon_provider.client.lifecycle import RunStatus, WorkflowStatus
from dev import foreground
from dev.airflow_stack import AirflowStack, AirflowStackError
from dev.jobmon_sandbox import CLUSTER, JobmonSandbox, SandboxError
from dev.launcher import BUSY

DAG_ID = "jobmon_resume_and_execute"
EXAMPLE_DAGS = Path(__file__).resolve().parent.parent / "example_dags"
INTERVAL, BUFFER = 2.0, 3.1  # a run that misses its heartbeats for the product of both is lost
PATIENCE = 120.0  # seconds that each step may take on a quiet machine


class DemoFailed(Exception):
    """The demo did not end as it should; the message says why."""


class Timeline:
    """Prints what changes in Jobmon and Airflow, as it happens."""

    def __init__(self, sandbox: JobmonSandbox, airflow: AirflowStack) -> None:
        self._sandbox = sandbox
        self._airflow = airflow
        self._started = time.monotonic()
        self._shown: dict[str, str] = {}
        self._beats_shown: dict[str, int] = {}
        self._beats_at = 0.0
        self.workflow_id = 0
        self.dag_run_id = ""
        self._own_beats: list[float] = []
        """When the server saw a heartbeat of Airflow for the newest run."""

    def say(self, what: str, text: str) -> None:
        """Print a line with the seconds since the start."""
        print(f"{time.monotonic() - self._started:6.1f} s  {what:<22}{text}", flush=True)

    def follow(self, workflow_id: int) -> None:
        """Tell of a workflow and, until there is a DAG run for it, of nothing else."""
        self.workflow_id, self.dag_run_id = workflow_id, ""
        self._shown.clear()
        self.look()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Print what changes until a condition holds.

        :raises DemoFailed: it takes too long.
        """
        deadline = time.monotonic() + PATIENCE * BUSY
        while not condition():
            self.look()
            if time.monotonic() > deadline:
                raise DemoFailed(f"waited {PATIENCE * BUSY:g} s for {what}")
            time.sleep(0.2)
        self.look(last=True)

    def look(self, *, last: bool = False) -> None:
        """Print what has changed since the last look; heartbeats only now and then."""
        states: dict[str, str] = {}
        runs: list[tuple[int, str]] = []
        if self.workflow_id:
            workflow = WorkflowStatus(self._sandbox.workflow_status(self.workflow_id))
            states[f"Jobmon workflow {self.workflow_id}"] = workflow.name
            runs = self._sandbox.runs(self.workflow_id)
            states |= {f"Jobmon run {run}": RunStatus(code).name for run, code in runs}
        if self.dag_run_id:
            tasks = self._airflow.task_states(DAG_ID, self.dag_run_id)
            begun = sorted((task, state) for task, state in tasks.items() if state != "none")
            states |= {f"Airflow task {task}": state for task, state in begun}
        changes = {what: state for what, state in states.items() if self._shown.get(what) != state}
        if len(runs) > 1:
            self._look_at_beats(*runs[-1], at_once=last or bool(changes))
        for what, state in changes.items():
            before = self._shown.get(what)
            self.say(what, f"{before} → {state}" if before else state)
        self._shown |= changes

    def _look_at_beats(self, run: int, status: str, *, at_once: bool) -> None:
        seen: dict[str, list[float]] = {"Airflow": [], "its executor": []}
        for beat in self._sandbox.requests(f"/workflow_run/{run}/log_heartbeat"):
            if beat.status_code == 200 and beat.body["status"] != RunStatus.REGISTERED:  # that only looks
                who = "Airflow" if "airflow-provider-jobmon" in beat.query else "its executor"
                seen[who].append(beat.time)
        if status != RunStatus.LINKING:  # what came later was refused, and told Airflow of the hand-over
            seen["Airflow"] = self._own_beats
        self._own_beats = seen["Airflow"]
        if not at_once and time.monotonic() < self._beats_at + INTERVAL * BUFFER / 2:
            return
        for who, times in seen.items():
            first, count = self._beats_shown.get(f"{who} {run}", 0) + 1, len(times)
            if count >= first:
                numbers = f"heartbeat {first}" if first == count else f"heartbeats {first} … {count}"
                self.say(f"Jobmon run {run}", f"{numbers} by {who}")
                self._beats_shown[f"{who} {run}"] = count
                self._beats_at = time.monotonic()


def resume(sandbox: JobmonSandbox, airflow: AirflowStack, timeline: Timeline, *, mended: bool) -> str:
    """Make a workflow that fails, and let Airflow resume it.

    :param mended: what made its tasks fail is mended before, so that it ends DONE. Else it fails again.
    :returns: the id of the DAG run.
    :raises DemoFailed: it took another course.
    """
    timeline.say("Jobmon", "executing a workflow whose tasks fail …")
    workflow = sandbox.make_workflow("fails")
    timeline.follow(workflow.workflow_id)
    if mended:
        workflow.release()
    timeline.say("Jobmon", f"what made its tasks fail is {'mended' if mended else 'not mended this time'}")
    timeline.say("Airflow", f"triggering the DAG {DAG_ID}")
    conf = {"workflow_id": workflow.workflow_id, "cluster_name": CLUSTER}
    run = timeline.dag_run_id = airflow.trigger(DAG_ID, conf)
    timeline.until(lambda: airflow.run_state(DAG_ID, run) in ("success", "failed"), "the DAG run to end")
    state, wanted = airflow.run_state(DAG_ID, run), "success" if mended else "failed"
    if state != wanted:
        raise DemoFailed(f"the DAG run ended as {state}, not as {wanted}")
    return run


def explain(airflow: AirflowStack, dag_run_id: str) -> str:
    """Return the ends of the failed tasks' logs, or of Airflow's own if no task failed."""
    states = airflow.task_states(DAG_ID, dag_run_id) if dag_run_id else {}
    logs = []
    for task in (task for task, state in states.items() if state == "failed"):
        lines = [line[:300] for line in airflow.task_log(DAG_ID, dag_run_id, task).splitlines()[-15:]]
        logs.append("\n".join([f"--- the log of task {task}, which failed, ends with ---", *lines]))
    return "\n".join(logs) or airflow.log_tails(["scheduler", "dag-processor", "triggerer"], lines=10)


def places(airflow: AirflowStack, done: str, failed: str) -> str:
    """Return where a person finds what has happened in the UI.

    :param done: id of the DAG run that ended well.
    :param failed: id of the other one.
    """
    runs = f"{airflow.url}/dags/{DAG_ID}/runs"
    states = airflow.task_states(DAG_ID, failed)
    logs = [f"  {runs}/{failed}/tasks/{task}" for task, state in states.items() if state == "failed"]
    return "\n".join(
        [
            "Look around in Airflow's UI. The DAG run that ended well:",
            f"  {runs}/{done}",
            "The DAG run whose workflow failed again:",
            f"  {runs}/{failed}",
            "The log of its failed task, with the reason:",
            *logs,
            'Each task has a button "Jobmon workflow". It leads to a page that stands in for Jobmon\'s GUI.',
        ]
    )


def show(sandbox: JobmonSandbox, airflow: AirflowStack, timeline: Timeline, *, keep: bool) -> int:
    """Run the demo's DAG and say what became of the workflow; return the exit code.

    :param keep: also let it fail on another workflow, and say where to see both.
    """
    try:
        done = resume(sandbox, airflow, timeline, mended=True)
        status = WorkflowStatus(sandbox.workflow_status(timeline.workflow_id))
        print(f"workflow {timeline.workflow_id}: {status.name}", flush=True)
        if status is not WorkflowStatus.DONE:
            return 1
        if not keep:
            print("To see that in Airflow's UI, and a workflow that fails again: make demo KEEP=1")
            return 0
        failed = resume(sandbox, airflow, timeline, mended=False)
        print(f"\n{places(airflow, done, failed)}", flush=True)
    except (DemoFailed, SandboxError, AirflowStackError, TimeoutError) as error:
        print(f"\n{error}\n{explain(airflow, timeline.dag_run_id)}", file=sys.stderr, flush=True)
        return 1
    return 0


def main() -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave Airflow's UI up until Ctrl-C")
    keep = parser.parse_args().keep
    try:
        print("Starting a Jobmon (the first time, it is installed, which takes a minute) …", flush=True)
        with JobmonSandbox(heartbeat_interval=INTERVAL, report_by_buffer=BUFFER) as sandbox:
            sandbox.start_reaper()
            connections = {"jobmon_default": sandbox.connection()}
            print("Starting an Airflow …", flush=True)
            with AirflowStack(dags_folder=EXAMPLE_DAGS, connections=connections) as airflow:
                code = show(sandbox, airflow, Timeline(sandbox, airflow), keep=keep)
                if keep:
                    print(f"Airflow: {airflow.url}  Jobmon: {sandbox.url}  (Ctrl-C ends both)", flush=True)
                    foreground.rest(code)
                return code
    except (SandboxError, AirflowStackError, TimeoutError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(foreground.run("dev.demo"))

"""Fail a Jobmon workflow and let Airflow resume it, with everything real; ``make demo`` runs this.

Airflow's scheduler and triggerer run the example DAG; its worker executes the new workflow run, with Jobmon's
own client.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from airflow_jobmon_provider.client.lifecycle import RunStatus, WorkflowStatus
from dev.airflow_stack import AirflowStack, AirflowStackError
from dev.jobmon_sandbox import JobmonSandbox, SandboxError

DAG_ID = "jobmon_resume_and_execute"
CLUSTER = "multiprocess"
EXAMPLE_DAGS = Path(__file__).resolve().parent.parent / "example_dags"
INTERVAL, BUFFER = 2.0, 3.1  # a run that misses its heartbeats for the product of both is lost
PATIENCE = 120.0  # seconds that each step may take


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

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Print what changes until a condition holds.

        :raises DemoFailed: it takes too long.
        """
        deadline = time.monotonic() + PATIENCE
        while not condition():
            self.look()
            if time.monotonic() > deadline:
                raise DemoFailed(f"waited {PATIENCE:g} s for {what}")
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
            states |= {f"Airflow task {task}": state for task, state in sorted(tasks.items(), reverse=True)}
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


def demo(sandbox: JobmonSandbox, airflow: AirflowStack, timeline: Timeline) -> None:
    """Tell the story, from a workflow that fails to the same workflow DONE.

    :raises DemoFailed: it took another course.
    """
    timeline.say("Jobmon", "executing a workflow whose tasks fail …")
    workflow = sandbox.make_workflow("fails")
    workflow_id = timeline.workflow_id = workflow.workflow_id
    timeline.look()
    workflow.release()
    timeline.say("Jobmon", "what made its tasks fail is mended")
    timeline.say("Airflow", f"triggering the DAG {DAG_ID}")
    dag_run_id = airflow.trigger(DAG_ID, {"workflow_id": workflow_id, "cluster_name": CLUSTER})
    timeline.dag_run_id = dag_run_id

    def ended() -> bool:
        return airflow.run_state(DAG_ID, dag_run_id) in ("success", "failed")

    timeline.until(ended, "Airflow to end")
    if (state := airflow.run_state(DAG_ID, dag_run_id)) != "success":
        raise DemoFailed(f"the DAG run ended as {state}")


def explain(airflow: AirflowStack, dag_run_id: str) -> str:
    """Return the ends of the failed tasks' logs, or of Airflow's own if no task failed."""
    states = airflow.task_states(DAG_ID, dag_run_id) if dag_run_id else {}
    logs = []
    for task in (task for task, state in states.items() if state == "failed"):
        lines = [line[:300] for line in airflow.task_log(DAG_ID, dag_run_id, task).splitlines()[-15:]]
        logs.append("\n".join([f"--- the log of task {task}, which failed, ends with ---", *lines]))
    return "\n".join(logs) or airflow.log_tails(["scheduler", "dag-processor", "triggerer"], lines=10)


def connection_to(sandbox: JobmonSandbox) -> dict[str, object]:
    """Return the connection with which the example DAGs find the sandbox."""
    extra = {
        "route_prefix": "/api/v2",
        "workflow_run_heartbeat_interval": INTERVAL,
        "heartbeat_report_by_buffer": BUFFER,
        "jobmon_python": str(sandbox.python),
    }
    host, port = sandbox.url.removeprefix("http://").split(":")
    return {"conn_type": "jobmon", "host": host, "port": int(port), "extra": extra}


def show(sandbox: JobmonSandbox, airflow: AirflowStack, timeline: Timeline) -> int:
    """Run the demo's DAG and say what became of the workflow; return the exit code."""
    code = 0
    try:
        demo(sandbox, airflow, timeline)
    except (DemoFailed, SandboxError, AirflowStackError) as error:
        print(f"\n{error}\n{explain(airflow, timeline.dag_run_id)}", file=sys.stderr, flush=True)
        code = 1
    if timeline.workflow_id:
        status = WorkflowStatus(sandbox.workflow_status(timeline.workflow_id))
        code = code or int(status is not WorkflowStatus.DONE)
        print(f"workflow {timeline.workflow_id}: {status.name}", flush=True)
    return code


def main() -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave Airflow's UI up until Ctrl-C")
    keep = parser.parse_args().keep
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that all is tidied up
    sandbox = JobmonSandbox(heartbeat_interval=INTERVAL, report_by_buffer=BUFFER)
    code = 1
    try:
        print("Starting a Jobmon (the first time, it is installed) …", flush=True)
        with sandbox:
            sandbox.start_reaper()
            connections = {"jobmon_default": json.dumps(connection_to(sandbox))}
            airflow = AirflowStack(dags_folder=EXAMPLE_DAGS, connections=connections)
            print("Starting an Airflow …", flush=True)
            with airflow:
                timeline = Timeline(sandbox, airflow)
                code = show(sandbox, airflow, timeline)
                if keep:
                    print(f"Airflow: {airflow.url}  Jobmon: {sandbox.url}  (Ctrl-C ends both)")
                    print(f"The DAG run: {airflow.url}/dags/{DAG_ID}/runs/{timeline.dag_run_id}", flush=True)
                    signal.pause()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    except (SandboxError, AirflowStackError) as error:
        print(error, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

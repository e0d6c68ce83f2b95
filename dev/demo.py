"""Fail a Jobmon workflow and let Airflow resume it, with everything real; ``make demo`` runs this.

Airflow's scheduler and triggerer run the example DAG; its worker executes the new workflow run, with Jobmon's
own client. ``make demo HPC=1`` does it as on a cluster: a job of a real Slurm, submitted over SSH, executes
the run, and its tasks are array jobs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_jobmon_provider.client.lifecycle import RunStatus, WorkflowStatus
from dev import foreground, services, slurm
from dev.airflow_stack import AirflowStack, AirflowStackError
from dev.jobmon_sandbox import CLUSTER, SLURM, JobmonSandbox, SandboxError
from dev.launcher import BUSY
from dev.slurm import Slurm
from dev.submit_host import SubmitHost

EXAMPLE_DAGS = Path(__file__).resolve().parent.parent / "example_dags"
INTERVAL, BUFFER = 2.0, 3.1  # a run that misses its heartbeats for the product of both is lost
PATIENCE = 120.0  # seconds that each step may take on a quiet machine


class DemoFailed(Exception):
    """The demo did not end as it should; the message says why."""


@dataclass
class Place:
    """Where the workflow is executed.

    :param dag_id: the example that has it executed there.
    :param cluster: Jobmon's name of the cluster on which its tasks run.
    :param conf: what the example is given besides.
    :param connections: what it needs besides Jobmon's.
    :param slurm: the Slurm whose jobs are shown.
    """

    dag_id: str = "jobmon_resume_and_execute"
    cluster: str = CLUSTER
    conf: dict[str, Any] = field(default_factory=dict)
    connections: dict[str, str] = field(default_factory=dict)
    slurm: Slurm | None = None

    def jobs(self) -> dict[str, str]:
        """What Slurm tells of each job: what it is for and its number, its state."""
        jobs = {}
        if self.slurm is not None:
            listed = self.slurm.run("squeue", "--states=all", "--array", "--noheader", "-o", "%i|%j|%T|%r")
            for number, name, state, reason in (line.split("|", 3) for line in listed.splitlines()):
                waits = state == "PENDING" and reason != "None"
                what = "executor" if name.startswith("jobmon-") else "task"
                jobs[f"Slurm {what} {number}"] = f"{state}: {reason}" if waits else state
        return jobs


def missing_parts() -> str:
    """Return what a cluster needs that this machine has not, and how to get it; empty: nothing."""
    packages = list(slurm.PACKAGES) if slurm.absent_programs() else []
    try:
        services.sshd()
    except services.ServiceMissing:
        packages.insert(0, "openssh-server")
    if packages:
        line = f"apt-get install --no-install-recommends {' '.join(packages)}"
        return f"make demo HPC=1 starts an sshd and a Slurm of its own, which have to be installed: {line}"
    return slurm.missing() and f"make demo HPC=1 needs to be run by root: {slurm.missing()}"


@contextlib.contextmanager
def cluster_of(sandbox: JobmonSandbox) -> Iterator[Place]:
    """Start a Slurm and a submit host that leads to it. What they write is in temporary folders."""
    with Slurm() as running:
        os.environ.update(running.environment)
        sandbox.add_slurm("long")
        environment = {**sandbox.environment(), **running.environment}
        with SubmitHost(environment, server=services.sshd_server) as host:
            conf = {"partition": "long", "python": str(sandbox.python)}
            connections = {"submit_host": json.dumps(host.connection)}
            yield Place("jobmon_on_slurm", SLURM, conf, connections, running)


class Timeline:
    """Prints what changes in Jobmon, Airflow and Slurm, as it happens."""

    def __init__(self, sandbox: JobmonSandbox, airflow: AirflowStack, place: Place) -> None:
        self.place = place
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
        self._shown = self.place.jobs()
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
            tasks = self._airflow.task_states(self.place.dag_id, self.dag_run_id)
            begun = sorted((task, state) for task, state in tasks.items() if state != "none")
            states |= {f"Airflow task {task}": state for task, state in begun} | self.place.jobs()
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
    place = timeline.place
    timeline.say("Jobmon", "executing a workflow whose tasks fail …")
    workflow = sandbox.make_workflow("fails", cluster=place.cluster)
    timeline.follow(workflow.workflow_id)
    if mended:
        workflow.release()
    timeline.say("Jobmon", f"what made its tasks fail is {'mended' if mended else 'not mended this time'}")
    timeline.say("Airflow", f"triggering the DAG {place.dag_id}")
    conf = {"workflow_id": workflow.workflow_id, "cluster_name": place.cluster, **place.conf}
    run = timeline.dag_run_id = airflow.trigger(place.dag_id, conf)
    timeline.until(
        lambda: airflow.run_state(place.dag_id, run) in ("success", "failed"), "the DAG run to end"
    )
    state, wanted = airflow.run_state(place.dag_id, run), "success" if mended else "failed"
    if state != wanted:
        raise DemoFailed(f"the DAG run ended as {state}, not as {wanted}")
    return run


def explain(airflow: AirflowStack, dag_id: str, dag_run_id: str) -> str:
    """Return the ends of the failed tasks' logs, or of Airflow's own if no task failed."""
    states = airflow.task_states(dag_id, dag_run_id) if dag_run_id else {}
    logs = []
    for task in (task for task, state in states.items() if state == "failed"):
        lines = [line[:300] for line in airflow.task_log(dag_id, dag_run_id, task).splitlines()[-15:]]
        logs.append("\n".join([f"--- the log of task {task}, which failed, ends with ---", *lines]))
    return "\n".join(logs) or airflow.log_tails(["scheduler", "dag-processor", "triggerer"], lines=10)


def places(airflow: AirflowStack, dag_id: str, done: str, failed: str) -> str:
    """Return where a person finds what has happened in the UI.

    :param dag_id: id of the DAG.
    :param done: id of the DAG run that ended well.
    :param failed: id of the other one.
    """
    runs = f"{airflow.url}/dags/{dag_id}/runs"
    states = airflow.task_states(dag_id, failed)
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
            how = "make demo KEEP=1" if timeline.place.slurm is None else "make demo HPC=1 KEEP=1"
            print(f"To see that in Airflow's UI, and a workflow that fails again: {how}")
            return 0
        failed = resume(sandbox, airflow, timeline, mended=False)
        print(f"\n{places(airflow, timeline.place.dag_id, done, failed)}", flush=True)
    except (DemoFailed, SandboxError, AirflowStackError, TimeoutError) as error:
        why = explain(airflow, timeline.place.dag_id, timeline.dag_run_id)
        print(f"\n{error}\n{why}", file=sys.stderr, flush=True)
        return 1
    return 0


def main() -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave Airflow's UI up until Ctrl-C")
    parser.add_argument("--hpc", action="store_true", help="execute it by jobs of a Slurm, over SSH")
    arguments = parser.parse_args()
    if arguments.hpc and (missing := missing_parts()):
        print(missing, file=sys.stderr)
        return 1
    try:
        return run(keep=arguments.keep, hpc=arguments.hpc)
    except (SandboxError, AirflowStackError, TimeoutError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


def run(*, keep: bool, hpc: bool) -> int:
    """Start everything, and show the demo; return the exit code. See :func:`main`."""
    print("Starting a Jobmon (the first time, it is installed, which takes a minute) …", flush=True)
    with contextlib.ExitStack() as started:
        sandbox = started.enter_context(JobmonSandbox(heartbeat_interval=INTERVAL, report_by_buffer=BUFFER))
        sandbox.start_reaper()
        place = Place()
        if hpc:
            print("Starting a Slurm, and an SSH server that stands for its submit host …", flush=True)
            place = started.enter_context(cluster_of(sandbox))
        print("Starting an Airflow …", flush=True)
        connections = {"jobmon_default": sandbox.connection(), **place.connections}
        airflow = started.enter_context(AirflowStack(dags_folder=EXAMPLE_DAGS, connections=connections))
        code = show(sandbox, airflow, Timeline(sandbox, airflow, place), keep=keep)
        if keep:
            print(f"Airflow: {airflow.url}  Jobmon: {sandbox.url}  (Ctrl-C ends both)", flush=True)
            foreground.rest(code)
        return code


if __name__ == "__main__":
    sys.exit(foreground.run("dev.demo"))

"""Jobmon's plugin for Slurm, for the sandbox: the tasks of a workflow are array jobs. A site has its own.

Jobmon finds a plugin as the module ``jobmon.plugins.<type of cluster>``, so ``dev.jobmon_sandbox`` copies
this file into Jobmon's environment, as ``jobmon/plugins/slurm.py``. A queue of Jobmon's is a partition.

Slurm may not answer for a while. The distributor would end by an error, so what is asked is then not changed:
jobs are taken to be where they were.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import time
from typing import Any

from jobmon.core.cluster_protocol import ClusterDistributor, ClusterQueue, ClusterWorkerNode
from jobmon.core.constants import TaskInstanceStatus

logger = logging.getLogger(__name__)

# Each resource that a task may ask for, by Jobmon's name and unit, as an option of sbatch.
_OPTIONS = {
    "queue": "--partition={}",
    "memory": "--mem={}G",
    "cores": "--cpus-per-task={}",
    "runtime": "--time=0:{}",
    "project": "--account={}",
}
_MOMENT = 2.0  # seconds; an executor that was stopped gives its distributor five
_OUT_OF_RESOURCES = {"OUT_OF_MEMORY", "TIMEOUT"}


def get_cluster_queue_class() -> type[ClusterQueue]:
    """Return what a queue is; Jobmon asks for it by this name."""
    return SlurmQueue


def get_cluster_distributor_class() -> type[ClusterDistributor]:
    """Return what submits tasks; Jobmon asks for it by this name."""
    return SlurmDistributor


def get_cluster_worker_node_class() -> type[ClusterWorkerNode]:
    """Return what a task knows of its job; Jobmon asks for it by this name."""
    return SlurmWorkerNode


def _run(*command: str, script: str = "") -> str:
    """Run one of Slurm's commands, and return what it writes.

    :raises OSError: it fails.
    """
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, input=script, env=environment, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise OSError(f"{command[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


class SlurmQueue(ClusterQueue):
    """A partition. It takes all that a task asks for: Slurm itself says no to what cannot be."""

    def __init__(self, queue_id: int, queue_name: str, parameters: dict[str, Any]) -> None:
        self._id = queue_id
        self._name = queue_name
        self._parameters = parameters

    def validate_resources(self, strict: bool = False, **kwargs: str | int | float) -> tuple[bool, str]:
        return True, ""

    def coerce_resources(self, **kwargs: str | int | float) -> dict[str, Any]:
        return kwargs

    @property
    def queue_id(self) -> int:
        return self._id

    @property
    def queue_name(self) -> str:
        return self._name

    @property
    def parameters(self) -> dict[str, Any]:
        return self._parameters

    @property
    def required_resources(self) -> list[str]:
        return []


class SlurmDistributor(ClusterDistributor):
    """Submits tasks and asks after them. A task's id is its job's number, ``<job>_<step>`` in an array."""

    def __init__(self, cluster_name: str, **_: Any) -> None:
        entry_point = shutil.which("worker_node_entry_point")
        if entry_point is None:
            raise ValueError("Jobmon's worker_node_entry_point is not on PATH")
        self._entry_point = entry_point
        self._cluster_name = cluster_name
        self._jobs: set[str] = set()  # that were submitted here

    @property
    def cluster_name(self) -> str:
        return self._cluster_name

    @property
    def worker_node_entry_point(self) -> str:
        return self._entry_point

    def start(self) -> None:
        """Nothing has to be started."""

    def stop(self) -> None:
        """Cancel what is left: nobody asks after it any more. No further signal breaks this off.

        A task that has just said how it ended has a moment to end its job by itself.
        """
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        deadline = time.monotonic() + _MOMENT
        try:
            while (left := self._left()) and time.monotonic() < deadline:
                time.sleep(0.2)
            self.terminate_task_instances(sorted(left))
        except OSError as error:
            logger.warning("jobs may be left behind: %s", error)

    def _left(self) -> set[str]:
        return self._jobs & {job.partition("_")[0] for job in self._active()}

    def submit_to_batch_distributor(
        self, command: str, name: str, requested_resources: dict[str, Any]
    ) -> str:
        return self._submit(command, name, requested_resources)

    def submit_array_to_batch_distributor(
        self, command: str, name: str, requested_resources: dict[str, Any], array_length: int
    ) -> dict[int, str]:
        job = self._submit(command, name, requested_resources, f"--array=0-{array_length - 1}")
        return {step: f"{job}_{step}" for step in range(array_length)}

    def _submit(self, command: str, name: str, resources: dict[str, Any], *options: str) -> str:
        asked = [_OPTIONS[key].format(value) for key, value in resources.items() if key in _OPTIONS]
        words = ["--parsable", f"--job-name={name}", "--output=/dev/null", *asked, *options]
        script = f"#!/bin/sh\nexec {self._entry_point} {command}\n"
        job = _run("sbatch", *words, script=script).strip().partition(";")[0]
        self._jobs.add(job)
        return job

    def get_submitted_or_running(self, distributor_ids: list[str] | None = None) -> set[str]:
        try:
            active = self._active()
        except OSError as error:
            logger.warning("jobs are taken to be where they were: %s", error)
            return set(distributor_ids or ())
        return active & set(distributor_ids) if distributor_ids else active

    def _active(self) -> set[str]:
        return set(_run("squeue", "--me", "--noheader", "--array", "--format=%i").split())

    def terminate_task_instances(self, distributor_ids: list[str]) -> None:
        if distributor_ids:
            _run("scancel", *distributor_ids)

    def get_queueing_errors(self, distributor_ids: list[str]) -> dict[str, str]:
        return {}

    def get_remote_exit_info(self, distributor_id: str) -> tuple[str, str]:
        """Say how a job ended that has left its task without an end."""
        try:
            shown = _run("scontrol", "--oneliner", "show", "job", distributor_id)
        except OSError as error:
            return TaskInstanceStatus.UNKNOWN_ERROR, f"Slurm job {distributor_id} is over ({error})"
        fields = dict(re.findall(r"(\w+)=(\S+)", shown))
        state = fields.get("JobState", "UNKNOWN")
        message = f"Slurm job {distributor_id} ended {state} (exit code {fields.get('ExitCode', 'unknown')})"
        if state in _OUT_OF_RESOURCES:
            return TaskInstanceStatus.RESOURCE_ERROR, message
        return TaskInstanceStatus.UNKNOWN_ERROR, message


class SlurmWorkerNode(ClusterWorkerNode):
    """What a task's process knows of its job, by the environment that Slurm gives it."""

    @property
    def distributor_id(self) -> str | None:
        array, step = os.environ.get("SLURM_ARRAY_JOB_ID"), self.array_step_id
        return os.environ.get("SLURM_JOB_ID") if array is None else f"{array}_{step}"

    @property
    def array_step_id(self) -> int | None:
        step = os.environ.get("SLURM_ARRAY_TASK_ID")
        return None if step is None else int(step)

    def get_usage_stats(self) -> dict[str, Any]:
        return {}

    def get_exit_info(self, exit_code: int, error_msg: str) -> tuple[str, str]:
        where = f"Slurm job {self.distributor_id}"
        return TaskInstanceStatus.ERROR, f"exit code {exit_code} in {where}: {error_msg}"

    def initialize_logfile(self, log_type: str, log_dir: str, name: str) -> str:
        if not log_dir:
            return os.devnull
        return os.path.join(log_dir, f"{name}.{log_type[3]}{self.distributor_id}")

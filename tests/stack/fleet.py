"""Many runs of which a deferred Airflow task each takes care, and what became of them."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from dev.airflow_stack import AirflowStack
from dev.jobmon_sandbox import JobmonSandbox, wait_until
from tests.end_to_end.dag_runs import provider_beats

DAG = "many_runs"


@dataclass(frozen=True)
class Run:
    """A workflow run and its task.

    :param task: the task's id.
    :param index: its map index.
    """

    workflow_id: int
    workflow_run_id: int
    task: str
    index: int


@dataclass
class Fleet:
    """All of them; made by :func:`launch`."""

    jobmon: JobmonSandbox
    airflow: AirflowStack
    dag_run: str
    runs: list[Run]

    def states(self) -> dict[Run, str]:
        """State of each one's task."""
        states = self.airflow.task_states(DAG, self.dag_run)
        return {run: states.get(f"{run.task}[{run.index}]", "none") for run in self.runs}

    def statuses(self) -> dict[int, str]:
        """Status of each run, by its id."""
        ids = ", ".join(str(run.workflow_run_id) for run in self.runs)
        return dict(self.jobmon.query(f"SELECT id, status FROM workflow_run WHERE id IN ({ids})"))

    def assert_all_deferred(self) -> None:
        """Every task is deferred, and every run LINKING."""
        assert Counter(self.states().values()) == {"deferred": len(self.runs)}
        assert Counter(self.statuses().values()) == {"L": len(self.runs)}

    def beats(self) -> dict[int, list[float]]:
        """When the server made each run, and then got each heartbeat that it took while that was LINKING."""
        times: dict[int, list[float]] = defaultdict(list)
        for request in self.jobmon.requests("/workflow_run"):
            if request.status_code != 200 or "airflow-provider-jobmon" not in request.query:
                continue
            if request.path.endswith("/workflow_run"):
                times[request.reply["workflow_run_id"]].append(request.time)
            elif request.path.endswith("/log_heartbeat") and (
                request.body["status"] == request.reply["status"] == "L"
            ):
                times[int(request.path.split("/")[-2])].append(request.time)
        ours = {run.workflow_run_id for run in self.runs}
        return {run: seen for run, seen in times.items() if run in ours}

    def largest_gap(self) -> float:
        """Seconds of the longest time between two accepted heartbeats of a run."""
        return max(b - a for seen in self.beats().values() for a, b in itertools.pairwise(seen))

    def wait_for_beats(self, since: float, count: int = 1, timeout: float = 120) -> None:
        """Wait until each run has had so many accepted heartbeats since a moment of ``time.time()``."""
        wait_until(
            lambda: all(sum(t > since for t in seen) >= count for seen in self.beats().values()),
            timeout,
            f"{count} heartbeat(s) of each run",
        )

    def finish(self, runs: Iterable[Run]) -> None:
        """Do what executors do that take runs and end them DONE."""
        for run in runs:
            for status in "BIORD":
                path = f"/api/v2/workflow_run/{run.workflow_run_id}/update_status"
                assert self.jobmon.put(path, {"status": status}) == {"status": status}

    def log(self, run: Run) -> str:
        """The log of a run's task."""
        return self.airflow.task_log(DAG, self.dag_run, run.task, map_index=run.index)


def launch(jobmon: JobmonSandbox, airflow: AirflowStack, **counts: int) -> Fleet:
    """Create runs, and wait until the task of each is deferred and has sent a heartbeat.

    :param counts: how many of which task of the DAG ``many_runs``.
    """
    original = jobmon.make_workflow("new", tasks=1).workflow_id
    workflows = {task: jobmon.copy_workflow(original, count) for task, count in counts.items()}
    dag_run = airflow.trigger(DAG, dict(workflows))
    tasks = [(task, index, ids[index]) for task, ids in workflows.items() for index in range(len(ids))]

    def all_deferred() -> bool:
        states = airflow.task_states(DAG, dag_run)
        return all(states.get(f"{task}[{index}]") == "deferred" for task, index, _ in tasks)

    wait_until(all_deferred, 600, "all tasks to be deferred")
    runs = [Run(workflow, jobmon.runs(workflow)[-1][0], task, index) for task, index, workflow in tasks]
    wait_until(lambda: all(provider_beats(jobmon, run.workflow_run_id) for run in runs), 60, "a beat of each")
    return Fleet(jobmon, airflow, dag_run, runs)

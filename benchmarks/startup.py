"""What DAG parsing pays for the provider, each time in fresh processes with warm bytecode."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.figures import Figures

# What Airflow itself has loaded before it parses a file; its base class of triggers is not the provider's.
_SDK = """
import time
from airflow.providers.common.compat.sdk import BaseHook, BaseOperator, BaseOperatorLink
from airflow.providers.common.compat.sdk import BaseSensorOperator, conf
import airflow.triggers.base
started = time.perf_counter()
"""
_PRINT = "\nprint((time.perf_counter() - started) * 1000)"

_MODULES = {
    "jobmon": "airflow_jobmon_provider.{}.jobmon",
    "dbt": "airflow.providers.dbt.cloud.{}.dbt",
}

_JOBMON_DAG = """
from airflow.providers.common.compat.sdk import DAG
from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator, ResumeWorkflowOperator

with DAG(dag_id="many", schedule=None):
    for n in range(250):
        resume = ResumeWorkflowOperator(task_id=f"resume_{n}", workflow_id=n + 1, deferrable=True)
        run = CreateWorkflowRunOperator(task_id=f"run_{n}", workflow_id=n + 1, deferrable=True)
        resume >> run
"""

_BASH_DAG = """
from airflow.providers.common.compat.sdk import DAG
from airflow.providers.standard.operators.bash import BashOperator

with DAG(dag_id="many", schedule=None):
    for n in range(250):
        resume = BashOperator(task_id=f"resume_{n}", bash_command=f"jobmon workflow_resume -w {n + 1}")
        run = BashOperator(task_id=f"run_{n}", bash_command=f"echo {n + 1}")
        resume >> run
"""


def _milliseconds(program: str) -> float:
    """Run a program in a fresh process and return the number that it prints last."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(Path(tempfile.gettempdir()) / "benchmark-bytecode")
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{program}\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def _medians(programs: dict[str, str], rounds: int) -> dict[str, float]:
    """Time programs in turn, after one round that only warms up."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(rounds + 1):
        for name, program in programs.items():
            value = _milliseconds(program)
            if number:
                times[name].append(value)
    return {name: median(values) for name, values in times.items()}


def imports(figures: Figures, *, quick: bool) -> None:
    """Importing hook, operators, sensors and triggers on top of Airflow's SDK, beside dbt Cloud's."""
    parts = ["hooks", "operators", "sensors", "triggers"]
    programs = {
        name: _SDK + "\n".join(f"import {module.format(part)}" for part in parts) + _PRINT
        for name, module in _MODULES.items()
        if name == "jobmon" or not quick
    }
    found = _medians(programs, 3 if quick else 9)
    figures.add("import_ms", found["jobmon"], "ms", at_most=10, judged=not quick)
    if not quick:
        figures.add("import_dbt_ms", found["dbt"], "ms")
        figures.add("import_vs_dbt", found["jobmon"] / found["dbt"], at_most=0.05)


def parse(figures: Figures, *, quick: bool) -> None:
    """A DAG file with 500 tasks of the provider beside the same with BashOperator.

    As the DAG processor does it: the file is imported in a process where Airflow is loaded, and the DAG is
    serialized. The import of the operators counts.
    """
    with tempfile.TemporaryDirectory() as folder:
        programs = {}
        for name, text in {"jobmon": _JOBMON_DAG, "bash": _BASH_DAG}.items():
            file = Path(folder) / f"{name}_many.py"
            file.write_text(text)
            programs[name] = (
                "import os, runpy\n"
                f"os.environ['AIRFLOW_HOME'] = {folder!r}\n"
                "from airflow.serialization.serialized_objects import DagSerialization\n"
                "from airflow.sdk.definitions.dag import DAG\n"
                f"{_SDK}\n"
                f"found = runpy.run_path({json.dumps(str(file))})\n"
                "dag = found['resume'].dag\n"
                "DagSerialization.to_dict(dag)"
                f"{_PRINT}"
            )
        found = _medians(programs, 3 if quick else 7)
    figures.add("parse_500_tasks_ms", found["jobmon"], "ms")
    figures.add("parse_500_bash_tasks_ms", found["bash"], "ms")
    figures.add("parse_vs_bash", found["jobmon"] / found["bash"], at_most=1.2)

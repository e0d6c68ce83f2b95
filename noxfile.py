"""The provider on every Airflow that it supports: ``make test-matrix`` runs all cells, or those in CELLS.

A cell installs, runs the tests that depend on Airflow, on Python or on a library, and then runs DAGs on a
real Airflow with a real Jobmon. What it showed becomes its row of the table in docs/environments.md.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import nox

PROJECT = Path(__file__).resolve().parent
sys.path.insert(0, str(PROJECT))
from dev import matrix  # noqa: E402

# Elsewhere nothing depends on the environment: what runs in Jobmon's own Python, what tests the tests.
FOLDERS = ("client", "contract", "end_to_end", "hooks", "operators", "sensors", "triggers")
OF_TESTS = {f"tests/test_{name}.py" for name in ("airflow_home", "citations", "layout", "teardown_limit")}
TESTS = [f"tests/{name}" for name in FOLDERS] + sorted(
    {str(path.relative_to(PROJECT)) for path in PROJECT.glob("tests/test_*.py")} - OF_TESTS
)
PROCESSES = os.environ.get(
    "TEST_PROCESSES", "5"
)  # more than there are cores, as most tests wait for a server

LIST = """
import importlib.metadata, json
print(json.dumps({each.name.lower(): each.version for each in importlib.metadata.distributions()}))
"""

IMPORT_ALL = """
import importlib, pkgutil, airflow_jobmon_provider as package
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not module.name.endswith(".executor"):  # runs in Jobmon's own Python
        importlib.import_module(module.name)
"""

nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = True
os.environ["UV_COMPILE_BYTECODE"] = "1"  # else each of the tests' processes may do it anew

if pyenv := shutil.which("pyenv"):  # of its commands, such as python3.12, only the selected ones work
    installed = subprocess.run([pyenv, "versions", "--bare"], capture_output=True, text=True, check=True)
    os.environ["PYENV_VERSION"] = ":".join([*installed.stdout.split(), "system"])


@nox.session
@nox.parametrize("python,cell", [nox.param(c.python, c, id=c.name) for c in matrix.CELLS])
def cell(session: nox.Session, cell: matrix.Cell) -> None:
    """Install one environment, and test in it."""
    date = f"{datetime.now(timezone.utc):%Y-%m-%d}"
    versions = install(session, cell)
    count = test(session)
    matrix.write([matrix.row(cell, date, versions, count)])
    if not count.ok:
        session.error(f"{cell.name}: {count}")


def install(session: nox.Session, cell: matrix.Cell) -> str:
    """Install Airflow, then the provider, then what tests need; return what it took."""
    airflow = [f"apache-airflow=={cell.airflow.version}", *cell.airflow.caps]
    provider = ["--editable", ".[ssh]"]
    if cell.way == "dated":
        as_of = ["--exclude-newer", cell.airflow.date]
        session.install(*airflow, *as_of)
        before = distributions(session)
        newer = (f"--exclude-newer-package={name}={date}" for name, date in cell.airflow.upgraded)
        session.install(*provider, *as_of, *newer)
        changed = matrix.changed(before, distributions(session))
    else:
        resolution = ["--resolution", "lowest-direct"] if cell.way == "lowest" else []
        session.install(*airflow, *provider, *resolution)
        changed = []
    check_installed(session)
    found = distributions(session)
    session.install("--group", "test")
    changed += matrix.changed(found, distributions(session))
    versions = [f"{name} {found[full]}" for name, full in matrix.SHOWN.items()]
    return ", ".join([*versions, *(f"changed {what}" for what in changed)])


def distributions(session: nox.Session) -> dict[str, str]:
    """Return the environment's distributions, by name."""
    listed: dict[str, str] = json.loads(str(session.run("python", "-c", LIST, silent=True)))
    return listed


def check_installed(session: nox.Session) -> None:
    """Import all of the package, and find it among Airflow's providers."""
    home = {"AIRFLOW_HOME": str(Path(session.create_tmp()).resolve())}
    session.run("python", "-c", IMPORT_ALL, env=home)
    listed = session.run("airflow", "providers", "list", "--output", "json", env=home, silent=True)
    if "airflow-provider-jobmon" not in str(listed):
        session.error("airflow providers list does not name the provider")


def test(session: nox.Session) -> matrix.Count:
    """Run the tests, and return how they went."""
    report = Path(session.create_tmp()) / "report.xml"
    report.unlink(missing_ok=True)
    chosen = ["-m", "environment or not (real_airflow or executes)", *TESTS]
    parallel = ["--numprocesses", PROCESSES, "--dist", "loadfile", "--no-loadscope-reorder"]
    options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}", *parallel]
    # What failed is in the report.
    session.run("python", "-m", "pytest", *options, *chosen, success_codes=range(6))
    return matrix.counts(report)

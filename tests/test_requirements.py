"""What the package asks for is what it needs: it is installed beside an Airflow that its constraints made."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import runpy
import sys
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import DAG

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "airflow_jobmon_provider"

# What common-compat 1.12, the oldest that is asked for, has of that which is used, beside Airflow 2.11.
COMMON_COMPAT = {
    "airflow.providers.common.compat.connection": {"get_async_connection"},
    "airflow.providers.common.compat.sdk": {
        *("AirflowException", "AirflowFailException", "AirflowNotFoundException", "AirflowSensorTimeout"),
        *("AirflowSkipException", "AirflowTaskTimeout", "BaseHook", "BaseOperator", "BaseOperatorLink"),
        *("BaseSensorOperator", "Connection", "Context", "DAG", "Param", "TaskDeferred", "XCom", "conf"),
        *("task", "task_group"),
    },
    "airflow.providers.common.compat.standard.triggers": {"TimeDeltaTrigger"},
}
# Import names of what is asked for; Airflow and the standard library aside.
DISTRIBUTIONS = {
    "aiohttp": "aiohttp",
    "asgiref": "asgiref",
    "requests": "requests",
    "tenacity": "tenacity",
    "urllib3": "urllib3",
    "yaml": "pyyaml",
    "yarl": "aiohttp",  # its addresses are part of aiohttp's interface
}
# Brought by Airflow where they are needed: what DAGs begin with, and Airflow 2's connection form.
OF_AIRFLOW = {"airflow", "pendulum", "wtforms"}


def imports() -> list[tuple[Path, str, str]]:
    """Every import of the package and of the example DAGs: file, module, name ("" if it is the module)."""
    found = []
    for path in [*PACKAGE.rglob("*.py"), *(PROJECT / "example_dags").glob("*.py")]:
        if path.name == "executor.py":  # runs in Jobmon's own Python
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found += [(path, alias.name, "") for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found += [(path, node.module or "", alias.name) for alias in node.names]
    assert found
    return found


def required() -> dict[str, str]:
    """Return the lower bound of each requirement; the extra's included."""
    lines = importlib.metadata.requires("airflow-provider-jobmon") or []
    return {
        match[1].lower(): match[2]
        for line in lines
        if (match := re.match(r"([\w.-]+)(?:\[[^]]*\])?(?:!=[\w.]+,)*>=([\w.]+)", line))
    }


def test_only_what_the_oldest_common_compat_has_is_imported_from_it() -> None:
    assert required()["apache-airflow-providers-common-compat"] == "1.12"
    used: dict[str, set[str]] = {}
    for _, module, name in imports():
        if module.startswith("airflow.providers.common"):
            used.setdefault(module, set()).add(name)
    assert {module: names - COMMON_COMPAT.get(module, set()) for module, names in used.items()} == {
        module: set() for module in COMMON_COMPAT
    }


def test_everything_that_is_imported_is_asked_for() -> None:
    known = sys.stdlib_module_names | OF_AIRFLOW | {"airflow_jobmon_provider"}
    needed = {module.partition(".")[0] for _, module, _ in imports()} - known
    assert needed == set(DISTRIBUTIONS)
    assert {DISTRIBUTIONS[name] for name in needed} <= set(required())


def test_what_python_3_10_and_airflows_constraints_do_not_have_is_not_asked_for() -> None:
    bounds = required()
    assert bounds["apache-airflow-providers-ssh"] == "4.3"  # 7.0 needs Python 3.11
    assert bounds["tenacity"] == "8.4.1"  # 8.4.0 is a broken release
    needed = importlib.metadata.requires("airflow-provider-jobmon") or []
    assert not any("<" in line.partition(";")[0] for line in needed)


def test_the_constraints_are_plain_pins() -> None:
    for name in ("constraints.txt", "jobmon_constraints.txt"):
        lines = (PROJECT / "dev" / name).read_text().splitlines()
        assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.+!-]+", line)] == []


@pytest.mark.parametrize("path", sorted((PROJECT / "example_dags").glob("*.py")), ids=lambda path: path.stem)
def test_every_example_dag_is_imported_without_the_extra(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "airflow.providers.ssh.operators.ssh_remote_job", None)
    found = [value.dag_id for value in runpy.run_path(str(path)).values() if isinstance(value, DAG)]
    assert found == ([] if "ssh" in path.stem else [path.stem])
    assert ("install airflow-provider-jobmon[ssh]" in caplog.text) is ("ssh" in path.stem)


def test_example_dags_use_no_provider_that_a_plain_airflow_lacks() -> None:
    """Airflow 2.11 comes without the standard provider."""
    used = {module for path, module, _ in imports() if path.parent.name == "example_dags"}
    providers = {module for module in used if module.startswith("airflow.providers")}
    assert providers <= {*COMMON_COMPAT, "airflow.providers.ssh.operators.ssh_remote_job"}

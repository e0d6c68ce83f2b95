"""What users may rely on is declared, and is all that there is."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest

from airflow_jobmon_provider.client import conversations, protocol

PROJECT = Path(__file__).parent.parent

PUBLIC = {
    "client.workflow_run": {"WorkflowRun", "WorkflowRunFactory", "logger"},
    "client.requester": {"Requester", "ask", "converse", "retries"},
    "client.async_requester": {"AsyncRequester"},
    "hooks.jobmon": {"JobmonHook"},
    "operators.jobmon": {"CreateWorkflowRunOperator", "ResumeWorkflowOperator"},
    "sensors.jobmon": {"WorkflowResumableSensor", "WorkflowRunSensor"},
    "triggers.jobmon": {"WorkflowResumableTrigger", "WorkflowRunHeartbeatTrigger"},
    "triggers.events": {"Event", "ResumableEvent", "RunEvent"},
    "links.jobmon": {"JobmonWorkflowLink"},
}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_module_declares_what_users_may_rely_on(name: str) -> None:
    module = importlib.import_module(f"airflow_jobmon_provider.{name}")
    assert set(module.__all__) == PUBLIC[name]
    assert [each for each in module.__all__ if not hasattr(module, each)] == []


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_public_has_a_docstring_and_is_defined_there(name: str) -> None:
    """Airflow stores class paths: what is imported from elsewhere would have another one."""
    module = importlib.import_module(f"airflow_jobmon_provider.{name}")
    values = [getattr(module, each) for each in module.__all__ if each != "logger"]
    assert {value.__module__ for value in values} == {module.__name__}
    assert [value for value in values if not inspect.getdoc(value)] == []


@pytest.mark.parametrize("package", [protocol, conversations])
def test_a_package_shows_on_its_face_what_its_modules_define(package: object) -> None:
    face = vars(package)
    assert list(face["__all__"]) == sorted(
        set(face["__all__"]), key=lambda name: (not name.isupper(), not name[0].isupper(), name)
    )
    assert [name for name in face["__all__"] if name not in face] == []


@pytest.mark.parametrize("package", ["protocol", "conversations"])
def test_what_is_outside_of_the_client_imports_from_a_packages_face(package: str) -> None:
    prefix = f"airflow_jobmon_provider.client.{package}."
    client = PROJECT / "airflow_jobmon_provider" / "client"
    deep = [
        f"{path.relative_to(PROJECT)}: {node.module}"
        for path in (PROJECT / "airflow_jobmon_provider").rglob("*.py")
        if client not in path.parents
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(prefix)
    ]
    assert deep == []

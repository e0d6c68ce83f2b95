"""What Airflow and pip see of the distribution."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from airflow.providers_manager import ProvidersManager
from airflow.triggers.base import BaseTrigger

from airflow_jobmon_provider import __version__
from airflow_jobmon_provider.get_provider_info import get_provider_info
from tests.running_airflow import AIRFLOW, AIRFLOW_2

PROJECT = Path(__file__).resolve().parents[1]
MODULES = ("operators.jobmon", "sensors.jobmon", "triggers.jobmon", "hooks.jobmon")
OF_AIRFLOW_ITSELF = {(2, 11): ["requests"], (3, 0): ["aiohttp"]}


def schema(name: str) -> dict[str, Any]:
    import airflow

    loaded: dict[str, Any] = json.loads((Path(airflow.__path__[0]) / name).read_text())
    return loaded


def test_the_entry_point_gives_the_provider_info() -> None:
    (entry,) = [
        e
        for e in importlib.metadata.entry_points(group="apache_airflow_provider")
        if e.dist is not None and e.dist.name == "airflow-provider-jobmon"
    ]
    assert entry.load() is get_provider_info
    assert importlib.metadata.version("airflow-provider-jobmon") == __version__


def test_the_provider_serves_no_page_and_no_route() -> None:
    """Neither a plugin nor a route: whatever a browser sees comes from Airflow, behind its login."""
    distribution = importlib.metadata.distribution("airflow-provider-jobmon")
    assert {entry.group for entry in distribution.entry_points} == {"apache_airflow_provider"}
    # The keys by which a provider has Airflow's web server load code that serves, logs people in, or decides.
    assert set(get_provider_info()) == {
        *("package-name", "name", "description", "versions", "integrations", "connection-types"),
        *("hooks", "operators", "sensors", "triggers", "extra-links"),
    }


def test_the_provider_info_is_what_airflow_expects() -> None:
    info = get_provider_info()
    jsonschema.validate(info, schema("provider_info.schema.json"))
    # The connection form as data: the schema of provider.yaml says what Airflow 3.3 understands.
    connection_types = schema("provider.yaml.schema.json")["properties"]["connection-types"]
    jsonschema.validate(info["connection-types"], connection_types)


def test_airflows_page_of_providers_links_to_the_documentation() -> None:
    """Without "Documentation" among the distribution's URLs, it links to an address that does not exist.

    3.0 does so whatever they are: it knows no address of a provider's documentation.
    """
    provider = ProvidersManager().providers["airflow-provider-jobmon"]  # type: ignore[no-untyped-call]
    docs: Any = importlib.import_module("airflow.utils.docs")
    if AIRFLOW_2:
        address = docs.get_doc_url_for_provider("airflow-provider-jobmon", provider.version)
    elif AIRFLOW >= (3, 1):
        address = provider.data["documentation-url"]
    else:
        assert "documentation-url" not in provider.data
        return
    urls = importlib.metadata.metadata("airflow-provider-jobmon").get_all("Project-URL") or []
    assert f"Documentation, {address.strip()}" in urls


def test_every_module_that_the_provider_info_names_is_there() -> None:
    info = get_provider_info()
    for kind in ("hooks", "operators", "sensors", "triggers"):
        for entry in info[kind]:
            for module in entry["python-modules"]:
                importlib.import_module(module)


def test_airflow_finds_hook_and_form() -> None:
    manager = ProvidersManager()  # type: ignore[no-untyped-call]
    hook = manager.hooks["jobmon"]
    assert hook is not None
    assert hook.connection_id_attribute_name == "jobmon_conn_id"
    assert hook.hook_name == "Jobmon"
    assert "extra__jobmon__route_prefix" in manager.connection_form_widgets
    assert manager.field_behaviours["jobmon"]["relabeling"]["host"] == "Host or address"


TRANSPORTS = ("requests", "aiohttp")


def loaded_by(program: str) -> list[str]:
    """Return what a program prints last in a process of its own: which of the transports it has loaded."""
    program += f"\nimport sys; print([name for name in {TRANSPORTS} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stdout.splitlines()[-1].replace("'", '"'))
    return found


@pytest.fixture(scope="module")
def loaded_by_airflow() -> list[str]:
    """Which transports Airflow loads itself: requests on 2.11, aiohttp with the decorators of 3.0."""
    return loaded_by("import airflow.decorators, airflow.models.baseoperator, airflow.triggers.base")


def test_only_an_old_airflow_loads_a_transport_itself(loaded_by_airflow: list[str]) -> None:
    assert loaded_by_airflow == OF_AIRFLOW_ITSELF.get(AIRFLOW, [])


@pytest.mark.parametrize("module", MODULES)
def test_importing_loads_neither_requests_nor_aiohttp(module: str, loaded_by_airflow: list[str]) -> None:
    """Rule 6."""
    assert loaded_by(f"import airflow_jobmon_provider.{module}") in ([], loaded_by_airflow)


@pytest.mark.parametrize("path", sorted((PROJECT / "example_dags").glob("*.py")), ids=lambda path: path.stem)
def test_example_dags_parse_without_a_transport(path: Path, loaded_by_airflow: list[str]) -> None:
    program = f"import runpy; assert runpy.run_path({str(path)!r})['dag'].dag_id == {path.stem!r}"
    assert loaded_by(program) in ([], loaded_by_airflow)


def test_the_readmes_dags_are_dags() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (PROJECT / "README.md").read_text(), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_triggers_are_made_by_airflow_from_their_class_path() -> None:
    for name in ("WorkflowResumableTrigger", "WorkflowRunHeartbeatTrigger"):
        module = importlib.import_module("airflow_jobmon_provider.triggers.jobmon")
        trigger = getattr(module, name)(1)
        assert isinstance(trigger, BaseTrigger)
        assert trigger.serialize()[0] == f"airflow_jobmon_provider.triggers.jobmon.{name}"


def test_an_executors_last_words_are_one_line_without_credentials() -> None:
    from airflow_jobmon_provider.execution.executor import _line

    error = OSError("first\n503 from http://alice:s3cret@jobmon:8070/api\x1b[31m\u202e")
    assert _line(error) == "OSError: 503 from http://***@jobmon:8070/api [31m "

"""The link to Jobmon's GUI: stored by the worker, read by whoever draws the button."""

from __future__ import annotations

from typing import Any, NamedTuple

import attrs
import pytest
from airflow.providers.common.compat.sdk import DAG, BaseOperator, XCom
from airflow.providers_manager import ProvidersManager
from airflow.serialization import serialized_objects

from airflow_jobmon_provider.links.jobmon import JobmonWorkflowLink, workflow_url
from tests.airflow_task import TaskInstance
from tests.running_airflow import AIRFLOW, AIRFLOW_2


class Key(NamedTuple):
    """Airflow's ``TaskInstanceKey``, which was moved from version to version."""

    dag_id: str = "dag"
    task_id: str = "task"
    run_id: str = "run"
    try_number: int = 1
    map_index: int = -1


KEY: Any = Key()
GUI = "https://jobmon.example/gui"


class Linked(BaseOperator):
    operator_extra_links = (JobmonWorkflowLink(),)

    def execute(self, context: Any) -> None:
        JobmonWorkflowLink().store(context, workflow_url(GUI, 7))


@pytest.mark.parametrize(
    ("gui_url", "url"),
    [
        (GUI, "https://jobmon.example/gui/#/workflow/7"),
        ("http://jobmon:8080/", "http://jobmon:8080/#/workflow/7"),
        (None, ""),
        ("", ""),
        ("javascript:alert(1)//", ""),
        ("http://[broken", ""),
        ("http:///path", ""),
        ("http://host /", ""),
        ("http://host\u202e", ""),
    ],
)
def test_the_address_of_a_workflow(gui_url: str | None, url: str) -> None:
    assert workflow_url(gui_url, 7) == url
    ti = TaskInstance()
    context: Any = {"ti": ti}
    JobmonWorkflowLink().store(context, url)
    assert ti.xcoms == {JobmonWorkflowLink().xcom_key: url}  # if it is missing, Airflow logs an error


@pytest.mark.parametrize(
    ("stored", "link"),
    [
        ("https://jobmon.example/gui/#/workflow/7", "https://jobmon.example/gui/#/workflow/7"),
        (None, ""),
        ("javascript:alert(1)", ""),
        ({"url": "http://x"}, ""),
    ],
)
def test_the_link_is_what_the_worker_has_stored(
    monkeypatch: pytest.MonkeyPatch, stored: Any, link: str
) -> None:
    asked = []

    def get_value(*, ti_key: Any, key: str) -> Any:
        asked.append((ti_key, key))
        return stored

    monkeypatch.setattr(XCom, "get_value", get_value)
    assert JobmonWorkflowLink().get_link(Linked(task_id="task"), ti_key=KEY) == link
    assert asked == [(KEY, JobmonWorkflowLink().xcom_key)]


def test_airflow_serializes_what_its_server_needs() -> None:
    """That of Airflow 3 reads the XCom, and needs neither this package's code nor the connection."""
    with DAG("dag", schedule=None) as dag:
        Linked(task_id="task")
    serialization: Any = serialized_objects
    serializer = serialization.DagSerialization if AIRFLOW >= (3, 2) else serialization.SerializedDAG
    task = serializer.serialize_dag(dag)["tasks"][0]["__var"]
    of_airflow_2: list[Any] = [{"airflow_jobmon_provider.links.jobmon.JobmonWorkflowLink": {}}]
    of_airflow_3 = {"Jobmon workflow": JobmonWorkflowLink().xcom_key}
    assert task["_operator_extra_links"] == (of_airflow_2 if AIRFLOW_2 else of_airflow_3)


def test_airflow_2_can_make_the_link_anew_from_its_class_path() -> None:
    """It stores the class path and ``attrs.asdict``, and makes only links that a provider has registered."""
    assert attrs.asdict(JobmonWorkflowLink()) == {}
    manager = ProvidersManager()  # type: ignore[no-untyped-call]
    assert "airflow_jobmon_provider.links.jobmon.JobmonWorkflowLink" in manager.extra_links_class_names

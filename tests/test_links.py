"""The link to Jobmon's GUI: stored by the worker, read by whoever draws the button."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from airflow.providers.common.compat.sdk import DAG, BaseOperator, XCom
from airflow.providers_manager import ProvidersManager
from airflow.sdk.types import TaskInstanceKey
from airflow.serialization.serialized_objects import DagSerialization

from airflow_jobmon_provider.links.jobmon import JobmonWorkflowLink, workflow_url
from tests.airflow_task import TaskInstance

KEY = TaskInstanceKey("dag", "task", "run", 1, -1)
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


def test_airflow_3_serializes_name_and_key_only() -> None:
    """So its API server reads the XCom, and needs neither this package's code nor the connection."""
    with DAG("dag", schedule=None) as dag:
        Linked(task_id="task")
    task = DagSerialization.serialize_dag(dag)["tasks"][0]["__var"]
    assert task["_operator_extra_links"] == {"Jobmon workflow": "_link_JobmonWorkflowLink"}


def test_airflow_2_can_make_the_link_anew_from_its_class_path() -> None:
    """It stores the class path and ``attrs.asdict``, and makes only links that a provider has registered."""
    assert attrs.asdict(JobmonWorkflowLink()) == {}
    manager = ProvidersManager()  # type: ignore[no-untyped-call]
    assert "airflow_jobmon_provider.links.jobmon.JobmonWorkflowLink" in manager.extra_links_class_names

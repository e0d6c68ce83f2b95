"""The stand-in for a task instance has what Airflow's own has, under the same names."""

from __future__ import annotations

import dataclasses
import inspect

from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

from tests.airflow_task import TaskInstance

OURS = {"xcoms", "in_airflow"}
# Airflow 2's attribute; 3 has it in what the API server said when the task was started.
OF_AIRFLOW_2 = {"next_method"}


def test_each_field_is_one_of_the_real_task_instance() -> None:
    names = {field.name for field in dataclasses.fields(TaskInstance)} - OURS - OF_AIRFLOW_2
    assert names <= set(RuntimeTaskInstance.model_fields)


def test_a_task_that_is_not_mapped_has_the_same_map_index() -> None:
    assert TaskInstance().map_index == RuntimeTaskInstance.model_fields["map_index"].default


def test_states_are_asked_for_in_the_same_words() -> None:
    real = inspect.signature(RuntimeTaskInstance.get_task_states).parameters
    ours = dict(inspect.signature(TaskInstance.get_task_states).parameters)
    ours.pop("self")
    assert list(ours) == list(real)

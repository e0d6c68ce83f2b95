"""The stand-in for a task instance has what Airflow's own has, under the same names."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from tests.airflow_task import ApiTaskInstance, DatabaseTaskInstance, TaskInstance
from tests.running_airflow import AIRFLOW_2

OURS = {"xcoms", "in_airflow"}
# Airflow 2's attribute; 3 has it in what the API server said when the task was started.
OF_AIRFLOW_2 = {"next_method"}


def parameters(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


if AIRFLOW_2:
    from airflow.models import TaskInstance as RealTaskInstance

    def test_each_field_is_one_of_the_real_task_instance() -> None:
        names = {field.name for field in dataclasses.fields(TaskInstance)} - OURS
        assert names <= set(dir(RealTaskInstance))

    def test_a_task_that_is_not_mapped_has_the_same_map_index() -> None:
        column: Any = RealTaskInstance.map_index
        assert str(TaskInstance().map_index) == column.property.columns[0].server_default.arg.text

    def test_a_row_is_asked_for_in_the_same_words() -> None:
        ours = parameters(DatabaseTaskInstance.get_task_instance)
        assert ours == parameters(RealTaskInstance.get_task_instance)[: len(ours)]

else:
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    def test_each_field_is_one_of_the_real_task_instance() -> None:
        names = {field.name for field in dataclasses.fields(TaskInstance)} - OURS - OF_AIRFLOW_2
        assert names <= set(RuntimeTaskInstance.model_fields)

    def test_a_task_that_is_not_mapped_has_the_same_map_index() -> None:
        assert TaskInstance().map_index == RuntimeTaskInstance.model_fields["map_index"].default

    def test_states_are_asked_for_in_the_same_words() -> None:
        assert parameters(ApiTaskInstance.get_task_states) == parameters(RuntimeTaskInstance.get_task_states)

"""Which workflow a task is about: its id, or what it is called."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_jobmon_provider.client.validation import positive_id
from airflow_jobmon_provider.client.workflow_query import NAMING, WorkflowQuery, check_one_way
from airflow_jobmon_provider.task.templates import InvalidParameter, check_literal_id, is_literal

if TYPE_CHECKING:
    from airflow_jobmon_provider.client.conversations import Conversation

WORKFLOW_FIELDS = ("workflow_id", *NAMING)
"""The parameters, all of which are templated."""


class OfOneWorkflow(BaseOperator):
    """An operator or a sensor that is about one workflow, by its id or by what it is called.

    :param workflow_id: its id.
    :param workflow_name, tool_name, workflow_args, workflow_attributes: what it is called, instead.
    :raises ValueError: it is given in no way or in both, or what stands in the DAG file is wrong.
    """

    def __init__(
        self,
        *,
        workflow_id: int | str | None = None,
        workflow_name: str | None = None,
        tool_name: str | None = None,
        workflow_args: str | float | None = None,
        workflow_attributes: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.workflow_id = workflow_id
        self.workflow_name, self.tool_name = workflow_name, tool_name
        self.workflow_args, self.workflow_attributes = workflow_args, workflow_attributes
        named = self._naming()
        check_one_way(workflow_id, named)
        literals = {name: value for name, value in named.items() if is_literal(value)}
        if literals:
            WorkflowQuery.of(**literals)
        if workflow_id is not None:
            check_literal_id("workflow_id", workflow_id)

    def _naming(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in NAMING}

    def _asked_workflow(self) -> int | WorkflowQuery:
        """Return which workflow the task is about, as templates have rendered it.

        :raises InvalidParameter: that cannot be right.
        """
        named = self._naming()
        try:
            if all(value is None for value in named.values()):
                return positive_id("workflow_id", self.workflow_id)
            return WorkflowQuery.of(**named)
        except ValueError as error:
            raise InvalidParameter(str(error)) from None


def find_asked(
    asked: int | WorkflowQuery, converse: Callable[[Conversation[int]], int], timeout: float, log: Any
) -> int:
    """Return the id of the workflow that a task is about; one that is named is looked for.

    :param asked: the workflow.
    :param converse: carries a conversation to its end.
    :param timeout: seconds for which a server that does not answer is asked again; 0: it is asked once.
    :param log: the task's.
    :raises JobmonError: no workflow is called so, or more than one is, or the server did not answer.
    """
    if isinstance(asked, int):
        return asked
    from airflow_jobmon_provider.client.conversations import Retries, find_workflow

    workflow_id = converse(find_workflow(asked, Retries(timeout, math.inf), time.monotonic))
    log.info("%s is workflow %d", asked, workflow_id)
    return workflow_id


def as_kept(asked: int | WorkflowQuery) -> dict[str, Any] | None:
    """Return a query as plain values, to be compared with that of another try; None: it is an id."""
    if isinstance(asked, int):
        return None
    values: Mapping[str, Any] = {name: getattr(asked, name) for name in NAMING}
    return {**values, "workflow_attributes": [list(pair) for pair in asked.workflow_attributes]}

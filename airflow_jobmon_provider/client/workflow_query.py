"""A workflow that is named instead of numbered: by its name, its tool, its arguments, its attributes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_jobmon_provider.client.redaction import excerpt, shown

NAMING = ("workflow_name", "tool_name", "workflow_args", "workflow_attributes")
"""The parameters that name a workflow, wherever one takes ``workflow_id``."""


@dataclass(frozen=True, slots=True)
class WorkflowQuery:
    """Which workflow is meant. What is None, or empty, may be anything.

    :param workflow_name: its name.
    :param tool_name: name of the tool that it is of.
    :param workflow_args: its arguments, as text.
    :param workflow_attributes: some of its attributes, each with its value as text.
    """

    workflow_name: str | None = None
    tool_name: str | None = None
    workflow_args: str | None = None
    workflow_attributes: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(
        cls,
        workflow_name: Any = None,
        tool_name: Any = None,
        workflow_args: Any = None,
        workflow_attributes: Any = None,
    ) -> WorkflowQuery:
        """Return a query of what a user gave, each value checked.

        :param workflow_name: text. Default None: any.
        :param tool_name: text. Default None: any.
        :param workflow_args: text or a number, as Jobmon's client takes them. Default None: any.
        :param workflow_attributes: a mapping from names to texts or numbers. Default None: any.
        :raises ValueError: one of them is empty, which would mean any workflow, or is something else; or none
            is given.
        """
        attributes: tuple[tuple[str, str], ...] = ()
        if workflow_attributes is not None:
            if not isinstance(workflow_attributes, Mapping) or not workflow_attributes:
                what = shown(workflow_attributes)
                raise ValueError(f"workflow_attributes must be a dict of names and values, not {what}")
            attributes = tuple(
                (_text("a name in workflow_attributes", name), _text(f"workflow_attributes[{name!r}]", value))
                for name, value in workflow_attributes.items()
            )
        query = cls(
            _text_or_none("workflow_name", workflow_name),
            _text_or_none("tool_name", tool_name),
            _text_or_none("workflow_args", workflow_args),
            attributes,
        )
        check_one_way(None, {name: getattr(query, name) or None for name in NAMING})
        return query

    def __str__(self) -> str:
        """What is asked for, as shown to users: ``workflow_name 'fit', workflow_args '2026'``."""
        texts = {name: getattr(self, name) for name in NAMING[:3]}
        parts = [f"{name} {excerpt(text)!r}" for name, text in texts.items() if text is not None]
        parts += [f"attribute {excerpt(key)!r} {excerpt(text)!r}" for key, text in self.workflow_attributes]
        return ", ".join(parts)


def check_one_way(workflow_id: Any, named: Mapping[str, Any]) -> None:
    """Check that a workflow is given by its id or by what it is called, and in one of these ways only.

    :param workflow_id: its id; None: it is not given.
    :param named: the parameters of ``NAMING``; those that are None are not given.
    :raises ValueError: it is given in no way or in both.
    """
    given = [name for name, value in named.items() if value is not None]
    if workflow_id is None and not given:
        raise ValueError(f"workflow_id, or some of {', '.join(NAMING)}, must be given")
    if workflow_id is not None and given:
        raise ValueError(f"give workflow_id or {', '.join(given)}, not both: an id is one workflow already")


def _text_or_none(name: str, value: Any) -> str | None:
    return None if value is None else _text(name, value)


def _text(name: str, value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} must be text that is not empty, not {shown(value)}")
    return value

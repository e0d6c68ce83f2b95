"""Parameters of a task before and after Airflow has rendered them."""

from __future__ import annotations

import logging
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_jobmon_provider.client.validation import positive_id


class InvalidParameter(AirflowFailException, ValueError):
    """What a template has rendered cannot be right, and a retry would render the same."""


def check_literal_id(name: str, value: Any) -> None:
    """Check an id that stands in the DAG file; templates and XComs are checked when they are known.

    :raises ValueError: it is a literal and no positive integer.
    """
    if value is None or is_literal(value):
        positive_id(name, value)


def is_literal(value: Any) -> bool:
    """Whether a value stands in the DAG file as it is: no template, and nothing from another task."""
    if isinstance(value, dict):
        return all(map(is_literal, (*value.keys(), *value.values())))
    if isinstance(value, str):
        return "{{" not in value and "{%" not in value
    return isinstance(value, (int, float))


class RenderedBeforeDeferral:
    """Mixin of operators and sensors that need none of their templates once they have been deferred.

    Airflow renders them anew when a task comes back, and what they name may be gone by then: a Variable, an
    upstream's XCom. What was decided before the deferral holds (docs/rules.md, rule 9), so that is no
    failure.
    """

    def _do_render_template_fields(self, *args: Any, **kwargs: Any) -> None:
        # Airflow calls this one for mapped tasks and for others.
        context = kwargs["context"] if "context" in kwargs else args[2]
        try:
            super()._do_render_template_fields(*args, **kwargs)  # type: ignore[misc]
        except Exception as error:
            if not returns_from_deferral(context):
                raise
            log: logging.Logger = self.log  # type: ignore[attr-defined]
            log.warning("A template cannot be rendered any more, and is not needed any more: %s", error)


def returns_from_deferral(context: Any) -> bool:
    """Whether the task that has this context comes back from a deferral."""
    ti = context.get("ti")
    server = getattr(ti, "_ti_context_from_server", None)  # Airflow 3; the attribute beside it is 2's
    return bool(getattr(server, "next_method", None) or getattr(ti, "next_method", None))

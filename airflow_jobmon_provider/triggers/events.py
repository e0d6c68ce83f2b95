"""What the triggers say to the task that waits for them: events that carry every id.

Airflow keeps an event as JSON in its database. The task that comes back may be of another version of this
provider than the trigger was: what it does not know it leaves out, and what is missing is ``None``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.providers.common.compat.sdk import AirflowException

if TYPE_CHECKING:
    from airflow_jobmon_provider.client.conversations import RunEnd

__all__ = ["Event", "ResumableEvent", "RunEvent"]

# By the outcome of the watch.
_STATUS = {"done": "success", "failed": "failed", "handoff_timeout": "timeout", "timeout": "timeout"}

E = TypeVar("E", bound="Event")


class UnreadableEvent(AirflowException):
    """The task came back without an event that says what came of the wait, so nothing follows from it."""


@dataclass(frozen=True)
class Event:
    """What came of a trigger; see the two kinds below."""

    status: str
    message: str
    workflow_id: int | None = None
    server: str | None = None

    @classmethod
    def read(cls: type[E], payload: Any) -> E:
        """Return a trigger's event as Airflow has kept it.

        :param payload: what the task was given when it came back.
        :raises UnreadableEvent: it is None or no event of this provider's triggers, as after an upgrade.
        """
        if (
            not isinstance(payload, dict)
            or not isinstance(payload.get("status"), str)
            or not isinstance(payload.get("message", ""), str)
        ):
            raise UnreadableEvent(
                "the task came back from the triggerer without a result that this version of the provider can"
                " read; clear it to begin anew"
            )
        names = {field.name for field in fields(cls)}
        known = {name: value for name, value in payload.items() if name in names}
        return cls(**{"message": f"the trigger ended with {payload['status']}", **known})

    def payload(self) -> dict[str, Any]:
        """Return the event as Airflow keeps it."""
        return asdict(self)


@dataclass(frozen=True)
class ResumableEvent(Event):
    """What came of the wait for a workflow.

    :param status: ``success`` (it is resumable), ``timeout`` or ``error``.
    :param message: one line for the user.
    :param workflow_id: the workflow.
    :param server: address of its server; None: not known.
    """


@dataclass(frozen=True)
class RunEvent(Event):
    """What came of the watch of a run.

    :param status: ``success`` (it ended DONE), ``failed`` (it ended otherwise), ``timeout`` or ``error``.
    :param message: one line for the user.
    :param workflow_id: its workflow; None: not known.
    :param server: address of its server; None: not known.
    :param workflow_run_id: the run.
    :param workflow_run_status: Jobmon's code of the status in which it was seen last; None: not known.
    :param exit_code: of the task's own executor; None: it has none, or it is not known.
    """

    workflow_run_id: int | None = None
    workflow_run_status: str | None = None
    exit_code: int | None = None

    @classmethod
    def of(cls, end: RunEnd, workflow_run_id: int, workflow_id: int | None) -> RunEvent:
        """Return the event that says how the watch of a run ended."""
        return cls(
            _STATUS[end.outcome.value],
            end.message,
            workflow_id,
            workflow_run_id=workflow_run_id,
            workflow_run_status=end.status.value if end.status else None,
            exit_code=end.exit_code,
        )

    @property
    def has_ended(self) -> bool:
        """Whether the run has ended, well or badly."""
        return self.status in ("success", "failed")

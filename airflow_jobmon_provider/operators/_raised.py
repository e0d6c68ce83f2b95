"""Whether the resources of a workflow's failed tasks have been raised already."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowTaskTimeout

from airflow_jobmon_provider.client.exceptions import JobmonError
from airflow_jobmon_provider.client.settings import same_server

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_jobmon_provider.client.protocol import WorkflowDetails
    from airflow_jobmon_provider.operators._decided import Resume


class RaisedMemory:
    """Remembers that the resources of a workflow's failed tasks were raised, until the tasks are reset.

    Where Airflow has a place for it (3.3), a retry learns of it; where not, none may follow.
    """

    _KEY = "jobmon_resources_raised"

    def __init__(
        self, context: Context, decided: Resume, server: str, details: WorkflowDetails | None
    ) -> None:
        self._store: Any = context.get("task_state_store")
        # Once another run has begun, other tasks may have failed, or the same ones again.
        since = None if details is None else details.status_since
        self._raised = {"workflow_id": decided.workflow_id, "server": server, "status_since": since}
        self._sent = False

    def knows(self) -> bool:
        """Whether an earlier try raised them, or may have."""
        kept = self._store.get(self._KEY) if self._store is not None else None
        if not isinstance(kept, dict):
            return False
        here = same_server(str(kept.get("server")), str(self._raised["server"]))
        return here and {**kept, "server": None} == {**self._raised, "server": None}

    def remember(self) -> None:
        """Keep for the next try that they are being raised: its reply may be lost."""
        self._sent = True
        if self._store is not None:
            self._store.set(self._KEY, self._raised)

    def forget(self) -> None:
        """They were not raised, or the tasks have been reset."""
        self._sent = False
        if self._store is not None:
            self._store.delete(self._KEY)

    @contextlib.contextmanager
    def or_no_retry(self) -> Iterator[None]:
        """Let no retry follow that would raise them again because nobody remembers.

        :raises AirflowFailException: they may have been raised, and what followed failed.
        """
        try:
            yield
        except (JobmonError, AirflowTaskTimeout) as error:
            if self._store is not None or not self._sent:
                raise
            raise AirflowFailException(
                f"{error}. The resources of workflow {self._raised['workflow_id']}'s failed tasks may have"
                f" been raised already, which this Airflow cannot remember for a retry (3.3 can): resume the"
                f" workflow with increase_resources=False"
            ) from None

"""The parameters by which a task executes a run itself; ``CreateWorkflowRunOperator`` describes them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_jobmon_provider.client.validation import one_of, seconds
from airflow_jobmon_provider.execution.names import LAUNCHERS

if TYPE_CHECKING:
    from airflow_jobmon_provider.execution.launchers import Options


class ExecutingOperator(BaseOperator):
    """An operator that may have a run executed: where, how, and how long that may take to begin."""

    template_fields: Sequence[str] = (
        "cluster_name",
        "jobmon_python",
        "ssh_conn_id",
        "launcher_options",
        "setup_commands",
        "remote_dir",
    )

    def __init__(
        self,
        *,
        cluster_name: str | None = None,
        jobmon_python: str | None = None,
        ssh_conn_id: str | None = None,
        launcher: str = "process",
        launcher_options: Options | None = None,
        setup_commands: Sequence[str] | None = None,
        remote_dir: str | None = None,
        queue_timeout: float | timedelta | None = None,
        handoff_timeout: float | timedelta = 3600,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.cluster_name, self.jobmon_python = cluster_name, jobmon_python
        self.ssh_conn_id = ssh_conn_id
        self.launcher = one_of("launcher", launcher, LAUNCHERS)
        self.launcher_options, self.setup_commands = launcher_options, setup_commands
        self.remote_dir = remote_dir
        self.queue_timeout = (
            None if queue_timeout is None else seconds("queue_timeout", queue_timeout, above=0)
        )
        self.handoff_timeout = seconds("handoff_timeout", handoff_timeout, above=0)
        if cluster_name is None and (ssh_conn_id is not None or launcher != "process"):
            raise ValueError("ssh_conn_id and launcher need cluster_name: the cluster that runs the tasks")

"""Resume a workflow and create its next run, on a worker that dies once, at the step that ``die`` names.

A step is an exchange with somebody else: a request to Jobmon, or a message to Airflow's supervisor. Between
two of them nothing happens that anybody could notice, so dying after each is dying everywhere.
"""

from __future__ import annotations

import functools
import os
import signal
from typing import Any
from urllib.parse import urlsplit

import requests
from airflow.providers.common.compat.sdk import DAG
from airflow.sdk.execution_time.comms import CommsDecoder

from airflow_jobmon_provider.operators.jobmon import CreateWorkflowRunOperator, ResumeWorkflowOperator


class Steps:
    """Counts the steps of a phase in this process, logs each, and kills the process after one."""

    def __init__(self, operator: Any, context: Any, phase: str) -> None:
        self.log = operator.log
        self.phase = f"{operator.task_id}.{phase}"
        die = context["dag_run"].conf.get("die") if context["ti"].try_number == 1 else None
        self.last: int | None
        self.whom: str
        self.last, self.whom = die[1:] if die and die[0] == self.phase else (None, "")
        self.number = 0
        CommsDecoder.send = self.counted(  # type: ignore[method-assign]  # on purpose
            CommsDecoder.send, lambda m: type(m).__name__
        )
        requests.Session.send = self.counted(  # type: ignore[method-assign]  # on purpose
            requests.Session.send, lambda m: f"{m.method} {urlsplit(m.url).path}"
        )
        self.die_if_it_is_time()

    def counted(self, send: Any, name: Any) -> Any:
        @functools.wraps(send)
        def sending(connection: Any, *args: Any, **kwargs: Any) -> Any:
            reply = send(connection, *args, **kwargs)
            step = name(args[0] if args else kwargs["msg"])
            if step != "MaskSecret":  # tells the supervisor's log what to hide, again and again
                self.number += 1
                self.log.info("STEP %s %d %s", self.phase, self.number, step)
                self.die_if_it_is_time()
            return reply

        return sending

    def die_if_it_is_time(self) -> None:
        if self.number == self.last:
            if self.whom == "worker":
                os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)


class Mortal:
    """Counts the steps of both phases of an operator that defers."""

    def execute(self, context: Any) -> Any:
        Steps(self, context, "execute")
        return super().execute(context)  # type: ignore[misc]

    def execute_complete(self, context: Any, event: Any = None) -> Any:
        Steps(self, context, "execute_complete")
        return super().execute_complete(context, event)  # type: ignore[misc]


class MortalResume(Mortal, ResumeWorkflowOperator):
    pass


class MortalCreate(Mortal, CreateWorkflowRunOperator):
    pass


with DAG(dag_id="dies_anywhere", schedule=None, max_active_runs=16):
    resume = MortalResume(
        task_id="resume", workflow_id="{{ dag_run.conf['workflow_id'] }}", deferrable=True, retry_delay=1
    )
    MortalCreate(
        task_id="run",
        workflow_id=resume.output,
        deferrable=True,
        retry_delay=1,
    )

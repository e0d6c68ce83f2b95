"""Python programs in the executor's place."""

from __future__ import annotations

import sys

from airflow_jobmon_provider.client.redaction import NO_SECRETS, Secrets
from airflow_jobmon_provider.execution.process import Execution


class Lines:
    """A log that keeps what it gets."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.levels: list[int] = []

    def log(self, level: int, line: str, /, *args: object) -> None:
        self.levels.append(level)
        self.lines.append(line % args)


def run(
    program: str, environment: dict[str, str] | None = None, secrets: Secrets = NO_SECRETS
) -> tuple[Execution, Lines]:
    """Start a Python program in the executor's place; it finds its lifeline in ``sys.argv``."""
    log = Lines()
    env = {"PYTHONUNBUFFERED": "1", **(environment or {})}
    return Execution([sys.executable, "-c", program], env, log, secrets), log

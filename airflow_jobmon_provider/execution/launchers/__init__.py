"""How an executor is started on a host: as a process, or as a job of the cluster's scheduler.

A launcher does no I/O. It says which command the host is to run, and how to read the answer, so that a worker
and a triggerer, this machine and a submit host share it. Another scheduler is another module here.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeAlias

from airflow_jobmon_provider.execution.command import Command
from airflow_jobmon_provider.execution.job import NOTHING_LEFT, Job, JobSpec, Left

__all__ = ["JobSeen", "JobStage", "Launcher", "Options", "find_launcher"]

Options: TypeAlias = Mapping[str, object] | Sequence[str]
"""The scheduler's own options: names and values, or words as they stand in its command line."""


class JobStage(Enum):
    """Where a job stands."""

    WAITING = "waiting"
    """It has not begun, or is put back into the queue."""
    AT_WORK = "at work"
    OVER = "over"
    NOT_KNOWN = "not known"
    """The host cannot tell."""


@dataclass(frozen=True)
class JobSeen:
    """What a host tells of a job.

    :param stage: where it stands.
    :param said: the same in the scheduler's words, such as ``job 4711 PENDING: Priority``.
    :param left: what the executor has left: its exit code, once it has ended by itself.
    :param ending: how the launcher or the scheduler ended it, such as ``Slurm job 4711 ended TIMEOUT after
        7-00:00:00``; empty: they did not.
    """

    stage: JobStage
    said: str
    left: Left = NOTHING_LEFT
    ending: str = ""


class Launcher(Protocol):
    """Starts executors in one way."""

    def check_options(self, options: Options) -> list[str]:
        """Return the options as words of a command line.

        :param options: as a user gives them.
        :raises ValueError: one cannot be given; the message says why.
        """

    def start(self, job: JobSpec, options: Sequence[str]) -> Command[Job]:
        """Return the command that starts a job, unless that was done before.

        :param options: from :meth:`check_options`.
        """

    def look(self, jobs: Sequence[Job]) -> Command[dict[Job, JobSeen]]:
        """Return the command that looks at jobs, and that returns what it saw of each."""

    def end(self, job: Job, *, kill: bool) -> Command[None]:
        """Return the command that ends a job and all that is part of it.

        :param kill: at once; else it has a little time.
        """


def find_launcher(name: str) -> Launcher:
    """Return a launcher by its name; each is a module here, with an object ``LAUNCHER``."""
    launcher: Launcher = importlib.import_module(f"{__name__}.{name}").LAUNCHER
    return launcher

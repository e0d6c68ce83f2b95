"""A job that a worker has started and waits for: a thread follows it, while the task watches its run."""

from __future__ import annotations

import logging
import queue
import threading
from typing import Any

from airflow_jobmon_provider.execution import files
from airflow_jobmon_provider.execution.command import Command, HostNotReached, HostRefused
from airflow_jobmon_provider.execution.following import (
    Follower,
    Following,
    Logged,
    Look,
    Recall,
    Run,
    Step,
    Wait,
)
from airflow_jobmon_provider.execution.hosts import Host
from airflow_jobmon_provider.execution.job import Job
from airflow_jobmon_provider.execution.launchers import JobSeen, Launcher
from airflow_jobmon_provider.execution.watching import ExecutorEnded

_GRACE = 60.0  # seconds that a job which was told to end has before it is killed


class JobExecution:
    """A job that executes a run, as :class:`~airflow_jobmon_provider.execution.process.Execution` does.

    A thread starts the job and follows it, so that nothing on the way to its host delays a heartbeat. It goes
    on whatever becomes of this process. It is followed from the first :meth:`wait` on: a task that defers
    once it was started leaves all of its output to the trigger.

    :param host: where it runs.
    :param launcher: how it is started.
    :param start: the launcher's command that starts it, unless that was done before.
    :param follower: learns how it stands.
    """

    def __init__(self, host: Host, launcher: Launcher, start: Command[Job], follower: Follower) -> None:
        self.follower = follower
        self._host = host
        self._launcher = launcher
        self._start = start
        self._orders: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._wakes = threading.Event()
        self._started = threading.Event()
        self._follows = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._go, name="jobmon-executor", daemon=True)
        self._thread.start()

    @property
    def exit_code(self) -> int | None:
        """The executor's exit code; negative: the signal that killed it; None: not known."""
        return self.follower.exit_code

    @property
    def is_queued(self) -> bool:
        """Whether it is known that it has not begun."""
        return self.follower.is_queued

    @property
    def has_taken(self) -> bool:
        """Whether it has asked the server for the run: one that is past LINKING may be its own."""
        return self.follower.has_taken

    @property
    def problem(self) -> str | None:
        """What kept it from executing the run to its end, in one line; None: nothing, or it is at work."""
        return self.follower.problem

    def wait_for_start(self, seconds: float) -> bool:
        """Wait until the job was started or refused, or for so many seconds; return whether it was."""
        return self._started.wait(seconds)

    def wait(self, seconds: float) -> None:
        """Wait so many seconds.

        :raises ExecutorEnded: the job is over, and all that it has written is logged; or it never began.
        """
        if self._is_over(seconds):
            raise ExecutorEnded

    def stop(self, patience: float = 0.0) -> None:
        """End the job, if it is not over within so many seconds."""
        if not self._is_over(patience):
            self._order("end")
            if not self._is_over(_GRACE):
                self._order("kill")
                self._is_over(_GRACE)
        self.let_go()

    def let_go(self) -> None:
        """Follow it no longer. It goes on."""
        self._order("let go")

    def _is_over(self, seconds: float) -> bool:
        if not self._follows.is_set():
            self._follows.set()
            self._wakes.set()
        return self._ended.wait(seconds)

    # --- The thread -----------------------------------------------------------------------------------------

    def _go(self) -> None:
        try:
            self._drive(self.follower.start(self._start))
            self._started.set()
            if self.follower.job is not None:
                self._wait_to_follow()
                job = self.follower.job
                self._drive(self.follower.follow())
                if self.follower.was_stopped:
                    self._try(self._launcher.end(job, kill=False))
                self._clean_up(job.folder)
            self._ended.set()
        except _LetGo:
            pass
        except Exception as error:  # the task must not wait for ever
            self.follower.refused = f"the executor can no longer be followed: {error!r}"
            self._ended.set()
        finally:
            self._host.close()

    def _wait_to_follow(self) -> None:
        while not self._follows.is_set():
            self._obey()
            self._wakes.wait()
            self._wakes.clear()

    def _drive(self, following: Following) -> None:
        reply: Any = None
        error: Exception | None = None
        while True:
            try:
                step = following.send(reply) if error is None else following.throw(error)
            except StopIteration:
                return
            reply = error = None
            try:
                reply = self._do(step)
            except (HostNotReached, HostRefused) as failure:
                error = failure

    def _do(self, step: Step) -> Any:
        if isinstance(step, Logged):  # also where it is let go now: no line is to be logged twice
            self._try(files.keep_logged({step.job.folder: step.known}))
            return None
        self._obey()
        if isinstance(step, Wait):
            self._wakes.wait(step.seconds)
            self._wakes.clear()
            return None
        if isinstance(step, Run):
            return self._host.run(step.command)
        if isinstance(step, Recall):
            return self._host.run(files.read_logged([step.job.folder]))[step.job.folder]
        return self._look(step)

    def _look(self, look: Look) -> tuple[JobSeen, bytes]:
        seen = self._host.run(self._launcher.look([look.job]))[look.job]
        written = self._host.run(files.read_output({look.job.folder: look.known}))
        return seen, written.get(look.job.folder, b"")

    def _order(self, order: str) -> None:
        self._orders.put(order)
        self._wakes.set()

    def _obey(self) -> None:
        while not self._orders.empty():
            order = self._orders.get()
            if order == "let go":
                raise _LetGo
            if self.follower.job is None:  # nothing was started, as far as is known
                raise _LetGo
            self._try(self._launcher.end(self.follower.job, kill=order == "kill"))

    def _clean_up(self, folder: str) -> None:
        self._try(files.remove(folder))

    def _try(self, command: Command[Any]) -> None:
        try:
            self._host.run(command)
        except (HostNotReached, HostRefused) as error:
            self.follower.log.log(logging.WARNING, "%s: %s", self._host.name, error)


class _LetGo(Exception):
    """The job is not to be followed any longer."""

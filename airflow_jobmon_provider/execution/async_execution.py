"""A job that a trigger follows: a task of its event loop does, while the trigger watches the run."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from airflow_jobmon_provider.client.cancellation import wait_for
from airflow_jobmon_provider.execution import files
from airflow_jobmon_provider.execution.async_hosts import AsyncHost
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
from airflow_jobmon_provider.execution.job import Job
from airflow_jobmon_provider.execution.launchers import find_launcher
from airflow_jobmon_provider.execution.watching import ExecutorEnded


class AsyncExecution:
    """A job that executes a run; use :meth:`following` to have it followed.

    :param host: where it runs.
    :param launcher: name of its launcher.
    :param start: the command that starts it, unless that was done before, or that finds it.
    :param follower: learns how it stands.
    """

    def __init__(self, host: AsyncHost, launcher: str, start: Command[Job], follower: Follower) -> None:
        self.follower = follower
        self._host = host
        self._launcher = launcher
        self._start = start
        self._ended = asyncio.Event()
        self._told = False

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator[AsyncExecution]:
        """Have the job followed in here. It goes on afterwards, if it is not over."""
        task = asyncio.create_task(self._go())
        try:
            yield self
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def wait(self, seconds: float) -> None:
        """Wait so many seconds.

        :raises ExecutorEnded: the job is over, and all that it has written is logged; or it never began. This
            is said once.
        """
        if self._told:
            await asyncio.sleep(seconds)
        elif await self._over(seconds):
            self._told = True
            raise ExecutorEnded

    async def end(self, patience: float = 0.0) -> None:
        """End the job, if it is not over within so many seconds. What the host says to that is logged."""
        job = self.follower.job
        if await self._over(patience) or job is None:
            return
        with self._logging():
            await self._host.run(find_launcher(self._launcher).end(job, kill=False))

    async def _over(self, seconds: float) -> bool:
        with contextlib.suppress(asyncio.TimeoutError):
            await wait_for(self._ended.wait(), seconds)
        return self._ended.is_set()

    async def _go(self) -> None:
        try:
            await self._drive(self.follower.start(self._start))
            job = self.follower.job
            if job is not None:
                await self._drive(self.follower.follow())
                with self._logging():
                    if self.follower.was_stopped:
                        await self._host.run(find_launcher(self._launcher).end(job, kill=False))
                    await self._host.run(files.remove(job.folder))
        except Exception as error:  # the trigger must not wait for ever
            self.follower.refused = f"the executor can no longer be followed: {error!r}"
        self._ended.set()

    async def _drive(self, following: Following) -> None:
        reply: Any = None
        error: Exception | None = None
        while True:
            try:
                step = following.send(reply) if error is None else following.throw(error)
            except StopIteration:
                return
            reply = error = None
            try:
                reply = await self._do(step)
            except (HostNotReached, HostRefused) as failure:
                error = failure

    async def _do(self, step: Step) -> Any:
        if isinstance(step, Wait):
            return await asyncio.sleep(step.seconds)
        if isinstance(step, Run):
            return await self._host.run(step.command)
        if isinstance(step, Recall):
            return await self._host.recall(step.job)
        if isinstance(step, Look):
            return await self._host.look(self._launcher, step.job, step.known)
        assert isinstance(step, Logged)
        return self._host.keep_logged(step.job, step.known)

    @contextlib.contextmanager
    def _logging(self) -> Any:
        try:
            yield
        except (HostNotReached, HostRefused) as error:
            self.follower.log.log(logging.WARNING, "%s: %s", self._host.name, error)

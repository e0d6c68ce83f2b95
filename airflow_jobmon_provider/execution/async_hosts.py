"""Hosts that run commands, as a triggerer uses them: all triggers of an event loop share what is open to one.

However many jobs there are on a host, one SSH connection is kept to it, and one look serves them all.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from airflow_jobmon_provider.client.cancellation import wait_for
from airflow_jobmon_provider.client.redaction import excerpt
from airflow_jobmon_provider.execution import files
from airflow_jobmon_provider.execution.command import SHELL, Command, HostNotReached, HostRefused
from airflow_jobmon_provider.execution.environment import inherited_environment
from airflow_jobmon_provider.execution.job import Job
from airflow_jobmon_provider.execution.launchers import JobSeen, find_launcher

T = TypeVar("T")
W = TypeVar("W")

SESSIONS = 4
"""Commands that run on a host at once: an SSH server allows ten in one connection, by default."""

_GATHER = 0.5  # seconds in which looks are gathered, to be one
_SOON = 0.2  # seconds after which it is kept what was logged


class _ThisMachine:
    async def run(self, command: Command[Any]) -> tuple[int, bytes, bytes]:
        shell = await asyncio.create_subprocess_exec(
            *("sh", "-s"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=inherited_environment(os.environ),
            start_new_session=True,
        )
        try:
            output, errors = await shell.communicate(command.data)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                shell.kill()
            raise
        return shell.returncode or 0, output, errors

    async def close(self) -> None:
        """Nothing is open."""


class _Ssh:
    def __init__(self, ssh_conn_id: str) -> None:
        self._ssh_conn_id = ssh_conn_id
        self._connecting = asyncio.Lock()
        self._connection: Any = None

    async def run(self, command: Command[Any]) -> tuple[int, bytes, bytes]:
        connection = await self._connect()
        try:
            done = await connection.run(SHELL, input=command.data, encoding=None, check=False)
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError) and self._connection is connection:
                await self.close()
            raise
        if done.exit_status is None or done.exit_status < 0:
            raise HostNotReached("the shell there was ended by a signal")
        return done.exit_status, done.stdout, done.stderr

    async def _connect(self) -> Any:
        from airflow.providers.ssh.hooks.ssh import SSHHookAsync
        from asgiref.sync import sync_to_async

        # It tells each step of each command, and an Airflow task's log would have them all.
        logging.getLogger("asyncssh").setLevel(logging.WARNING)
        async with self._connecting:
            if self._connection is None or self._connection.is_closed():
                hook: Any = SSHHookAsync(ssh_conn_id=self._ssh_conn_id)
                await sync_to_async(_read_extra)(hook)
                # The SSH provider before 6 has no public name for it.
                connect = hook.get_conn if "get_conn" in vars(SSHHookAsync) else hook._get_conn
                self._connection = await connect()
            return self._connection

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _read_extra(hook: Any) -> None:
    """Have the SSH provider's hook read the connection's extra now, in a thread, and not in the event loop.

    There Airflow would tell its supervisor by a synchronous call what is to be hidden from the logs. That
    fails on Airflow 3.0, and may fail where other calls are under way (apache/airflow 50185, 66412).
    """
    connection = hook.get_connection(hook.ssh_conn_id)
    if connection.extra is not None:
        hook._parse_extras(connection)
    hook._parse_extras = lambda connection: None


class _Batch(Generic[W, T]):
    """Gathers what several want from a host, and asks for it once.

    :param ask: asks for all that is wanted, and returns the answers.
    """

    def __init__(self, ask: Callable[[Sequence[W]], Awaitable[Mapping[W, T]]]) -> None:
        self._ask = ask
        self._waiting: list[tuple[W, asyncio.Future[T]]] = []
        self._task: asyncio.Task[None] | None = None

    async def get(self, wanted: W) -> T:
        """Return what is wanted, which others may want as well.

        :raises Exception: what asking for all of it has raised.
        """
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, answer))
        if self._task is None:
            self._task = asyncio.create_task(self._answer())
        return await answer

    async def _answer(self) -> None:
        await asyncio.sleep(_GATHER)
        waiting, self._waiting, self._task = self._waiting, [], None
        waiting = [(wanted, answer) for wanted, answer in waiting if not answer.done()]
        try:
            answers = await self._ask(list(dict.fromkeys(wanted for wanted, _ in waiting)))
        except Exception as error:
            for _, answer in waiting:
                if not answer.done():
                    answer.set_exception(error)
            return
        except BaseException:
            for _, answer in waiting:
                answer.cancel()
            raise
        for wanted, answer in waiting:
            if not answer.done():
                answer.set_result(answers[wanted])


class AsyncHost:
    """A host, as all triggers of an event loop use it; an asynchronous context manager, which counts them.

    :param ssh_conn_id: id of an Airflow connection of type SSH; None: this machine.
    """

    def __init__(self, ssh_conn_id: str | None) -> None:
        self.name = ssh_conn_id or "this machine"
        self.users = 0
        self._way = _ThisMachine() if ssh_conn_id is None else _Ssh(ssh_conn_id)
        self._sessions = asyncio.Semaphore(SESSIONS)
        self._looks: dict[str, _Batch[tuple[Job, int], tuple[JobSeen, bytes]]] = {}
        self._recalls = _Batch(self._recall_all)
        self._logged: dict[str, int] = {}
        self._keeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> AsyncHost:
        self.users += 1
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._keep()
        self.users -= 1
        if not self.users:
            await self._way.close()

    async def run(self, command: Command[T]) -> T:
        """Run a command, and return what its answer means.

        :raises HostNotReached: there was no answer, or it says "not now".
        :raises HostRefused: the answer says no.
        """
        async with self._sessions:
            try:
                code, output, errors = await wait_for(self._way.run(command), command.timeout)
            except (HostNotReached, ImportError):
                raise
            except asyncio.TimeoutError:
                raise HostNotReached(f"no answer within {command.timeout:g} s") from None
            except Exception as error:  # of asyncssh, of Airflow's connections, of the system
                raise HostNotReached(excerpt(error) or type(error).__name__) from None
        return command.understand(code, output, errors)

    async def look(self, launcher: str, job: Job, known: int) -> tuple[JobSeen, bytes]:
        """Look at a job together with all others, and read its output from there on.

        :param launcher: name of its launcher.
        :param known: how many bytes were read before.
        :raises HostNotReached, HostRefused: see :meth:`run`.
        """
        batch = self._looks.get(launcher)
        if batch is None:
            batch = self._looks[launcher] = _Batch(functools.partial(self._look_at_all, launcher))
        return await batch.get((job, known))

    async def _look_at_all(
        self, launcher: str, wanted: Sequence[tuple[Job, int]]
    ) -> dict[tuple[Job, int], tuple[JobSeen, bytes]]:
        seen = await self.run(find_launcher(launcher).look([job for job, _ in wanted]))
        written = await self.run(files.read_output({job.folder: known for job, known in wanted}))
        return {(job, known): (seen[job], written.get(job.folder, b"")) for job, known in wanted}

    async def recall(self, job: Job) -> int:
        """Return how many bytes of a job's output are in the task's log, asking together with all others.

        :raises HostNotReached, HostRefused: see :meth:`run`.
        """
        return await self._recalls.get(job.folder)

    async def _recall_all(self, folders: Sequence[str]) -> dict[str, int]:
        return await self.run(files.read_logged(folders))

    def keep_logged(self, job: Job, known: int) -> None:
        """Have kept soon how much of a job's output is in the task's log."""
        self._logged[job.folder] = known
        if self._keeping is None:
            self._keeping = asyncio.create_task(self._keep_soon())

    async def _keep_soon(self) -> None:
        await asyncio.sleep(_SOON)
        self._keeping = None
        await self._keep()

    async def _keep(self) -> None:
        logged, self._logged = self._logged, {}
        if logged:
            with contextlib.suppress(HostNotReached, HostRefused):
                await self.run(files.keep_logged(logged))


_HOSTS: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str | None, AsyncHost]] = WeakKeyDictionary()


@contextlib.asynccontextmanager
async def host_of(ssh_conn_id: str | None) -> AsyncIterator[AsyncHost]:
    """Give the host, which is shared with all others who use it in this event loop.

    :param ssh_conn_id: id of an Airflow connection of type SSH; None: this machine.
    """
    hosts = _HOSTS.setdefault(asyncio.get_running_loop(), {})
    host = hosts.get(ssh_conn_id)
    if host is None:
        host = hosts[ssh_conn_id] = AsyncHost(ssh_conn_id)
    try:
        async with host:
            yield host
    finally:
        if not host.users and hosts.get(ssh_conn_id) is host:
            del hosts[ssh_conn_id]

"""An Airflow connection becomes a Jobmon client. The only place that reads connections.

Importing this module loads neither requests nor aiohttp, nor the parts of the client that only a running task
needs: they are imported by the method that needs them, so that parsing a DAG file stays free of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

from airflow_jobmon_provider.client.cancellation import wait_for
from airflow_jobmon_provider.client.exceptions import JobmonError, ServerChanged, ServerFailure
from airflow_jobmon_provider.client.lifecycle import RunStatus
from airflow_jobmon_provider.client.redaction import excerpt
from airflow_jobmon_provider.client.validation import positive_id

if TYPE_CHECKING:
    from airflow_jobmon_provider.client.async_requester import AsyncRequester
    from airflow_jobmon_provider.client.conversations import Conversation, Log
    from airflow_jobmon_provider.client.protocol import Call, WorkflowDetails
    from airflow_jobmon_provider.client.requester import Requester
    from airflow_jobmon_provider.client.settings import Settings
    from airflow_jobmon_provider.client.workflow_run import WorkflowRunFactory
    from airflow_jobmon_provider.hooks.connection import JobmonServer

__all__ = ["JobmonHook"]

T = TypeVar("T")
logger = logging.getLogger(__name__)

_READ_AGAIN_AFTER = 30.0  # seconds
_READING_TIMEOUT = 60.0  # seconds; Airflow's own client gives its API that long for a few tries
_LOOK_TIMEOUT = 5.0  # seconds that a look at the connection may delay a request in an outage

_TRANSPORT = ("client.async_renewing", "RenewingAsyncRequester")


class _Readings:
    """The readings of one connection by all hooks of an event loop: at most one is under way at a time."""

    def __init__(self) -> None:
        self._started = 0.0
        self._task: asyncio.Task[JobmonServer] | None = None
        self._turns = asyncio.Lock()

    async def latest(
        self, read: Callable[[], Coroutine[Any, Any, JobmonServer]], *, max_age: float
    ) -> JobmonServer:
        """Return what a reading found that is not too old.

        A failure counts for those who waited for it and for nobody after them, as it may be over; so does a
        connection that was not found.

        :param read: reads the connection.
        :param max_age: seconds since a reading began. 0: only what is read from now on.
        :raises RuntimeError: the reading took too long, or was ended by Airflow.
        :raises Exception: what the reading raised.
        """
        clock = asyncio.get_running_loop().time
        asked = clock()
        while (task := self._task) is None or not self._counts(task, asked, max_age):
            if task is not None and not task.done() and clock() - self._started < _READING_TIMEOUT:
                await asyncio.wait({task}, timeout=_READING_TIMEOUT)
                continue
            self._started = clock()
            task = self._task = asyncio.create_task(read())
            break
        if not task.done():
            # Not awaited itself: who is cancelled here does not take the others' reading with it.
            await asyncio.wait({task}, timeout=_READING_TIMEOUT)
            # Thousands of triggers may have waited. Side by side, each of their steps would block the loop.
            async with self._turns:
                await asyncio.sleep(0)
        if not task.done() or task.cancelled():
            raise RuntimeError(f"Airflow gave no answer within {_READING_TIMEOUT:g} s")
        return task.result()

    def _counts(self, task: asyncio.Task[JobmonServer], asked: float, max_age: float) -> bool:
        if not task.done():
            max_age = min(max_age, _READING_TIMEOUT)
        elif task.cancelled() or task.exception() or task.result().stands_in:
            max_age = 0.0
        return self._started >= asked - max_age


async def _imported(module: str, *names: str) -> Any:
    """Return what a module defines, which is imported without blocking the event loop.

    :param module: its path below the package.
    :param names: of what it defines, last defined last.
    """
    path = f"airflow_jobmon_provider.{module}"
    # While another thread is importing it, the module is there, and what is in it is not.
    if not hasattr(sys.modules.get(path), names[-1]):
        # The first import of aiohttp takes hundreds of milliseconds, which are not the event loop's.
        await asyncio.to_thread(importlib.import_module, path)
    found = [getattr(sys.modules[path], name) for name in names]
    return found if len(found) > 1 else found[0]


_readings: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Readings]] = WeakKeyDictionary()


class JobmonHook(BaseHook):
    """Talks to the Jobmon server of an Airflow connection.

    Where ``jobmon_default`` is not defined, Jobmon's own settings (``JOBMON__HTTP__SERVICE_URL``, …) stand in
    for it if they name a server; for no other connection.

    When the server refuses the credentials (401, 403), the connection is read again, and a token that was
    rotated in the meantime is used from then on.

    :param jobmon_conn_id: id of the connection. Default ``jobmon_default``.
    """

    conn_name_attr = "jobmon_conn_id"
    default_conn_name = "jobmon_default"
    conn_type = "jobmon"
    hook_name = "Jobmon"

    def __init__(self, jobmon_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.jobmon_conn_id = jobmon_conn_id
        self._server: JobmonServer | None = None
        self._requester: Requester | None = None
        self._has_been_reached = False

    @property
    def server(self) -> JobmonServer:
        """What the connection says, read once. Blocking: not for an event loop.

        :raises AirflowNotFoundException: no such connection, and nothing stands in for it.
        :raises ConfigError: the connection is malformed.
        """
        if self._server is None:
            self._server = self._read()
        return self._server

    def _read(self) -> JobmonServer:
        from airflow_jobmon_provider.hooks.connection import server_of_connection, server_without_connection

        connection = None
        with contextlib.suppress(AirflowNotFoundException):
            connection = self.get_connection(self.jobmon_conn_id)
        # Not while Airflow's error is being handled: the task log would show both, one after the other.
        if connection is None:
            return server_without_connection(self.jobmon_conn_id, self.default_conn_name)
        # Airflow's accessor hides what the extra holds from every log. It takes broken JSON for {}.
        _ = connection.extra_dejson
        return server_of_connection(connection)

    async def aserver(self) -> JobmonServer:
        """Return what the connection says, without blocking the event loop.

        It is read once for all hooks of an event loop that ask within half a minute: each reading goes
        through the triggerer's supervisor to Airflow's API server, and after a failover thousands of triggers
        ask at the same moment.

        :raises AirflowNotFoundException: no such connection, and nothing stands in for it. Airflow 3 says so,
            too, while its API, its database or the secrets backend fails.
        :raises ConfigError: the connection is malformed.
        """
        if self._server is None:
            self._server = await self._shared_readings.latest(self._aread, max_age=_READ_AGAIN_AFTER)
        return self._server

    @property
    def _shared_readings(self) -> _Readings:
        of_this_loop = _readings.setdefault(asyncio.get_running_loop(), {})
        return of_this_loop.setdefault(self.jobmon_conn_id, _Readings())

    async def _aread(self) -> JobmonServer:
        from airflow.providers.common.compat.connection import get_async_connection
        from airflow.providers.common.compat.sdk import Connection

        # Once for all triggers that wait for this reading, as each of them needs the transport next.
        await _imported(*_TRANSPORT)
        names = ("server_without_connection", "server_of_connection")
        server_without_connection, server_of_connection = await _imported("hooks.connection", *names)
        # Before Airflow 3.3.2 the asynchronous accessors told the supervisor by a synchronous call what is to
        # be hidden from the logs, which locks the event loop up (apache/airflow 50185, 66412). Only a thread
        # of asgiref's finds its way back to the loop of a triggerer of those versions.
        if not hasattr(Connection, "aextra_dejson"):
            from asgiref.sync import sync_to_async

            return await sync_to_async(self._read)()
        connection = None
        with contextlib.suppress(AirflowNotFoundException):  # as in `_read`
            connection = await get_async_connection(self.jobmon_conn_id)
        if connection is None:
            return await asyncio.to_thread(
                server_without_connection, self.jobmon_conn_id, self.default_conn_name
            )
        await connection.aextra_dejson()  # as in `_read`
        return await asyncio.to_thread(server_of_connection, connection)

    def check_server(self, server: str | None) -> None:
        """Check that the connection names the server on which an id lives that was kept from earlier.

        An id means another run on another server. Does no I/O once the connection has been read.

        :param server: address of that server (``Settings.service_url``); None: not known, nothing to check.
        :raises ConfigError: it names another one.
        :raises AirflowNotFoundException: the connection was not found, at least for the moment, and what
            stands in for it names another one. The next call reads it again.
        """
        if server is not None:
            self._check_same(server, self.server)
            self._has_been_reached = True  # or there would be no id
            if self._requester is not None:
                self._requester.has_been_reached = True

    def _check_same(self, before: str, now: JobmonServer) -> None:
        from airflow_jobmon_provider.client.settings import same_server

        address = now.settings.service_url
        if same_server(before, address):
            return
        self._server = None
        if now.stands_in:
            raise AirflowNotFoundException(
                f"connection {self.jobmon_conn_id!r} is not found, and Jobmon's own settings name another"
                f" server ({address}) than the one that the task began on ({excerpt(before)})"
            )
        raise ServerChanged(
            f"connection {self.jobmon_conn_id!r} now names the server {address}, but the task began on"
            f" {excerpt(before)}, where the same id belongs to another run, so nothing was sent. Give the"
            " connection its old address back, or start the task over where it now points, in a new DAG run"
        )

    def get_conn(self) -> Requester:
        """Return the blocking transport, the same one at each call.

        :raises AirflowNotFoundException: no such connection, and nothing stands in for it.
        :raises ConfigError: the connection is malformed.
        """
        if self._requester is None:
            from airflow_jobmon_provider.client.renewing import RenewingRequester

            self._requester = RenewingRequester(self.server.settings, self._renew)
            self._requester.has_been_reached = self._has_been_reached
        return self._requester

    async def get_async_conn(self) -> AsyncRequester:
        """Return a new asyncio transport, to be used as an asynchronous context manager.

        :raises AirflowNotFoundException: no such connection, and nothing stands in for it.
        :raises ConfigError: the connection is malformed.
        """
        server = await self.aserver()
        make = await _imported(*_TRANSPORT)
        requester: AsyncRequester = make(server.settings, self._arenew)
        return requester

    def _renew(self, used: Settings) -> Settings | None:
        """Read the connection anew for a transport whose settings were refused; see ``RenewingRequester``."""
        try:
            return self._changed(used, self._read())
        except JobmonError:
            raise
        except Exception as error:
            raise self._unread(error) from None

    async def _arenew(self, used: Settings, *, refused: bool) -> Settings | None:
        """Read the connection anew; see ``async_renewing.Renew``."""
        max_age, patience = (0.0, _READING_TIMEOUT) if refused else (_READ_AGAIN_AFTER, _LOOK_TIMEOUT)
        reading = self._shared_readings.latest(self._aread, max_age=max_age)
        try:
            return self._changed(used, await wait_for(reading, patience))
        except JobmonError:
            raise
        except Exception as error:
            raise self._unread(error) from None

    def _changed(self, used: Settings, now: JobmonServer) -> Settings | None:
        """Return the settings as they are now if they differ from those used, and are of the same server."""
        self._check_same(used.service_url, now)
        if now.stands_in and self._server is not None and not self._server.stands_in:
            raise AirflowNotFoundException(f"connection {self.jobmon_conn_id!r} is not found")
        self._server = now
        if now.settings == used:
            return None
        self.log.info("Connection %s has changed, and is used as it is now", self.jobmon_conn_id)
        return now.settings

    def _unread(self, error: Exception) -> ServerFailure:
        reason = excerpt(error) or type(error).__name__
        return ServerFailure(
            f"Jobmon does not take the credentials of connection {self.jobmon_conn_id!r}, and the connection"
            f" cannot be read again for now: {reason}",
            processed=False,
        )

    def find_workflow(
        self,
        *,
        workflow_name: str | None = None,
        tool_name: str | None = None,
        workflow_args: str | float | None = None,
        workflow_attributes: Mapping[str, str | float] | None = None,
    ) -> int:
        """Return the id of the one workflow that has all that is given.

        A workflow is found once a run of it was made and if it has tasks. It costs the server time in
        proportion to the tasks of all workflows that have it, so give enough to leave one.

        :param workflow_name: its name. Default: any.
        :param tool_name: name of the tool that it is of. Default: any.
        :param workflow_args: its arguments. Default: any.
        :param workflow_attributes: some of its attributes, by name. Default: any.
        :raises WorkflowNotFound: none has.
        :raises WorkflowAmbiguous: more than one has; the line lists the five newest.
        :raises JobmonError: the server did not answer, or not as Jobmon does.
        :raises ValueError: nothing is given, or an empty text.
        """
        from airflow_jobmon_provider.client.conversations import Retries, find_workflow
        from airflow_jobmon_provider.client.workflow_query import WorkflowQuery

        query = WorkflowQuery.of(workflow_name, tool_name, workflow_args, workflow_attributes)
        settings = self.server.settings
        retries = Retries(settings.retries_timeout, settings.retries_attempts)
        return self.converse(find_workflow(query, retries, time.monotonic), log=self.log)

    def get_workflow_run_factory(
        self, workflow_id: int | str | None = None, **named: Any
    ) -> WorkflowRunFactory:
        """Return the client's factory for a workflow, on this hook's transport.

        :param workflow_id: the workflow. Default: the one that is named.
        :param named: what it is called, see :meth:`find_workflow`.
        :raises JobmonError: see :meth:`find_workflow`.
        :raises ValueError: the id is no positive integer, or the workflow is both numbered and named.
        """
        from airflow_jobmon_provider.client.workflow_run import WorkflowRunFactory

        return WorkflowRunFactory(self._workflow_id(workflow_id, named), self.get_conn())

    def get_workflow_details(
        self, workflow_id: int | str | None = None, **named: Any
    ) -> WorkflowDetails | None:
        """Return status and name of a workflow; None where none of its runs was ever made, or it is unknown.

        :param workflow_id: the workflow. Default: the one that is named.
        :param named: what it is called, see :meth:`find_workflow`.
        :raises JobmonError: the server did not answer, or not as Jobmon does; see also :meth:`find_workflow`.
        :raises ValueError: the id is no positive integer, or the workflow is both numbered and named.
        """
        from airflow_jobmon_provider.client.protocol import routes

        return self.ask(routes.workflow_details(self._workflow_id(workflow_id, named)))

    def _workflow_id(self, workflow_id: int | str | None, named: Mapping[str, Any]) -> int:
        from airflow_jobmon_provider.client.workflow_query import check_one_way

        check_one_way(workflow_id, named)
        if workflow_id is None:
            return self.find_workflow(**named)
        return positive_id("workflow_id", workflow_id)

    def abort_workflow_run(self, workflow_run_id: int | str) -> RunStatus:
        """Abort a run that no executor has taken, so that nobody waits for one any longer.

        :param workflow_run_id: the run.
        :returns: the status that it has now; other than ABORTED, an executor had it, and it is left alone.
        :raises JobmonError: the server did not answer, or there is no such run.
        :raises ValueError: the id is no positive integer.
        """
        from airflow_jobmon_provider.client.conversations import abort

        run = positive_id("workflow_run_id", workflow_run_id)
        status = self.ask(abort(run))
        self.log.info("workflow run %d is %s: %s", run, status, status.meaning)
        return status

    def ask(self, call: Call[T], *, tenacious: bool = True) -> T:
        """Send a call of the protocol and return what its reply says.

        :param tenacious: retry what is worth a retry, as the connection says. Default True.
        :raises JobmonError: the server did not answer, or says no.
        """
        from airflow_jobmon_provider.client.requester import ask

        return ask(self.get_conn(), call, tenacious=tenacious)

    def converse(
        self, conversation: Conversation[T], *, log: Log, sleep: Callable[[float], None] = time.sleep
    ) -> T:
        """Carry a conversation of the client to its end, blocking, and return its result.

        :param log: where its notes go.
        :param sleep: waits so many seconds.
        :raises JobmonError: what the conversation raises.
        """
        from airflow_jobmon_provider.client.requester import converse

        return converse(self.get_conn(), conversation, log=log, sleep=sleep)

    def test_connection(self) -> tuple[bool, str]:
        """Ask the server whether it is healthy; for the button of Airflow's connection form.

        :returns: whether it is, and a line that says which Jobmon answered or what to change.
        """
        from airflow_jobmon_provider.hooks.checking import check

        try:
            return check(self.server, self.get_conn())
        except (JobmonError, AirflowNotFoundException) as error:
            return False, str(error)

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return labels and placeholders of the connection form, for Airflow before 3.2."""
        from airflow_jobmon_provider.hooks.fields import FORM_BEHAVIOUR

        return {key.replace("-", "_"): value for key, value in FORM_BEHAVIOUR.items()}

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the form's fields for the connection's extra, for Airflow before 3.2."""
        from wtforms import IntegerField, StringField
        from wtforms.validators import Optional

        from airflow_jobmon_provider.hooks.fields import form_fields

        # What is neither text nor an integer is typed as text; reading the extra converts it.
        return {
            name: {"integer": IntegerField}.get(spec["schema"]["type"][0], StringField)(
                spec["label"], validators=[Optional()], description=spec["description"]
            )
            for name, spec in form_fields().items()
        }

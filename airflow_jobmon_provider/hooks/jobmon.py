"""An Airflow connection becomes a Jobmon client. The only place that reads connections.

Importing this module loads neither requests nor aiohttp, nor the parts of the client that only a running task
needs: they are imported by the method that needs them, so that parsing a DAG file stays free of them.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

from airflow_jobmon_provider.client.exceptions import ConfigError, JobmonError, ServerChanged, ServerFailure
from airflow_jobmon_provider.client.heartbeat import Heartbeat
from airflow_jobmon_provider.client.lifecycle import RunStatus
from airflow_jobmon_provider.client.settings import (
    DEFAULT_REQUEST_TIMEOUT,
    DEFAULT_RETRIES_ATTEMPTS,
    DEFAULT_RETRIES_TIMEOUT,
    DEFAULT_ROUTE_PREFIX,
    Settings,
    basic_authorization,
    heartbeat_defaults,
    join_prefix,
    same_server,
    split_address,
)
from airflow_jobmon_provider.client.text import excerpt, shown
from airflow_jobmon_provider.client.validation import positive_id, seconds, whole

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

    from airflow_jobmon_provider.client.async_requester import AsyncRequester
    from airflow_jobmon_provider.client.conversations import Conversation, Log
    from airflow_jobmon_provider.client.protocol import Call, WorkflowDetails
    from airflow_jobmon_provider.client.requester import Requester
    from airflow_jobmon_provider.client.workflow_run import WorkflowRunFactory

T = TypeVar("T")
logger = logging.getLogger(__name__)

_READ_AGAIN_AFTER = 30.0  # seconds
_READING_TIMEOUT = 60.0  # seconds; Airflow's own client gives its API that long for a few tries
_LOOK_TIMEOUT = 5.0  # seconds that a look at the connection may delay a request in an outage


@dataclass(frozen=True)
class JobmonServer:
    """What a connection says about one Jobmon.

    :param settings: how to reach its server.
    :param gui_url: address of its GUI; None: not given.
    :param jobmon_python: path of the Python that has Jobmon's client, on the workers; None: not given.
    :param stands_in: no such connection was found, and Jobmon's own settings stand in for it.
    """

    settings: Settings
    gui_url: str | None = None
    jobmon_python: str | None = None
    stands_in: bool = False


class _Readings:
    """The readings of one connection by all hooks of an event loop: at most one is under way at a time."""

    def __init__(self) -> None:
        self._started = 0.0
        self._task: asyncio.Task[JobmonServer] | None = None

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
        # Not awaited itself: who is cancelled here does not take the others' reading with it.
        await asyncio.wait({task}, timeout=_READING_TIMEOUT)
        if not task.done() or task.cancelled():
            raise RuntimeError(f"Airflow gave no answer within {_READING_TIMEOUT:g} s")
        return task.result()

    def _counts(self, task: asyncio.Task[JobmonServer], asked: float, max_age: float) -> bool:
        if not task.done():
            max_age = min(max_age, _READING_TIMEOUT)
        elif task.cancelled() or task.exception() or task.result().stands_in:
            max_age = 0.0
        return self._started >= asked - max_age


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
        try:
            connection = self.get_connection(self.jobmon_conn_id)
        except AirflowNotFoundException:
            return _stand_in(self.jobmon_conn_id)
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

        # Before Airflow 3.3.2 the asynchronous accessors told the supervisor by a synchronous call what is to
        # be hidden from the logs, which locks the event loop up (apache/airflow 50185, 66412). Only a thread
        # of asgiref's finds its way back to the loop of a triggerer of those versions.
        if not hasattr(Connection, "aextra_dejson"):
            from asgiref.sync import sync_to_async

            return await sync_to_async(self._read)()
        try:
            connection = await get_async_connection(self.jobmon_conn_id)
        except AirflowNotFoundException:
            return await asyncio.to_thread(_stand_in, self.jobmon_conn_id)
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

    def _check_same(self, before: str, now: JobmonServer) -> None:
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
            f" {excerpt(before)}, and an id of that one is a stranger's here: nothing was sent. Give the"
            " connection its address back, or start the task over where it now points, in a new DAG run"
        )

    def get_conn(self) -> Requester:
        """Return the blocking transport, the same one at each call.

        :raises AirflowNotFoundException: no such connection, and nothing stands in for it.
        :raises ConfigError: the connection is malformed.
        """
        if self._requester is None:
            from airflow_jobmon_provider.client.renewing import RenewingRequester

            self._requester = RenewingRequester(self.server.settings, self._renew)
        return self._requester

    async def get_async_conn(self) -> AsyncRequester:
        """Return a new asyncio transport, to be used as an asynchronous context manager.

        :raises AirflowNotFoundException: no such connection, and nothing stands in for it.
        :raises ConfigError: the connection is malformed.
        """
        server = await self.aserver()
        name = "airflow_jobmon_provider.client.async_renewing"
        # While another thread is importing it, the module is there, and what is in it is not.
        make = getattr(sys.modules.get(name), "RenewingAsyncRequester", None)
        if make is None:
            # The first import of aiohttp takes hundreds of milliseconds, which are not the event loop's.
            make = (await asyncio.to_thread(importlib.import_module, name)).RenewingAsyncRequester
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
            return self._changed(used, await asyncio.wait_for(reading, patience))
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

    def get_workflow_run_factory(self, workflow_id: int | str) -> WorkflowRunFactory:
        """Return the client's factory for a workflow, on this hook's transport.

        :raises ValueError: the id is no positive integer.
        """
        from airflow_jobmon_provider.client.workflow_run import WorkflowRunFactory

        return WorkflowRunFactory(workflow_id, self.get_conn())

    def get_workflow_details(self, workflow_id: int) -> WorkflowDetails | None:
        """Return status and name of a workflow; None where none of its runs was ever made, or it is unknown.

        :raises JobmonError: the server did not answer, or not as Jobmon does.
        """
        from airflow_jobmon_provider.client import protocol

        return self.ask(protocol.workflow_details(workflow_id))

    def abort_workflow_run(self, workflow_run_id: int | str) -> RunStatus:
        """Abort a run that no executor has taken, so that nobody waits for one any longer.

        :param workflow_run_id: the run.
        :returns: the status that it has now; other than ABORTED, an executor had it, and it is left alone.
        :raises JobmonError: the server did not answer, or there is no such run.
        :raises ValueError: the id is no positive integer.
        """
        from airflow_jobmon_provider.client.ownership import abort

        run = positive_id("workflow_run_id", workflow_run_id)
        status = self.ask(abort(run))
        self.log.info("Workflow run %d is %s: %s", run, status, status.meaning)
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

        :returns: whether it is, and a line that says which Jobmon answered or what went wrong.
        """
        from airflow_jobmon_provider.client import protocol

        try:
            self.ask(protocol.health(), tenacious=False)
            version = self.ask(protocol.api_version(), tenacious=False)
            return True, f"Jobmon answers at {self.server.settings.service_url}, API {version}"
        except (JobmonError, AirflowNotFoundException) as error:
            return False, str(error)

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return labels and placeholders of the connection form, for Airflow before 3.3."""
        from airflow_jobmon_provider.get_provider_info import UI_FIELD_BEHAVIOUR

        return {key.replace("-", "_"): value for key, value in UI_FIELD_BEHAVIOUR.items()}

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the form's fields for the connection's extra, for Airflow before 3.3."""
        from wtforms import BooleanField, IntegerField, StringField
        from wtforms.validators import Optional

        from airflow_jobmon_provider.get_provider_info import CONNECTION_FIELDS

        # A field that may hold several types is typed as text; reading the extra converts it.
        kinds = {"integer": IntegerField, "boolean": BooleanField}
        return {
            name: kinds.get(spec["schema"]["type"][0], StringField)(
                spec["label"], validators=[Optional()], description=spec["description"]
            )
            for name, spec in CONNECTION_FIELDS.items()
        }


def _stand_in(conn_id: str) -> JobmonServer:
    """Return the server of Jobmon's own settings, in place of a connection that is not defined.

    :raises AirflowNotFoundException: it is not the default connection, or they name no server.
    """
    missing = f"connection {conn_id!r} is not defined"
    default = JobmonHook.default_conn_name
    if conn_id != default:
        raise AirflowNotFoundException(
            f"{missing}; Jobmon's own settings (JOBMON__HTTP__SERVICE_URL) stand in for {default!r} only"
        )
    try:
        settings = Settings.from_defaults()
    except ConfigError as error:
        raise AirflowNotFoundException(f"{missing}, and instead of it: {error}") from error
    for danger in settings.dangers:
        logger.warning("%s, and Jobmon's own server %s", missing, danger)
    return JobmonServer(settings, stands_in=True)


def server_of_connection(connection: Connection) -> JobmonServer:
    """Return what an Airflow connection says about a Jobmon server.

    :raises ConfigError: something in it is missing or wrong; the message names it, and no secret.
    """
    where = f"connection {connection.conn_id!r}"
    try:
        return _read(connection)
    except (ConfigError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from None


def _read(connection: Connection) -> JobmonServer:
    extra = _Extra(connection.extra)
    if unknown := extra.unknown():
        logger.warning("connection %r: nothing reads %s in its extra", connection.conn_id, unknown)
    headers = extra.headers()
    if connection.login:
        headers["Authorization"] = basic_authorization(connection.login, connection.password or "")
    elif connection.password:
        headers["Authorization"] = f"Bearer {connection.password}"
    default = heartbeat_defaults()
    attempts = extra.number("retries_attempts", DEFAULT_RETRIES_ATTEMPTS)
    settings = Settings(
        service_url=join_prefix(_address(connection), extra.text("route_prefix", DEFAULT_ROUTE_PREFIX) or ""),
        retries_timeout=extra.number("retries_timeout", DEFAULT_RETRIES_TIMEOUT),
        retries_attempts=whole("retries_attempts in the extra", attempts),
        request_timeout=extra.number("request_timeout", DEFAULT_REQUEST_TIMEOUT),
        headers=headers,
        verify=extra.verify(),
        client_cert=extra.file("client_cert"),
        client_key=extra.file("client_key"),
        heartbeat=Heartbeat(
            extra.number("workflow_run_heartbeat_interval", default.interval),
            extra.number("heartbeat_report_by_buffer", default.buffer),
        ),
    )
    if settings.client_key and not settings.client_cert:
        raise ConfigError("client_key in the extra is of no use without client_cert")
    for danger in settings.dangers:
        logger.warning("connection %r %s", connection.conn_id, danger)
    return JobmonServer(settings, extra.http_url("gui_url"), extra.text("jobmon_python", None) or None)


def _address(connection: Connection) -> str:
    host = (connection.host or "").strip()
    if not host:
        raise ConfigError("the host is missing: give Jobmon's host name or address")
    if "://" not in host:
        scheme = (connection.schema or "http").strip()
        if ":" in host and not host.startswith("[") and host.count(":") > 1:
            host = f"[{host}]"  # an IPv6 address
        host = f"{scheme}://{host}"
    url = split_address(host)
    if connection.port and ":" not in url.netloc.rpartition("@")[2].rpartition("]")[2]:
        url = url._replace(netloc=f"{url.netloc}:{connection.port}")
    return url.geturl()


class _Extra:
    """Reads the connection's extra, each value checked and named when it is wrong."""

    def __init__(self, extra: str | None) -> None:
        try:
            values = json.loads(extra) if extra else {}
        except (ValueError, RecursionError):
            raise ConfigError("the extra is not valid JSON") from None
        if not isinstance(values, dict):
            raise ConfigError("the extra must be a JSON object")
        # A form leaves what was not filled in as null or "".
        self._values = {key: value for key, value in values.items() if value is not None}

    def unknown(self) -> str:
        """Return the names that nothing reads: misspelt ones would be silently without effect."""
        from airflow_jobmon_provider.get_provider_info import CONNECTION_FIELDS

        return excerpt(", ".join(sorted(set(self._values) - set(CONNECTION_FIELDS))))

    def text(self, key: str, default: str | None) -> str | None:
        value = self._values.get(key, default)
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"{key} in the extra must be text, not {shown(value)}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self._values.get(key, "")
        if value == "":
            return default
        if isinstance(value, str):
            convert: Callable[[str], float] = int if value.strip().isdigit() else float
            try:
                value = convert(value)
            except ValueError:
                raise ConfigError(f"{key} in the extra must be a number, not {shown(value)}") from None
        return seconds(f"{key} in the extra", value)

    def verify(self) -> bool | str:
        value = self._values.get("verify", True)
        if isinstance(value, str):
            value = {"true": True, "false": False, "": True}.get(value.strip().lower(), value)
        if isinstance(value, str) and not os.path.isfile(value):
            raise ConfigError(f"verify in the extra names a CA bundle that does not exist: {shown(value)}")
        if not isinstance(value, (bool, str)):
            raise ConfigError(f"verify in the extra must be true, false or a path, not {shown(value)}")
        return value

    def file(self, key: str) -> str | None:
        value = self.text(key, None) or None
        if value is not None and not os.path.isfile(value):
            raise ConfigError(f"{key} in the extra names a file that does not exist: {shown(value)}")
        return value

    def headers(self) -> dict[str, str]:
        value = self._values.get("headers") or {}
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                value = None
        if not isinstance(value, dict) or not all(
            isinstance(k, str) and isinstance(v, str) and (k + v).isprintable() for k, v in value.items()
        ):  # its values may be secrets, so they are not shown
            raise ConfigError("headers in the extra must be a JSON object of one-line texts")
        return dict(value)

    def http_url(self, key: str) -> str | None:
        value = self.text(key, None)
        if not value:
            return None
        try:
            url = split_address(value.strip())
        except ConfigError:
            url = None
        if url is None or "@" in url.netloc:
            raise ConfigError(f"{key} in the extra must be an http or https address without credentials")
        return url.geturl().rstrip("/")

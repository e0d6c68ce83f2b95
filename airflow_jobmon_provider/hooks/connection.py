"""What a connection of Airflow's says about a Jobmon, each value checked and named when it is wrong."""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowNotFoundException

from airflow_jobmon_provider.client.exceptions import ConfigError
from airflow_jobmon_provider.client.heartbeat import Heartbeat
from airflow_jobmon_provider.client.redaction import excerpt, shown
from airflow_jobmon_provider.client.settings import (
    DEFAULT_ROUTE_PREFIX,
    Settings,
    basic_authorization,
    heartbeat_defaults,
    join_prefix,
    split_address,
)
from airflow_jobmon_provider.client.validation import number, whole
from airflow_jobmon_provider.hooks.address import address_of
from airflow_jobmon_provider.hooks.fields import EXTRA, LARGEST_NUMBER, Kind

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

logger = logging.getLogger(__name__)

_ENDS_IN_PREFIX = re.compile(r"/api/v\d+/?$")


@dataclass(frozen=True)
class JobmonServer:
    """What a connection says about one Jobmon.

    :param settings: how to reach its server.
    :param gui_url: address of its GUI; None: not given.
    :param jobmon_python: path of the Python that has Jobmon's client, on the workers; None: not given.
    :param stands_in: no such connection was found, and Jobmon's own settings stand in for it.
    :param route_prefix: what of its address is the route prefix, such as ``/api/v3``; None: not known.
    :param unread: a line about the names in the extra that nothing reads; "": there is none.
    """

    settings: Settings
    gui_url: str | None = None
    jobmon_python: str | None = None
    stands_in: bool = False
    route_prefix: str | None = None
    unread: str = ""


def server_without_connection(conn_id: str, default: str) -> JobmonServer:
    """Return the server of Jobmon's own settings, in place of a connection that is not defined.

    :param conn_id: id of the connection.
    :param default: the only id for which they stand in.
    :raises AirflowNotFoundException: it is not the default connection, or they name no server.
    """
    missing = f"connection {conn_id!r} is not defined"
    if conn_id != default:
        raise AirflowNotFoundException(
            f"{missing}; Jobmon's own settings (JOBMON__HTTP__SERVICE_URL) stand in for {default!r} only"
        )
    try:
        settings = Settings.from_defaults()
    except ConfigError as error:
        raise AirflowNotFoundException(f"{missing}, and instead of it: {error}") from None
    for danger in settings.dangers:
        logger.warning("%s, and Jobmon's own server %s", missing, danger)
    return JobmonServer(settings, stands_in=True)


def _extra_of(connection: Connection) -> dict[str, Any]:
    """Return what the extra holds, as it stands there.

    :raises ConfigError: the extra cannot be read.
    """
    try:
        values = json.loads(connection.extra) if connection.extra else {}
    except (ValueError, RecursionError):
        raise ConfigError("the extra is not valid JSON") from None
    if not isinstance(values, dict):
        raise ConfigError("the extra must be a JSON object")
    return {name: value for name, value in values.items() if value is not None}


def _fields_of(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the extra that are given, each checked.

    :raises ConfigError: a value is wrong; the message names it.
    """
    given = {name: values[name] for name in EXTRA if name in values}
    # A form leaves what was not filled in as null or "". An empty text means something: no route prefix.
    return {
        name: _READERS[EXTRA[name].kind](f"{name} in the extra", value)
        for name, value in given.items()
        if value != "" or EXTRA[name].kind is Kind.TEXT
    }


def _unread(values: dict[str, Any]) -> str:
    """Return a line about the names in the extra that nothing reads; "": there is none.

    A misspelt name would be without effect, and nobody would know.
    """
    unknown = sorted(set(values) - set(EXTRA))
    if not unknown:
        return ""
    meant = [name for each in unknown for name in difflib.get_close_matches(each, EXTRA, 1)]
    hint = f"; did you mean {' and '.join(meant)}?" if meant else ""
    return f"nothing reads {excerpt(', '.join(map(repr, unknown)))} in the extra{hint}"


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ConfigError(f"{name} must be one line of text, not {shown(value)}")
    return value


def _file(name: str, value: Any) -> str:
    path = _text(name, value)
    if not os.path.isfile(path):
        raise ConfigError(f"{name} names a file that does not exist: {shown(path)}")
    return path


def _number(name: str, value: Any) -> float:
    if isinstance(value, str):
        convert: Callable[[str], float] = int if value.strip().isdigit() else float
        try:
            value = convert(value)
        except ValueError:
            raise ConfigError(f"{name} must be a number, not {shown(value)}") from None
    if number(name, value) > LARGEST_NUMBER:
        raise ConfigError(f"{name} must be at most {LARGEST_NUMBER}, not {shown(value)}")
    return value  # type: ignore[no-any-return]


def _integer(name: str, value: Any) -> int:
    return whole(name, _number(name, value))


def _check_or_file(name: str, value: Any) -> bool | str:
    if isinstance(value, str):
        value = {"true": True, "false": False, "": True}.get(value.strip().lower(), value)
    if isinstance(value, bool) or (isinstance(value, str) and os.path.isfile(value)):
        return value
    if isinstance(value, str) and os.sep in value:
        raise ConfigError(f"{name} names a CA bundle that does not exist: {shown(value)}")
    raise ConfigError(f"{name} must be true, false or the path of a CA bundle, not {shown(value)}")


def _headers(name: str, value: Any) -> dict[str, str]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, dict) or not all(
        isinstance(k, str) and isinstance(v, str) and (k + v).isprintable() for k, v in value.items()
    ):  # its values may be secrets, so they are not shown
        raise ConfigError(f"{name} must be a JSON object of one-line texts")
    return dict(value)


def _http_url(name: str, value: Any) -> str:
    try:
        url = split_address(_text(name, value).strip())
    except ConfigError:
        url = None
    if url is None or "@" in url.netloc:
        raise ConfigError(f"{name} must be an http or https address without credentials")
    return url.geturl().rstrip("/")


_READERS: dict[Kind, Callable[[str, Any], Any]] = {
    Kind.TEXT: _text,
    Kind.FILE: _file,
    Kind.ADDRESS: _http_url,
    Kind.NUMBER: _number,
    Kind.INTEGER: _integer,
    Kind.CHECK_OR_FILE: _check_or_file,
    Kind.HEADERS: _headers,
}


def _read(connection: Connection) -> JobmonServer:
    values = _extra_of(connection)
    if unread := _unread(values):
        logger.warning("connection %r: %s", connection.conn_id, unread)
    extra = _fields_of(values)
    headers = _headers_of(connection, extra.pop("headers", {}))
    gui_url, jobmon_python = extra.pop("gui_url", None), extra.pop("jobmon_python", None)
    address, default = address_of(connection), heartbeat_defaults()
    eases = "workflow_run_heartbeat_interval" not in extra
    # An address may end in the prefix already.
    prefix = extra.pop("route_prefix", "" if _ENDS_IN_PREFIX.search(address) else DEFAULT_ROUTE_PREFIX)
    service_url = join_prefix(address, prefix)
    settings = Settings(
        service_url=service_url,
        headers=headers,
        heartbeat=Heartbeat(
            extra.pop("workflow_run_heartbeat_interval", default.interval),
            extra.pop("heartbeat_report_by_buffer", default.buffer),
            eases,
        ),
        **extra,
    )
    if settings.client_key and not settings.client_cert:
        raise ConfigError("client_key in the extra is of no use without client_cert")
    for danger in settings.dangers:
        logger.warning("connection %r %s", connection.conn_id, danger)
    prefix = service_url.removeprefix(address.rstrip("/"))
    return JobmonServer(settings, gui_url, jobmon_python or None, route_prefix=prefix, unread=unread)


def _headers_of(connection: Connection, headers: dict[str, str]) -> dict[str, str]:
    """Return what is sent with every request: the headers of the extra, and login and password."""
    if not (connection.login or connection.password):
        return headers
    if "authorization" in map(str.lower, headers):
        raise ConfigError(
            "login and password, and headers in the extra, both say Authorization: leave one of them out"
        )
    if connection.login:
        authorization = basic_authorization(connection.login, connection.password or "")
    else:
        authorization = f"Bearer {connection.password}"
    return {**headers, "Authorization": authorization}


def server_of_connection(connection: Connection) -> JobmonServer:
    """Return what an Airflow connection says about a Jobmon server.

    :raises ConfigError: something in it is missing or wrong; the message names it, and no secret.
    """
    where = f"connection {connection.conn_id!r}"
    try:
        return _read(connection)
    except (ConfigError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from None

"""What a connection of Airflow's says about a Jobmon, each value checked and named when it is wrong."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import AirflowNotFoundException

from airflow_jobmon_provider.client.exceptions import ConfigError
from airflow_jobmon_provider.client.heartbeat import Heartbeat
from airflow_jobmon_provider.client.settings import (
    DEFAULT_REQUEST_TIMEOUT,
    DEFAULT_RETRIES_ATTEMPTS,
    DEFAULT_RETRIES_TIMEOUT,
    DEFAULT_ROUTE_PREFIX,
    Settings,
    basic_authorization,
    heartbeat_defaults,
    join_prefix,
    split_address,
)
from airflow_jobmon_provider.client.text import excerpt, shown
from airflow_jobmon_provider.client.validation import seconds, whole

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

logger = logging.getLogger(__name__)


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

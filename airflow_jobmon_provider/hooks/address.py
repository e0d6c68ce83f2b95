"""The address of a server, from what a connection's host, schema, port and type say about it.

Airflow takes a URI apart in its own way, and each of these is what a user may write:

==================================  ==================  ============  =========  =================
as a URI                            type                host          schema     means
==================================  ==================  ============  =========  =================
``jobmon://h:8070``                 ``jobmon``          ``h``         ``""``     ``http://h:8070``
``jobmon://h:8070/https``           ``jobmon``          ``h``         ``https``  ``https://h:8070``
``jobmon://https://h/base``         ``jobmon``          ``https://h`` ``base``   ``https://h/base``
``jobmon+https://h/base``           ``jobmon+https``    ``h``         ``base``   ``https://h/base``
``https://h/base``                  ``https``           ``h``         ``base``   ``https://h/base``
==================================  ==================  ============  =========  =================

So a schema that is no scheme is a path where something else says which scheme it is. What contradicts itself
is refused: nothing is lost silently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import SplitResult

from airflow_jobmon_provider.client.exceptions import ConfigError
from airflow_jobmon_provider.client.redaction import shown
from airflow_jobmon_provider.client.settings import split_address

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

_SCHEMES = ("http", "https")

_LEAVE_ONE_OUT = "leave one of them out"


def address_of(connection: Connection) -> str:
    """Return the address that a connection means, without a route prefix.

    :raises ConfigError: it is missing, malformed or contradicts itself. The message shows no value that may
        be a part of a password which was not quoted.
    """
    host = (connection.host or "").strip()
    if not host:
        raise ConfigError("the host is missing: give Jobmon's host name or address")
    scheme, separator, rest = host.partition("://") if "://" in host else ("", "", host)
    if separator and scheme.lower() not in _SCHEMES:
        split_address(host)  # refuses it, and shows nothing that may be a password
    schema = (connection.schema or "").strip()
    said = _schemes(connection.conn_type or "", schema, scheme.lower())
    if len(set(said.values())) > 1:
        both = " and ".join(f"the {where} says {shown(what)}" for where, what in said.items())
        raise ConfigError(f"{both}: {_LEAVE_ONE_OUT}")
    if not separator and rest.count(":") > 1 and not rest.startswith("["):
        rest = f"[{rest}]"  # an IPv6 address
    url = split_address(f"{next(iter(said.values()), 'http')}://{rest}")
    if url.username is not None and (connection.login or connection.password):
        raise ConfigError(f"the host has a login in it, and the connection has one, too: {_LEAVE_ONE_OUT}")
    if schema.lower() not in _SCHEMES:
        url = _with_path(url, schema, is_a_path=bool(said))
    return _with_port(url, connection.port or None).geturl()


def _schemes(conn_type: str, schema: str, of_host: str) -> dict[str, str]:
    """Return which scheme each of the connection's fields says that says one."""
    said = {"host": of_host} if of_host else {}
    if schema.lower() in _SCHEMES:
        said["schema"] = schema.lower()
    # Of type `http` are also Airflow's own connections, whose schema may be https.
    if "+" in conn_type or conn_type == "https" or (conn_type == "http" and not said):
        said["type"] = conn_type.rpartition("+")[2]
    return said


def _with_path(url: SplitResult, path: str, *, is_a_path: bool) -> SplitResult:
    """Return the address with a path of which Airflow has made the schema."""
    path = path.strip("/")
    if not path:
        return url
    if not is_a_path:
        raise ConfigError(
            "the schema must be http or https; a path belongs to the host, as in https://host/path"
        )
    if url.path.strip("/"):
        raise ConfigError(
            "the schema must be http or https, as the host has a path: put the whole path into the host"
        )
    return split_address(url._replace(path=f"/{path}").geturl())


def _with_port(url: SplitResult, port: object) -> SplitResult:
    """Return the address with the port of the connection; None: it has none."""
    if port is None:
        return url
    if not isinstance(port, int) or not 0 < port < 65536:
        raise ConfigError(f"the port must be a number from 1 to 65535, not {shown(port)}")
    if url.port not in (None, port):
        raise ConfigError(f"the host says port {url.port} and the port {port}: {_LEAVE_ONE_OUT}")
    return url if url.port else url._replace(netloc=f"{url.netloc.removesuffix(':')}:{port}")

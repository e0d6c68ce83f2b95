"""What the Test button of Airflow's connection form answers: which Jobmon is there, or what to change.

Where the server does not answer as Jobmon does, it is asked once more in the ways that the user may have
meant: under another route prefix, and with or without TLS.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import urlsplit

from airflow_jobmon_provider.client._http.environment import way_to
from airflow_jobmon_provider.client.conversations import Retries, check_age
from airflow_jobmon_provider.client.exceptions import (
    ConfigError,
    InvalidRequest,
    JobmonError,
    ServerUnreachable,
    UnreadableReply,
)
from airflow_jobmon_provider.client.protocol import routes
from airflow_jobmon_provider.client.requester import Requester, ask, converse
from airflow_jobmon_provider.client.settings import Settings, join_prefix
from airflow_jobmon_provider.hooks.connection import JobmonServer

_PREFIXES = ("/api/v3", "/api/v2", "")

_PATIENCE = 5.0
"""Seconds for each further request: the user waits for the answer."""

_OTHER_SCHEME = {
    "http": ("https", "the server speaks TLS on this port: set the schema to https"),
    "https": ("http", "the server speaks plain http on this port: set the schema to http"),
}
_PORTS = {"http": 80, "https": 443}


def check(server: JobmonServer, requester: Requester) -> tuple[bool, str]:
    """Ask a server whether it is a healthy Jobmon.

    :param server: what the connection says.
    :param requester: its transport.
    :returns: whether it is, and a line for the user, without secrets.
    """
    try:
        version = _version(requester)
        well, line = True, f"Jobmon answers at {server.settings.service_url}, API {version}"
    except JobmonError as error:
        better = next(_better(server, error), "")
        well, line = False, f"{server.settings.service_url}: {better}" if better else str(error)
    return well, f"{line}; {server.unread}" if server.unread else line


def _version(requester: Requester) -> str:
    """Return the version of the API of a healthy Jobmon that is not too old.

    :raises JobmonError: it is none.
    """
    ask(requester, routes.health(), tenacious=False)
    version = ask(requester, routes.api_version(), tenacious=False)
    converse(requester, check_age(version, Retries(timeout=0, attempts=1), time.monotonic))
    return version


def _better(server: JobmonServer, error: JobmonError) -> Iterator[str]:
    """Say what of the connection would be better otherwise, as was tried."""
    if isinstance(error, (InvalidRequest, UnreadableReply)):
        yield from _other_prefixes(server)
    if isinstance(error, ServerUnreachable) or server.settings.service_url.startswith("http:"):
        yield from _other_scheme(server.settings)


def _other_prefixes(server: JobmonServer) -> Iterator[str]:
    here = server.route_prefix
    if here is None:
        return
    address = server.settings.service_url.removesuffix(here)
    patience = min(server.settings.request_timeout, _PATIENCE)
    for prefix in _PREFIXES:
        there = join_prefix(address, prefix)
        settings = replace(server.settings, service_url=there, request_timeout=patience)
        if prefix != here and _is_jobmon(settings):
            value = prefix or '"" (an empty text)'
            yield f"Jobmon does not answer {_under(here)}, but {_under(prefix)}: set route_prefix to {value}"


def _under(prefix: str) -> str:
    return f"under {prefix}" if prefix else "without a route prefix"


def _is_jobmon(settings: Settings) -> bool:
    requester = Requester.from_settings(settings)
    try:
        _version(requester)
    except JobmonError:
        return False
    finally:
        requester.close()
    return True


def _other_scheme(settings: Settings) -> Iterator[str]:
    """Ask the same port with TLS instead of without, or the other way round.

    Any reply says that it speaks so; so does a certificate, trusted or not. The user has not chosen this way,
    so no credentials are sent.
    """
    if way_to(settings).proxy is not None:  # any reply may be the proxy's own
        return
    url = urlsplit(settings.service_url)
    scheme, advice = _OTHER_SCHEME[url.scheme]
    netloc = url.netloc if url.port else f"{url.netloc.removesuffix(':')}:{_PORTS[url.scheme]}"
    patience = min(settings.request_timeout, _PATIENCE)
    requester = Requester(url._replace(scheme=scheme, netloc=netloc).geturl(), request_timeout=patience)
    try:
        ask(requester, routes.health(), tenacious=False)
    except (ServerUnreachable, ConfigError):
        return
    except JobmonError:
        pass
    finally:
        requester.close()
    yield advice

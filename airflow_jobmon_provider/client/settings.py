"""How to reach one Jobmon server, and Jobmon's own settings as the source of that.

Jobmon reads ``JOBMON__SECTION__KEY`` environment variables over a YAML file (``JOBMON__CONFIG_FILE``) over
defaults (docs/protocol.md, "Settings"); so does :meth:`Settings.from_defaults`.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from airflow_jobmon_provider.client.exceptions import ConfigError
from airflow_jobmon_provider.client.heartbeat import Heartbeat
from airflow_jobmon_provider.client.redaction import Secrets, shown
from airflow_jobmon_provider.client.validation import number, whole

DEFAULT_ROUTE_PREFIX = "/api/v3"
DEFAULT_RETRIES_TIMEOUT = 300
DEFAULT_RETRIES_ATTEMPTS = 10
DEFAULT_REQUEST_TIMEOUT = 20

COSTLY_TIMEOUT = 600
"""Seconds that a call may take at least which costs the server time in proportion to the workflow's tasks: a
million of them take half a minute where nothing else is to be done (docs/protocol.md, "Size")."""

_SHORTEST_TIMEOUT = 0.001  # 0 means "for ever" to aiohttp, and "do not wait" to a socket

HEADER_NAME = r"[!#-'*+.^-z|~0-9A-Z-]+"
"""Pattern of the name of a header, for text and for bytes."""

_HEADER_NAME = re.compile(HEADER_NAME)
_HOST_AND_PORT = re.compile(r"(?:[\w.-]+|\[[0-9A-Fa-f:.]+\])(?::\d*)?")


@dataclass(frozen=True)
class Settings:
    """Everything that a transport needs to know about one server.

    :param service_url: address of the server with its route prefix, without credentials.
    :param retries_timeout: seconds after which a request is not tried again; 0: never.
    :param retries_attempts: how often a request is tried.
    :param request_timeout: seconds for a request, from the wait for a connection to the end of its reply.
    :param headers: sent with every request, ``Authorization`` among them. Never shown.
    :param verify: check the server's certificate: True, False, or the path of a CA bundle.
    :param client_cert: path of the certificate (PEM) that the server may ask for. Default: none.
    :param client_key: path of its key. Default: the key is in the same file.
    :param heartbeat: how often runs are kept alive, and for how long that counts. Default: as Jobmon has it.
    """

    service_url: str
    retries_timeout: float = DEFAULT_RETRIES_TIMEOUT
    retries_attempts: int = DEFAULT_RETRIES_ATTEMPTS
    request_timeout: float = DEFAULT_REQUEST_TIMEOUT
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    verify: bool | str = True
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    client_cert: str | None = None
    client_key: str | None = None

    def __post_init__(self) -> None:
        """Check every value, and move credentials out of the address, where they would reach logs.

        :raises ConfigError: it is not a valid http(s) address.
        :raises ValueError: a number is out of range.
        """
        number("retries_timeout", self.retries_timeout)
        number("request_timeout", self.request_timeout, above=0)
        whole("retries_attempts", self.retries_attempts)
        url = split_address(self.service_url)
        headers = dict(self.headers)
        if url.username is not None:
            login, password = unquote(url.username), unquote(url.password or "")
            headers.setdefault("Authorization", basic_authorization(login, password))
        _check_headers(headers)
        bare = url._replace(netloc=url.netloc.rpartition("@")[2])
        object.__setattr__(self, "service_url", bare.geturl().rstrip("/"))
        object.__setattr__(self, "headers", headers)

    @property
    def secrets(self) -> Secrets:
        """What must not be shown of what is sent."""
        return Secrets(self.headers)

    @property
    def dangers(self) -> tuple[str, ...]:
        """What is allowed, and unsafe: a sentence for each, to be logged as a warning."""
        dangers = []
        if self._sends_credentials_in_clear:
            dangers.append("sends its credentials over plain http, where others can read them: use https")
        if self.verify is False and self.service_url.startswith("https:"):
            dangers.append(
                "does not check its server's certificate, so another server can pose as it: give verify the"
                " path of a CA bundle instead of false"
            )
        return tuple(dangers)

    @property
    def _sends_credentials_in_clear(self) -> bool:
        """Whether headers, ``Authorization`` above all, cross a network without TLS."""
        url = urlsplit(self.service_url)
        if url.scheme == "https" or not self.headers:
            return False
        try:
            return not ipaddress.ip_address(url.hostname or "").is_loopback
        except ValueError:
            return url.hostname != "localhost"

    @classmethod
    def from_defaults(cls) -> Settings:
        """Return what Jobmon's own settings say.

        :raises ConfigError: ``http.service_url`` is not set, or a setting is malformed.
        """
        source = _JobmonSettings()
        service_url = source.text("http", "service_url", "")
        if not service_url:
            raise ConfigError(
                "no Jobmon server is configured: set JOBMON__HTTP__SERVICE_URL, or http.service_url in the"
                " file that JOBMON__CONFIG_FILE names"
            )
        prefix = source.text("http", "route_prefix", DEFAULT_ROUTE_PREFIX).strip("/")
        attempts = source.number("http", "retries_attempts", DEFAULT_RETRIES_ATTEMPTS)
        try:
            return cls(
                service_url=join_prefix(service_url, prefix),
                retries_timeout=source.number("http", "retries_timeout", DEFAULT_RETRIES_TIMEOUT),
                retries_attempts=whole("retries_attempts", attempts),
                request_timeout=source.number("http", "request_timeout", DEFAULT_REQUEST_TIMEOUT),
                heartbeat=heartbeat_defaults(),
            )
        except ValueError as error:
            raise ConfigError(f"Jobmon's settings, section http or heartbeat: {error}") from None


def time_for(request_timeout: float, *, costly: bool = False, at_most: float | None = None) -> float:
    """Return how many seconds a call may take, from the wait for a connection to the end of its reply.

    :param request_timeout: seconds that the settings give every call.
    :param costly: the call costs the server O(tasks); it may take ``COSTLY_TIMEOUT`` then. Default False.
    :param at_most: seconds that the caller has left. Default: no such limit.
    """
    own = max(request_timeout, COSTLY_TIMEOUT) if costly else request_timeout
    return own if at_most is None else max(min(own, at_most), _SHORTEST_TIMEOUT)


def heartbeat_defaults() -> Heartbeat:
    """Return the heartbeat of Jobmon's own settings.

    :raises ConfigError: a setting is malformed.
    :raises ValueError: a number is out of range.
    """
    source, default = _JobmonSettings(), Heartbeat()
    return Heartbeat(
        source.number("heartbeat", "workflow_run_interval", default.interval),
        source.number("heartbeat", "report_by_buffer", default.buffer),
    )


def basic_authorization(login: str, password: str) -> str:
    """Return the value of an ``Authorization`` header for HTTP Basic."""
    return "Basic " + base64.b64encode(f"{login}:{password}".encode()).decode("ascii")


def join_prefix(service_url: str, prefix: str) -> str:
    """Return the address of a server with its route prefix.

    :raises ConfigError: the prefix could lead elsewhere than below the server's address.
    """
    parts = [part for part in prefix.split("/") if part]
    if not all(re.fullmatch(r"[\w.~-]+", part) and part.strip(".") for part in parts):
        raise ConfigError(f"route prefix {shown(prefix)} is not a path such as '/api/v3'")
    split_address(service_url)
    return "/".join([service_url.rstrip("/"), *parts])


def _check_headers(headers: Mapping[str, str]) -> None:
    """Check that the headers can be sent: the HTTP libraries' own messages would show their values.

    :raises ConfigError: they cannot.
    """
    for name, value in headers.items():
        problem = header_problem(name, value)
        if problem:
            raise ConfigError(problem)


def header_problem(name: str, value: str) -> str | None:
    """Return why a header cannot be sent, without its value; None: it can."""
    if not _HEADER_NAME.fullmatch(name):
        return f"{shown(name)} is not a valid header name"
    if not (value.isascii() and value.isprintable()):
        hint = " (the password or token?)" if name == "Authorization" else ""
        return f"the value of header {name}{hint} has a line break or a character not in ASCII"
    return None


def split_address(address: str) -> SplitResult:
    """Return the parts of an http address, which all who read it will read in the same way.

    :raises ConfigError: it is not a valid one. It may hold a password, so the message names only what is
        wrong with it.
    """
    hint = "the address must look like http://host:port or https://host/path"
    if not isinstance(address, str) or any(c.isspace() or not c.isprintable() for c in address):
        raise ConfigError(f"{hint}; it is not text, or contains a blank")
    try:
        url = urlsplit(address)
        port = url.port
    except ValueError:
        raise ConfigError(f"{hint}; its host or port cannot be read") from None
    if port == 0:
        raise ConfigError(f"{hint}; its port is 0")
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ConfigError(f"{hint}; got scheme {shown(url.scheme)} and host {shown(url.hostname)}")
    # A password with one of / ? # in it, not quoted, ends the host too early, and would stand in every log.
    if url.query or url.fragment or address[-1] in "?#" or "@" in url.path:
        raise ConfigError(f"{hint}, without ?, # or @ after the host (quote them in a password)")
    if not _HOST_AND_PORT.fullmatch(url.netloc.rpartition("@")[2]):
        raise ConfigError(f"{hint}; its host or port cannot be read")
    return url


def same_server(one: str, other: str) -> bool:
    """Whether two addresses are of the same server: case of the host, default ports and slashes aside."""
    return _normalized(one) == _normalized(other)


def _normalized(address: str) -> tuple[str, str, int | None, str]:
    try:
        url = urlsplit(address.strip())
        port = url.port or {"http": 80, "https": 443}.get(url.scheme)
    except ValueError:
        return "", address, None, ""
    path = "/".join(part for part in url.path.split("/") if part)
    return url.scheme, (url.hostname or "").rstrip("."), port, path


class _JobmonSettings:
    """Looks settings up the way Jobmon does."""

    def __init__(self) -> None:
        self._file = os.environ.get("JOBMON__CONFIG_FILE", "")
        self._sections: Any = {}
        if self._file:
            import yaml  # a dependency of Airflow; needed only where this file is used

            try:
                with open(self._file, encoding="utf-8") as stream:
                    self._sections = yaml.safe_load(stream) or {}
            except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
                line = " ".join(str(error).split())
                raise ConfigError(f"JOBMON__CONFIG_FILE={self._file} cannot be read: {line}") from None
            if not isinstance(self._sections, dict):
                raise ConfigError(f"JOBMON__CONFIG_FILE={self._file} must hold sections such as 'http:'")

    def _get(self, section: str, key: str) -> tuple[str, Any]:
        """Return where the setting stands and its value; None where it is not set."""
        variable = f"JOBMON__{section.upper()}__{key.upper()}"
        if variable in os.environ:
            return variable, os.environ[variable]
        block = self._sections.get(section) or {}
        if not isinstance(block, dict):
            raise ConfigError(f"section {section!r} of {self._file} must hold settings")
        value = block.get(key)
        return f"{section}.{key} in {self._file}", os.path.expandvars(value) if isinstance(
            value, str
        ) else value

    def text(self, section: str, key: str, default: str) -> str:
        value = self._get(section, key)[1]
        return default if value is None else str(value).strip()

    def number(self, section: str, key: str, default: float) -> float:
        where, value = self._get(section, key)
        if value is None:
            return default
        try:
            found = number(where, float(value))
        except (TypeError, ValueError, OverflowError):
            raise ConfigError(
                f"{where} must be a number, at least 0 and finite, not {shown(value)}"
            ) from None
        return int(found) if found.is_integer() else found

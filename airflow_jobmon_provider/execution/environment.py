"""The Python that executes a run, and the environment in which it does."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import math
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, urlsplit

from airflow_jobmon_provider.client.exceptions import ConfigError
from airflow_jobmon_provider.client.heartbeat import Heartbeat
from airflow_jobmon_provider.client.settings import Settings

KEEP = "JOBMON_EXECUTOR_KEEP"
"""Names of variables, with commas between them, that executors get although they look like secrets."""

# What belongs to Airflow's own process: its settings, and its Python's modules, which are not Jobmon's.
_AIRFLOWS = r"_*AIRFLOW.*|PYTHONHOME|PYTHONPATH|VIRTUAL_ENV|__PYVENV_LAUNCHER__"

_CLOUDS = r"(AWS|AZURE|GOOGLE|GCP|GCLOUD|CLOUDSDK|VAULT)_.*"

_JOBMON_SERVERS = r"JOBMON__(DB|SESSION|OIDC)__.*"

_SECRETS = (
    r".*(PASSWORD|PASSWD|PASSPHRASE|SECRET|CREDENTIAL).*"
    r"|.*TOKENS?(_.*)?|(.*_)?(API|ACCESS|PRIVATE|FERNET)?KEYS?(_.*)?|.*_(PWD|PASS|DSN)"
)

_NOT_INHERITED = re.compile(f"{_AIRFLOWS}|{_CLOUDS}|{_JOBMON_SERVERS}|{_SECRETS}", re.IGNORECASE)

_HAS_SECRET = re.compile(
    r"[a-z][a-z0-9+.-]*://[^/?#\s:@]*:\S+@"  # scheme://user:password@host
    r"|https?://[^/?#\s@]+@"  # https://token@host
    r"|(^|[;&?\s])(password|passwd|pwd)=\S",  # Driver=…;UID=…;PWD=…
    re.IGNORECASE,
)

_PROXIES = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "ALL_PROXY", "NO_PROXY"})


def find_python(configured: str | None) -> str:
    """Return the Python that has Jobmon's client.

    :param configured: its path, or a name to be found on PATH. None: the interpreter of the ``jobmon``
        command on PATH, else this process's own if it has the client.
    :raises ConfigError: there is none.
    """
    if configured:
        found = shutil.which(os.path.expanduser(configured))
        if found is None:
            raise ConfigError(f"jobmon_python: {configured!r} is not an executable file on this worker")
        return found
    command = shutil.which("jobmon")
    if command is not None and (python := _interpreter(Path(command))):
        return python
    with contextlib.suppress(ImportError):
        if importlib.util.find_spec("jobmon.client") is not None:
            return sys.executable
    raise ConfigError(
        "no Jobmon client on this worker: no command 'jobmon' on PATH, and this Python has none either. Give"
        " jobmon_python, the path of the Python that has it, to the operator or in the connection's extra"
    )


def _interpreter(command: Path) -> str | None:
    """Return the Python of a command that pip or uv has installed: it is in the same folder."""
    for name in ("python", "python3"):
        python = command.resolve().with_name(name)
        if os.access(python, os.X_OK):
            return str(python)
    return None


def inherited_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what an executor, and through it every task, may see of the worker's environment.

    Left out are Airflow's own variables, those of cloud providers, Vault and Jobmon's server, and what looks
    like a secret: by its name, or as an address with a password in it. Proxies stay, with their passwords:
    without them nothing is reached. So does what ``JOBMON_EXECUTOR_KEEP`` names.

    :param environment: the worker's.
    """
    kept = {name.strip() for name in environment.get(KEEP, "").split(",")}

    def is_seen(name: str, value: str) -> bool:
        if name in kept or name.upper() in _PROXIES or name.startswith("BASH_FUNC_"):  # a module system's
            return True
        return not _NOT_INHERITED.fullmatch(name) and not _HAS_SECRET.search(value)

    return {name: value for name, value in environment.items() if is_seen(name, value)}


def executor_environment(settings: Settings, heartbeat: Heartbeat) -> dict[str, str]:
    """Return the environment in which Jobmon's client on this worker uses the server of a connection.

    :param settings: the connection's. Credentials travel in the server's address, which is all that Jobmon's
        client takes.
    :param heartbeat: the run's.
    :raises ConfigError: Jobmon's client cannot reach the server in the way the connection wants.
    """
    variables, credentials = jobmon_settings(settings, heartbeat)
    if credentials:
        scheme, separator, host = variables["JOBMON__HTTP__SERVICE_URL"].partition("://")
        variables["JOBMON__HTTP__SERVICE_URL"] = f"{scheme}{separator}{credentials}@{host}"
    return inherited_environment(os.environ) | variables


def jobmon_settings(
    settings: Settings, heartbeat: Heartbeat, *, here: bool = True
) -> tuple[dict[str, str], str]:
    """Return the variables by which Jobmon's client uses the server of a connection, and the credentials.

    :param settings: the connection's.
    :param heartbeat: the run's. Jobmon's client takes an interval of whole seconds.
    :param here: the client is on this machine; one elsewhere trusts the certificates that its host does.
    :returns: no secrets; and login and password as they stand before the host in an address.
    :raises ConfigError: Jobmon's client cannot reach the server in the way the connection wants.
    """
    url = urlsplit(settings.service_url)
    variables = {
        "JOBMON__HTTP__SERVICE_URL": f"{url.scheme}://{url.netloc}",
        "JOBMON__HTTP__ROUTE_PREFIX": url.path,
        "JOBMON__HEARTBEAT__WORKFLOW_RUN_INTERVAL": str(math.ceil(heartbeat.interval)),
        "JOBMON__HEARTBEAT__REPORT_BY_BUFFER": f"{heartbeat.buffer:g}",
    }
    headers = settings.headers
    if not here:  # what its host needs besides, such as a gateway's token, is its host's business
        headers = {name: value for name, value in headers.items() if value.startswith("Basic ")}
    credentials = _credentials(headers)
    if here and settings.client_cert:
        raise ConfigError("Jobmon's own client, which executes the run, cannot send a client certificate")
    if here and settings.verify is False and url.scheme == "https":
        raise ConfigError(
            "Jobmon's own client, which executes the run, always checks TLS certificates: give the"
            " connection's verify the path of a CA bundle instead of false"
        )
    if here and isinstance(settings.verify, str):
        variables |= {"REQUESTS_CA_BUNDLE": settings.verify, "SSL_CERT_FILE": settings.verify}
    return variables, credentials


def _credentials(headers: Mapping[str, str]) -> str:
    """Return login and password as they stand before the host in an address."""
    scheme, _, value = headers.get("Authorization", "").partition(" ")
    others = sorted(name for name in headers if name != "Authorization" or scheme != "Basic")
    if others:
        raise ConfigError(
            f"Jobmon's own client, which executes the run, cannot send the connection's {', '.join(others)}:"
            " it takes no token and no headers, only login and password. Use such a connection for this task,"
            " or execute the run elsewhere, without cluster_name"
        )
    if not value:
        return ""
    login, _, password = base64.b64decode(value).decode().partition(":")
    return f"{quote(login, safe='')}:{quote(password, safe='')}"

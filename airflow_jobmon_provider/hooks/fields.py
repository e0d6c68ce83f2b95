"""What a connection of type ``jobmon`` may say: THE table of its fields.

Airflow's form (``get_provider_info.py``), the reader of a connection (``hooks/connection.py``) and the table
in the README (``make docs``) all come from it. A new field is one more row here; where it is one of
:class:`~airflow_jobmon_provider.client.settings.Settings`, under the same name, nothing else has to change.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple

from airflow_jobmon_provider.client.heartbeat import EASED, Heartbeat
from airflow_jobmon_provider.client.settings import (
    DEFAULT_REQUEST_TIMEOUT,
    DEFAULT_RETRIES_ATTEMPTS,
    DEFAULT_RETRIES_TIMEOUT,
    DEFAULT_ROUTE_PREFIX,
)


class Kind(Enum):
    """What a field of the extra may hold."""

    TEXT = "text"
    FILE = "path of a file"
    ADDRESS = "http or https address"
    NUMBER = "number"
    INTEGER = "integer"
    CHECK_OR_FILE = "true, false or path of a file"
    HEADERS = "JSON object of texts"


LARGEST_NUMBER = 365 * 86400
"""No number of a connection is larger: a year in seconds, with which clocks and sockets still can reckon."""

_SCHEMAS: dict[Kind, dict[str, Any]] = {
    Kind.TEXT: {"type": ["string", "null"]},
    Kind.FILE: {"type": ["string", "null"]},
    Kind.ADDRESS: {"type": ["string", "null"], "format": "url"},
    Kind.NUMBER: {"type": ["number", "null"], "minimum": 0, "maximum": LARGEST_NUMBER},
    Kind.INTEGER: {"type": ["integer", "null"], "minimum": 0, "maximum": LARGEST_NUMBER},
    # A line of text with two suggestions. Of a text that may also be a boolean, Airflow's form makes a box of
    # six lines of JSON. A box to tick would show "not given" as false, and store it when the form is saved.
    Kind.CHECK_OR_FILE: {"type": ["string", "null"], "examples": ["true", "false"]},
    Kind.HEADERS: {"type": ["object", "null"]},
}


class ExtraField(NamedTuple):
    """A field of the connection's extra.

    :param kind: what it may hold.
    :param label: its name in the form.
    :param meaning: what it says, for the form and the README.
    :param default: what holds where it is not given, for the form and the README.
    """

    kind: Kind
    label: str
    meaning: str
    default: str


EXTRA: dict[str, ExtraField] = {
    "gui_url": ExtraField(
        Kind.ADDRESS,
        "Jobmon GUI",
        'Address of Jobmon\'s GUI, for the button "Jobmon workflow".',
        "none",
    ),
    "jobmon_python": ExtraField(
        Kind.TEXT,
        "Jobmon's Python",
        "Path, on the workers, of the Python that has Jobmon's client; it executes runs where cluster_name is"
        " given.",
        "that of the jobmon command on PATH, else Airflow's",
    ),
    "route_prefix": ExtraField(
        Kind.TEXT,
        "Route prefix",
        "Path of the API below the address, unless that ends in it already. Jobmon 3.4 has /api/v2.",
        DEFAULT_ROUTE_PREFIX,
    ),
    "request_timeout": ExtraField(
        Kind.NUMBER,
        "Request time-out (s)",
        "Seconds for a whole request: looking the name up, connecting, the reply. A request that reads or"
        " resets every task has ten minutes.",
        str(DEFAULT_REQUEST_TIMEOUT),
    ),
    "retries_attempts": ExtraField(
        Kind.INTEGER,
        "Retries: attempts",
        "How often a worker tries a request at most.",
        str(DEFAULT_RETRIES_ATTEMPTS),
    ),
    "retries_timeout": ExtraField(
        Kind.NUMBER,
        "Retries: time-out (s)",
        "Seconds after which a worker does not try a request again. 0 means never.",
        str(DEFAULT_RETRIES_TIMEOUT),
    ),
    "verify": ExtraField(
        Kind.CHECK_OR_FILE,
        "Verify TLS",
        "Whether to check TLS certificates: true, false, or the path of a CA bundle.",
        "true: by REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE, else certifi and the system",
    ),
    "client_cert": ExtraField(
        Kind.FILE,
        "Client certificate",
        "Path of the certificate (PEM) that the server may ask for.",
        "none",
    ),
    "client_key": ExtraField(
        Kind.FILE,
        "Client key",
        "Path of the client certificate's key (PEM).",
        "the key is in the same file",
    ),
    "headers": ExtraField(
        Kind.HEADERS,
        "Headers",
        "JSON object of headers to send with every request.",
        "none",
    ),
    "workflow_run_heartbeat_interval": ExtraField(
        Kind.NUMBER,
        "Heartbeat interval (s)",
        "Seconds between the heartbeats of a workflow run.",
        f"Jobmon's setting, {Heartbeat().interval:g}; after ten minutes of waiting {EASED} times that",
    ),
    "heartbeat_report_by_buffer": ExtraField(
        Kind.NUMBER,
        "Heartbeat buffer",
        "A heartbeat is good for the interval times this.",
        f"Jobmon's setting, {Heartbeat().buffer:g}",
    ),
}
"""By the name in the extra, in the order of the form: first what nearly every user wants to give."""

FORM_BEHAVIOUR: dict[str, Any] = {
    "hidden-fields": [],
    "relabeling": {
        "host": "Host or address",
        "schema": "Scheme (http or https; empty: http)",
        "port": "Port (empty: the scheme's)",
        "login": "Login (Basic)",
        "password": "Password, or token without login (Bearer)",
    },
    "placeholders": {
        "host": "jobmon.example.org, or https://jobmon.example.org/path",
    },
}
"""What Airflow's form calls its own fields, by ``provider_info.schema.json``. A placeholder that could be a
value, such as a port, would be taken for one that is filled in."""


def form_fields() -> dict[str, dict[str, Any]]:
    """Return the fields of the extra as Airflow's form wants them, by ``provider_info.schema.json``."""
    return {
        name: {
            "label": field.label,
            "description": f"{field.meaning} Default: {field.default}.",
            "schema": _SCHEMAS[field.kind],
        }
        for name, field in EXTRA.items()
    }

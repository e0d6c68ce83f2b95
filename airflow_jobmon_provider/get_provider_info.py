"""What Airflow asks a provider for, as data, so that no server imports the hook to draw a form."""

from __future__ import annotations

from typing import Any

from airflow_jobmon_provider import __version__

_INTEGRATION = "Jobmon"

CONNECTION_TYPE = "jobmon"

UI_FIELD_BEHAVIOUR: dict[str, Any] = {
    "hidden-fields": [],
    "relabeling": {
        "host": "Host or address",
        "schema": "Scheme (http or https)",
        "login": "Login (Basic)",
        "password": "Password, or token without login (Bearer)",
    },
    "placeholders": {
        "host": "jobmon.example.org, or https://jobmon.example.org/path",
        "schema": "http",
        "port": "8070",
    },
}

# Names and meanings of the connection's extra; what is read from them, and how, is in hooks/jobmon.py.
CONNECTION_FIELDS: dict[str, dict[str, Any]] = {
    "route_prefix": {
        "label": "Route prefix",
        "description": "Path of the API below the address. Default: /api/v3 (Jobmon 3.4: /api/v2).",
        "schema": {"type": ["string", "null"]},
    },
    "request_timeout": {
        "label": "Request time-out (s)",
        "description": "Seconds to wait for a reply. Default: 20.",
        "schema": {"type": ["number", "null"], "minimum": 0},
    },
    "retries_attempts": {
        "label": "Retries: attempts",
        "description": "How often a worker tries a request at most. Default: 10.",
        "schema": {"type": ["integer", "null"], "minimum": 0},
    },
    "retries_timeout": {
        "label": "Retries: time-out (s)",
        "description": "Seconds after which a worker does not try a request again; 0: never. Default: 300.",
        "schema": {"type": ["number", "null"], "minimum": 0},
    },
    "verify": {
        "label": "Verify TLS",
        "description": "true (default), false, or the path of a CA bundle.",
        "schema": {"type": ["string", "boolean", "null"]},
    },
    "client_cert": {
        "label": "Client certificate",
        "description": "Path of the certificate (PEM) that the server may ask for. Default: none.",
        "schema": {"type": ["string", "null"]},
    },
    "client_key": {
        "label": "Client key",
        "description": "Path of the client certificate's key. Default: the key is in the same file.",
        "schema": {"type": ["string", "null"]},
    },
    "headers": {
        "label": "Headers",
        "description": "JSON object of headers to send with every request.",
        "schema": {"type": ["object", "null"]},
    },
    "workflow_run_heartbeat_interval": {
        "label": "Heartbeat interval (s)",
        "description": "Seconds between heartbeats of a workflow run. Default: Jobmon's setting, 30.",
        "schema": {"type": ["number", "null"], "minimum": 0},
    },
    "heartbeat_report_by_buffer": {
        "label": "Heartbeat buffer",
        "description": "A heartbeat is good for the interval times this. Default: Jobmon's setting, 3.1.",
        "schema": {"type": ["number", "null"], "minimum": 0},
    },
    "jobmon_python": {
        "label": "Jobmon's Python",
        "description": "Path, on the workers, of the Python that has Jobmon's client. Default: that of the"
        " jobmon command on PATH.",
        "schema": {"type": ["string", "null"]},
    },
    "gui_url": {
        "label": "Jobmon GUI",
        "description": "Address of Jobmon's GUI, for links.",
        "schema": {"type": ["string", "null"], "format": "url"},
    },
}


def get_provider_info() -> dict[str, Any]:
    """Return the provider's description, by Airflow's ``provider_info.schema.json``."""
    return {
        "package-name": "airflow-provider-jobmon",
        "name": "Jobmon",
        "description": "Resume Jobmon workflows, create workflow runs and keep their heartbeats alive.",
        "versions": [__version__],
        "integrations": [
            {
                "integration-name": _INTEGRATION,
                "external-doc-url": "https://github.com/ihmeuw-scicomp/jobmon",
                "tags": ["service"],
            }
        ],
        "hooks": [
            {"integration-name": _INTEGRATION, "python-modules": ["airflow_jobmon_provider.hooks.jobmon"]}
        ],
        "operators": [
            {"integration-name": _INTEGRATION, "python-modules": ["airflow_jobmon_provider.operators.jobmon"]}
        ],
        "sensors": [
            {"integration-name": _INTEGRATION, "python-modules": ["airflow_jobmon_provider.sensors.jobmon"]}
        ],
        "triggers": [
            {"integration-name": _INTEGRATION, "python-modules": ["airflow_jobmon_provider.triggers.jobmon"]}
        ],
        "extra-links": ["airflow_jobmon_provider.links.JobmonWorkflowLink"],
        "connection-types": [
            {
                "connection-type": CONNECTION_TYPE,
                "hook-class-name": "airflow_jobmon_provider.hooks.jobmon.JobmonHook",
                "hook-name": "Jobmon",
                "ui-field-behaviour": UI_FIELD_BEHAVIOUR,
                "conn-fields": CONNECTION_FIELDS,
            }
        ],
    }

"""What Airflow asks a provider for, as data, so that no server imports the hook to draw a form."""

from __future__ import annotations

from typing import Any

from airflow_jobmon_provider import __version__
from airflow_jobmon_provider.hooks.fields import FORM_BEHAVIOUR, form_fields

_INTEGRATION = "Jobmon"

CONNECTION_TYPE = "jobmon"


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
        "extra-links": ["airflow_jobmon_provider.links.jobmon.JobmonWorkflowLink"],
        "connection-types": [
            {
                "connection-type": CONNECTION_TYPE,
                "hook-class-name": "airflow_jobmon_provider.hooks.jobmon.JobmonHook",
                "hook-name": "Jobmon",
                "ui-field-behaviour": FORM_BEHAVIOUR,
                "conn-fields": form_fields(),
            }
        ],
    }

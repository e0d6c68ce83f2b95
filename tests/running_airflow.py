"""Which Airflow runs the tests: what differs between versions goes by this. Imports no Airflow."""

from __future__ import annotations

import importlib.metadata


def _version() -> tuple[int, int]:
    names = ("apache-airflow-core", "apache-airflow")  # 3 has both, 2 has the second
    full = next(each.version for name in names for each in importlib.metadata.distributions(name=name))
    major, minor = full.split(".")[:2]
    return int(major), int(minor)


AIRFLOW = _version()
"""Major and minor version."""

AIRFLOW_2 = AIRFLOW < (3, 0)
"""A task talks to the metadata database."""

LOGS_WITH_STRUCTLOG = AIRFLOW >= (3, 1)
"""And so to standard output; before, the loggers are Python's."""

# Modules that were moved.
if AIRFLOW_2:
    SECRETS_MASKER = "airflow.utils.log.secrets_masker"
elif AIRFLOW < (3, 1):
    SECRETS_MASKER = "airflow.sdk.execution_time.secrets_masker"
elif AIRFLOW < (3, 2):
    SECRETS_MASKER = "airflow._shared.secrets_masker"  # that of connections in the environment
else:
    SECRETS_MASKER = "airflow.sdk._shared.secrets_masker"
TIMEOUT = "airflow.sdk.execution_time.timeout" if AIRFLOW >= (3, 1) else "airflow.utils.timeout"

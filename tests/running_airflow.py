"""Which Airflow runs the tests: what differs between versions goes by this. Imports no Airflow."""

from __future__ import annotations

import sys

from dev import matrix
from dev.airflow_stack import airflow_version

AIRFLOW = airflow_version(sys.executable)
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


def airflow_has(feature: str) -> bool:
    """Tell whether docs/environments.md says that the running Airflow has a feature.

    :param feature: how its row begins.
    """
    titles, *rows = matrix.features()
    (row,) = (row for row in rows if row[0].startswith(feature))
    return {"yes": True, "no": False}[row[titles.index("{}.{}".format(*AIRFLOW))]]

"""An Airflow home of a process's own, so that the user's ``~/airflow/airflow.cfg`` takes no part.

Airflow reads that file when it is first imported, so this comes before whatever may import it: in
``tests/__init__.py`` and ``benchmarks/__init__.py``.
"""

from __future__ import annotations

import os
import tempfile

_homes: list[tempfile.TemporaryDirectory[str]] = []


def own_airflow_home() -> None:
    """Let this process, and those that it starts, use an empty Airflow home; it is removed at the end.

    A second call does nothing: tests use parts of the benchmarks.
    """
    if _homes:
        return
    _homes.append(tempfile.TemporaryDirectory(prefix="airflow-home-"))
    os.environ["AIRFLOW_HOME"] = _homes[-1].name

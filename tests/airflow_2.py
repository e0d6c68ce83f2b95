"""Real task instances of Airflow 2, in a real metadata database: what a task has as its context's ``ti``.

Only for tests that Airflow 2 runs. Airflow 3 gives a task no access to the database.
"""

from __future__ import annotations

import functools
import itertools
from datetime import datetime, timezone
from typing import Any

_runs = itertools.count()


def _now() -> datetime:
    return datetime.now(timezone.utc)


@functools.cache
def _make_tables() -> None:
    """Make the tables in this process's database: migrating an empty one would take seconds."""
    from airflow import settings
    from airflow.models import DagRun, TaskInstance, Trigger
    from airflow.models.tasklog import LogTemplate

    models: list[Any] = [DagRun, LogTemplate, TaskInstance, Trigger]
    engine: Any = settings.engine
    models[0].metadata.create_all(engine, tables=[model.__table__ for model in models])


def task_instance_in_database(states: dict[int, str | None], map_index: int = -1) -> Any:
    """Return a task's own task instance, of a new DAG run.

    :param states: by map index, the states that the task instances of the run have in the database.
    """
    from airflow.models import DagRun, TaskInstance
    from airflow.providers.common.compat.sdk import DAG, BaseOperator
    from airflow.utils.session import create_session

    _make_tables()
    run_id = f"manual-{next(_runs)}"
    with DAG("dag", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=timezone.utc)):
        task: Any = BaseOperator(task_id="run")
    make: Any = TaskInstance
    dag_run: Any = DagRun
    with create_session() as session:
        session.add(dag_run(dag_id="dag", run_id=run_id, run_type="manual", execution_date=_now()))
        session.flush()
        for index, state in states.items():
            session.add(make(task, run_id=run_id, state=state, map_index=index))
    ti = make(task, run_id=run_id, state="running", map_index=map_index)
    ti.start_date = _now()
    ti.xcoms = {}
    ti.xcom_push = lambda key, value: ti.xcoms.update({key: value})  # of one that is not there it fails
    return ti

"""What an executor, and through it every task of a workflow, gets to see of the worker's environment."""

from __future__ import annotations

import pytest

from airflow_jobmon_provider.client.heartbeat import Heartbeat
from airflow_jobmon_provider.client.settings import Settings
from airflow_jobmon_provider.execution.environment import KEEP, executor_environment, inherited_environment

NOT_FOR_JOBS = {
    "AIRFLOW__CORE__FERNET_KEY": "x",
    "AIRFLOW_CONN_JOBMON_DEFAULT": "{}",
    "_AIRFLOW__AS_LIBRARY": "1",
    "__AIRFLOW_SUPERVISOR_FD": "3",
    "_AIRFLOW_WWW_USER_PASSWORD": "x",
    "PYTHONPATH": "/opt/airflow",
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SESSION_TOKEN": "x",
    "AWS_PROFILE": "admin",
    "AZURE_CLIENT_SECRET": "x",
    "AZURE_STORAGE_CONNECTION_STRING": "x",
    "GOOGLE_APPLICATION_CREDENTIALS": "/key.json",
    "VAULT_TOKEN": "x",
    "VAULT_ROLE_ID": "x",
    "POSTGRES_PASSWORD": "x",
    "PGPASSWORD": "x",
    "MYSQL_PWD": "x",
    "db_passwd": "x",
    "REDIS_PASS": "x",
    "GITHUB_TOKEN": "x",
    "SLACK_API_TOKENS": "x",
    "OPENAI_API_KEY": "x",
    "APIKEY": "x",
    "DJANGO_SECRET": "x",
    "SENTRY_DSN": "x",
    "JOBMON__DB__SQLALCHEMY_DATABASE_URI": "sqlite:////db",
    "JOBMON__SESSION__SECRET_KEY": "x",
    "JOBMON__OIDC__CLIENT_SECRET": "x",
    "DATABASE_URL": "postgresql+psycopg2://airflow:s3cr@t/x@db/airflow",
    "CELERY_BROKER": "redis://:s3cret@redis:6379/0",
    "PIP_INDEX_URL": "https://glpat-s3cret@pypi.example.org/simple",
    "WAREHOUSE": "Driver=ODBC;Server=db;UID=etl;PWD=s3cret",
}
FOR_JOBS = {
    "PATH": "/usr/bin",
    "HOME": "/home/me",
    "PWD": "/home/me",
    "OLDPWD": "/",
    "LD_LIBRARY_PATH": "/opt/lib",
    "MODULEPATH": "/opt/modules",
    "LOADEDMODULES": "gcc/13",
    "_LMFILES_": "/opt/modules/gcc/13",
    "BASH_FUNC_module%%": "() { eval $(/usr/bin/lmod bash PWD=/ 'https://x@y'); }",
    "SLURM_CONF": "/etc/slurm.conf",
    "SLURM_JOB_ID": "1",
    "SGE_ROOT": "/opt/sge",
    "KRB5CCNAME": "KEYRING:persistent:1",
    "SSH_AUTH_SOCK": "/run/user/1/agent",
    "SSH_ASKPASS": "/usr/bin/askpass",
    "DBUS_SESSION_BUS_ADDRESS": "unix:path=/run/user/1/bus",
    "CONDA_PREFIX": "/opt/conda",
    "IMGPATH": "/images/jobmon.sif",
    "TOKENIZERS_PARALLELISM": "false",
    "KEYBOARD": "de",
    "http_proxy": "http://user:password@proxy:3128",
    "HTTPS_PROXY": "http://user:password@proxy:3128",
    "no_proxy": "localhost",
    "REQUESTS_CA_BUNDLE": "/ca.pem",
    "JOBMON__HEARTBEAT__TASK_INSTANCE_INTERVAL": "5",
    "JOBMON__CONFIG_FILE": "/etc/jobmon.yaml",
    "MLFLOW_TRACKING_URI": "http://mlflow:5000/api",
    "CVSROOT": "ssh://me@host/cvs",
}


@pytest.mark.parametrize("name", sorted(NOT_FOR_JOBS))
def test_secrets_of_the_worker_stay_there(name: str) -> None:
    assert inherited_environment({name: NOT_FOR_JOBS[name]}) == {}


@pytest.mark.parametrize("name", sorted(FOR_JOBS))
def test_what_a_cluster_needs_is_passed_on(name: str) -> None:
    assert inherited_environment({name: FOR_JOBS[name]}) == {name: FOR_JOBS[name]}


def test_a_user_can_keep_what_looks_like_a_secret() -> None:
    environment = {**NOT_FOR_JOBS, KEEP: "GITHUB_TOKEN, DATABASE_URL"}
    kept = {name: environment[name] for name in ("GITHUB_TOKEN", "DATABASE_URL", KEEP)}
    assert inherited_environment(environment) == kept


def test_the_executor_gets_the_connections_server_and_not_the_workers_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {**NOT_FOR_JOBS, **FOR_JOBS}.items():
        monkeypatch.setenv(name, value)
    environment = executor_environment(Settings("http://jobmon.example.org"), Heartbeat())
    assert NOT_FOR_JOBS.keys() & environment.keys() == set()
    assert FOR_JOBS.keys() <= environment.keys()
    assert environment["JOBMON__HTTP__SERVICE_URL"] == "http://jobmon.example.org"

"""Tests of the provider. The Airflow and Jobmon settings of the user who runs them take no part."""

import os

from dev.airflow_home import own_airflow_home

for name in list(os.environ):
    if name.startswith(("JOBMON__", "AIRFLOW_")):
        del os.environ[name]
own_airflow_home()

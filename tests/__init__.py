"""Tests of the provider. Whoever runs them, Airflow's and Jobmon's settings of theirs take no part."""

import os

from dev.airflow_home import own_airflow_home

for name in list(os.environ):
    if name.startswith(("JOBMON__", "AIRFLOW_")):
        del os.environ[name]
own_airflow_home()

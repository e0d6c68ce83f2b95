"""What the provider costs, measured beside its peers in one run: ``make bench``."""

import os

from dev.airflow_home import own_airflow_home

own_airflow_home()
os.environ["AIRFLOW__LOGGING__LOGGING_LEVEL"] = "ERROR"  # figures are all that is printed

"""What the provider costs, measured beside its peers in one run: ``make bench``."""

import os

os.environ["AIRFLOW__LOGGING__LOGGING_LEVEL"] = "ERROR"  # figures are all that is printed

"""What the provider costs, measured beside its peers in one run: ``make bench``."""

import asyncio
import os

from dev.airflow_home import own_airflow_home

own_airflow_home()
os.environ["AIRFLOW__LOGGING__LOGGING_LEVEL"] = "ERROR"  # figures are all that is printed
if os.environ.get("BENCH_LOOP") == "uvloop":  # in each process: as `airflow_local_settings.py` may do
    import uvloop

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())

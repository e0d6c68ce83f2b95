"""What Airflow says about the task that runs, and what it expects of it.

None of these modules imports more at its top than a DAG file needs: what only a running task needs is
imported where it is used, as Airflow parses every DAG file again and again.
"""

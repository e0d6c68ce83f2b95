"""The hook: an Airflow connection becomes a Jobmon client."""

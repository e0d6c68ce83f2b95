"""What DAG files name of the ways to execute a run; imported when a DAG is parsed, so it imports nothing."""

LAUNCHERS = ("process", "slurm")
"""The launchers: each is a module of :mod:`airflow_jobmon_provider.execution.launchers`."""

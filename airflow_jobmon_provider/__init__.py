"""Apache Airflow provider for Jobmon, IHME's workflow manager for HPC clusters."""

__version__ = "0.1.0"

"""What people run who work on this project: a real Jobmon, a real Airflow, the demo."""

"""Triggers that wait for Jobmon without a worker."""

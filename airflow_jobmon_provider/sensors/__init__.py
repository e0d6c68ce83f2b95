"""Sensors that wait for Jobmon workflows and workflow runs."""

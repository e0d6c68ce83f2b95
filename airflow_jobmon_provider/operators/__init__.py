"""Operators that resume Jobmon workflows and create workflow runs."""

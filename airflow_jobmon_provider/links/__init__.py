"""Links of Jobmon."""

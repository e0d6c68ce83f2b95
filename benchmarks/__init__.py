"""What the provider costs, measured beside its peers in one run: ``make bench``."""

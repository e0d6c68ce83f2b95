"""Where and how a run is executed: as a process on the worker, so far."""

"""The execution of runs in a worker."""

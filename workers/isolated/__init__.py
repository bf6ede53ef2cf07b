"""Workers whose runs have a process each."""

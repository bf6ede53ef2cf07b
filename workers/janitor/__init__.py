"""What a worker does for runs that are not its own."""

"""What the API does, without Flask."""

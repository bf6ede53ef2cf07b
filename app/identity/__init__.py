"""Who calls, by what credentials."""

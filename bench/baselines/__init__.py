"""Other ways to serve the same events, for comparison. Each is kept as plain as its users would write it."""

"""What the example agents work on: stand-ins for a company's own systems. They know nothing of runs."""

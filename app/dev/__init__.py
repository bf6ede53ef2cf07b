"""`runtail dev`: everything on one machine, for development."""

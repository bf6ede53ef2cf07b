"""The command line, `runtail`."""

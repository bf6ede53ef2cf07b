"""Benchmarks of Runtail on one machine: `runtail bench`, or `python -m bench`. Not part of the package."""

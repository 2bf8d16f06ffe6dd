"""Benchmarks on real data. Run from the repository root: `python -m benchmarks.quick`."""

"""Benchmarks: each module prints a table, or with --json one object whose keys stay the same."""

"""Benchmarks: costs of the cluster, and speed beside other projects. Measures figures, stores rows, prints tables."""

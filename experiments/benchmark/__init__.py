"""Benchmarks: costs of the cluster, and speed compared with other projects; stored as rows, printed as tables."""

"""Fault soak: the plan of faults, the cluster and small machine that they affect, sweeps, and comparisons."""

"""Fault soak: a plan of faults, a cluster and a small machine on which they strike, sweeps, and comparisons."""

"""What a fault soak is made of: a plan of faults, a cluster and a small machine that they hit, sweeps, comparisons."""

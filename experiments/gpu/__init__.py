"""The parts of `gpu_check.py`: what each measures on one GPU, and how they share the time."""

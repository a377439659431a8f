"""The parts of `gpu_check.py`: measurements on one GPU, and their shares of the time."""

"""Seeded kills of the processes of a running experiment, and whether its results stay the same."""

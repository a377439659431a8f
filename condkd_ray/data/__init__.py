"""Data sets: read from files, written to files, augmented."""

"""Claims and their trials: reading claims, finding missing trials, running them, storing rows, and rendering texts."""

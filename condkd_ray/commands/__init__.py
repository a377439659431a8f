"""The verbs of `condkd`, one a file."""

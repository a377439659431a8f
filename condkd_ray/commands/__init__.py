"""The verbs of `condkd`, one module each."""

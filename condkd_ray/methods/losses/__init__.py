"""Losses without state. Gradients flow through all arguments unless a docstring restricts this."""

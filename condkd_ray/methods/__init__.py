"""The science: one folder a family of methods."""

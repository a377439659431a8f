"""Search: spaces, objectives, samplers, pruners, and the study that stores all results."""

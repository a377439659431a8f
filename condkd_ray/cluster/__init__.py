"""Trials on Ray: connection, pool of synthetic samples, workers, sweep and search. Only this folder imports Ray."""

"""Trials on Ray: the connection, the pool of synthetic samples, one trial, a sweep. The only folder that imports it."""

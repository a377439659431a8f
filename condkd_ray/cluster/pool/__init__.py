"""The pool of synthetic samples that the trials of a sweep share."""

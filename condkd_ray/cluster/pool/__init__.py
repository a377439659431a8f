"""The pool of synthetic samples: its actor, the stores of trials in it, and the sources of images made elsewhere."""

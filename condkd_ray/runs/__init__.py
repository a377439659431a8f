"""Many trials: ablations and searches, from options to records."""

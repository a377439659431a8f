"""One trial without Ray: config, artifacts, training loop and outcome."""

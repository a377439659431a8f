"""One trial, without Ray: its config, its loop, and what comes of it."""

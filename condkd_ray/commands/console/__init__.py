"""Terminal output of the commands: a live area at the bottom of the terminal, messages above it, and exit codes."""

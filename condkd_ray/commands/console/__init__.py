"""Terminal output of the commands: progress lines at the bottom, messages above them, and exit codes."""

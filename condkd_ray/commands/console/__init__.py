"""What a user sees while something runs: the last lines of a terminal, and what is said meanwhile above them."""

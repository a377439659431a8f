"""Claims: what each states, which of its trials are missing, its stored rows, and the text that they render."""

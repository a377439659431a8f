"""The TensorBoard event files of a report."""

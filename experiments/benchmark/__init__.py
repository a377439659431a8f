"""What the cluster costs, and how fast we are beside others, measured: figures, their rows, and a table of these."""

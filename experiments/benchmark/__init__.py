"""What the cluster costs, measured: figures, and the rows and table made of them."""

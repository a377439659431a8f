"""What the cluster costs, measured: figures, and the rows and the table made of them."""

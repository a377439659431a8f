"""The cluster: its address, what fits into it, signals, and the storage that its nodes share."""

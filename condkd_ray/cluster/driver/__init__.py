"""A sweep and a search on Ray Tune, as the driver process runs them."""

"""Pure functions of tensors: each returns a value differentiable in its first argument, without state."""

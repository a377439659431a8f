"""Loss functions: pure functions of tensors, differentiable in their first argument."""

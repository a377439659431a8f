"""Batch normalisation of this package's networks, faster in eval mode on a CPU."""

import torch
from torch import Tensor, nn


class BatchNorm2d(nn.BatchNorm2d):
    """PyTorch's BN, computed by one multiply-add in float32 eval mode on a CPU: equal up to rounding, in half the time.

    PyTorch's backward pass sums the gradients of weight and bias over the batch even if they are not needed.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised maps (B, C, H, W)."""
        if self.training or input.device.type != "cpu" or input.dtype != torch.float32:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return torch.addcmul(shift[:, None, None], input, scale[:, None, None])

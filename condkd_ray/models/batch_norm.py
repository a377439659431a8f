"""Batch normalisation as the networks of this package have it."""

import torch
from torch import Tensor, nn


class BatchNorm2d(nn.BatchNorm2d):
    """PyTorch's own, by one multiply-add where it is evaluated on a CPU: the same sums, in half the time.

    PyTorch's backward pass sums over the batch for the gradients of weight and bias, also where nobody asks for them.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        if self.training or input.device.type != "cpu" or input.dtype != torch.float32:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return torch.addcmul(shift[:, None, None], input, scale[:, None, None])

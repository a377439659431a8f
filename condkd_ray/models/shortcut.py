"""What stands beside a residual block that changes the shape, on whatever CPU."""

import torch.nn.functional as F
from torch import Tensor, nn

NARROW = 16
"""From so many channels on oneDNN's 1x1 convolutions with a stride stay within their buffers."""


class Shortcut(nn.Conv2d):
    """1x1 convolution of every `stride`-th place, beside a block that changes the shape; without a bias of its own.

    A stride over fewer than `NARROW` channels is a choice of places, then a convolution without stride: the same sums.
    Else oneDNN (3.12, in PyTorch 2.14.1; its issue 6035) writes the gradient of the weights past the end of a buffer,
    where the maps are float32 in channels-last format: with fewer than 8 channels where a CPU has AVX2 at the most,
    with fewer than 16 and large maps where it has AVX-512. The process then dies, at once or later. The smallest
    program that shows it stands in `docs/onednn_shortcut.md`.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, 1, stride, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride), rounded up."""
        if self.in_channels >= NARROW or self.stride == (1, 1):
            return super().forward(input)
        # The mean of one place; the gradient of a slice would take a tenth of a training step of the default student.
        return F.conv2d(F.avg_pool2d(input, 1, self.stride), self.weight, self.bias)


class PaddedShortcut(nn.Module):
    """Every `stride`-th place as it is, between channels of zeros: a shortcut without weights (He et al., option A).

    On which sides of the channels the `more` zeros stand is open in the paper. Here one half is before and one behind,
    as in the weights that people have (akamaster/pytorch_resnet_cifar10); the odd one is behind (our choice).
    """

    def __init__(self, more: int, stride: int) -> None:
        super().__init__()
        self.stride, self.before, self.behind = stride, more // 2, more - more // 2

    def forward(self, maps: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride), rounded up."""
        return F.pad(F.avg_pool2d(maps, 1, self.stride), (0, 0, 0, 0, self.before, self.behind))

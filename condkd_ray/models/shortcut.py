"""Shortcuts of residual blocks that change the shape, safe from a memory error of oneDNN on some CPUs."""

import torch.nn.functional as F
from torch import Tensor, nn

NARROW = 16
"""Smallest number of channels for which oneDNN's 1x1 convolutions with a stride stay within their buffers."""


class Shortcut(nn.Conv2d):
    """1x1 convolution at every `stride`-th position, without bias, for a block that changes the shape.

    With a stride and fewer than `NARROW` input channels, positions are selected first and then convolved without
    stride; the result is the same. Otherwise oneDNN (3.12, in PyTorch 2.14.1; its issue 6035) writes the weight
    gradient past the end of a buffer for float32 maps in channels-last format: with fewer than 8 channels on CPUs that
    have at most AVX2, with fewer than 16 channels and large maps on CPUs with AVX-512. The process then crashes, at
    once or later. `docs/onednn_shortcut.md` has the smallest program that shows it.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, 1, stride, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Return maps (B, outputs, H / stride, W / stride), rounded up, of (B, inputs, H, W)."""
        if self.in_channels >= NARROW or self.stride == (1, 1):
            return super().forward(input)
        # Pooling over one position selects it. A slice's gradient would take a tenth of the default student's step.
        return F.conv2d(F.avg_pool2d(input, 1, self.stride), self.weight, self.bias)


class PaddedShortcut(nn.Module):
    """Selects every `stride`-th position and pads the channels with zeros: a shortcut without weights (option A).

    The paper (He et al., CVPR 2016) does not say on which side of the channels the `more` zeros are. Here half of them
    come first and half last, as in published weights (akamaster/pytorch_resnet_cifar10); an odd one comes last (our
    choice).
    """

    def __init__(self, more: int, stride: int) -> None:
        super().__init__()
        self.stride, self.before, self.behind = stride, more // 2, more - more // 2

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps (B, outputs, H / stride, W / stride), rounded up, of (B, inputs, H, W)."""
        return F.pad(F.avg_pool2d(maps, 1, self.stride), (0, 0, 0, 0, self.before, self.behind))

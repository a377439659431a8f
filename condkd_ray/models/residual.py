"""What residual networks of both families share: the basic block (He et al., CVPR 2016, arXiv:1512.03385, figure 2).

Our choice: where a block changes shape its shortcut is a 1x1 convolution with BN (the paper's option B).

Letters: B batch, H W height and width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions with BN beside a shortcut; ReLU after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, maps: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        inner = F.relu(self.bn1(self.conv1(maps)))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(maps))


class ResNetModule(nn.Module):
    """Stem, `stages` (for taps: "stages.0", "stages.1", ...), mean over space, `classifier`.

    `blocks[i]` blocks make stage i; it has `width` times 2 to the i channels, and all but the first halve the map.
    """

    def __init__(self, channels: int, num_classes: int, *, blocks: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        widths = [width, *(width * 2**stage for stage in range(len(blocks)))]
        self.stages = nn.Sequential(
            *(
                _stage(inputs, outputs, count, stride=1 if index == 0 else 2)
                for index, (inputs, outputs, count) in enumerate(zip(widths[:-1], widths[1:], blocks, strict=True))
            )
        )
        self.classifier = nn.Linear(widths[-1], num_classes)
        he_init(self)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, K)."""
        maps = self.stages(F.relu(self.bn(self.conv(images))))
        return self.classifier(maps.mean((2, 3)))


def _stage(inputs: int, outputs: int, blocks: int, *, stride: int) -> nn.Sequential:
    rest = [Block(outputs, outputs, 1) for _ in range(blocks - 1)]
    return nn.Sequential(Block(inputs, outputs, stride), *rest)


def he_init(network: nn.Module) -> None:
    """He initialisation, by fan-out, of all convolutions (He et al., ICCV 2015, arXiv:1502.01852)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

"""ConvNet of dataset condensation (Zhao et al., ICLR 2021, arXiv:2006.05929; DM, WACV 2023, arXiv:2110.04181).

Blocks of 3x3 convolution, instance normalisation with affine parameters, ReLU and 2x2 average pooling, then one linear
layer. 28x28 images are padded to 32x32 by the first convolution, as in the released code of DC, DSA and DM. PyTorch's
own initialisation.

Letters: B batch, C channels, H W height and width, K classes, D features.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from condkd_ray.core.method import require
from condkd_ray.models.network import Network


@dataclass(frozen=True, kw_only=True)
class ConvNet(Network):
    """ConvNet-`depth`; the condensation papers use depth 3 and width 128."""

    paper: ClassVar[str] = "Zhao et al., ICLR 2021"
    name: Literal["convnet"] = "convnet"
    depth: int = 3
    """Blocks; each halves the image."""
    width: int = 128
    """Channels of every block."""

    def __post_init__(self) -> None:
        require(1 <= self.depth <= 10, "convnet depth", self.depth, "1 to 10")
        require(self.width >= 1, "convnet width", self.width, "1 or more")

    @property
    def min_size(self) -> int:
        """2^depth: the last normalisation then has 2x2 positions per channel; one position has variance 0."""
        return 2**self.depth

    def _build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return ConvNetModule(image_shape, num_classes, depth=self.depth, width=self.width)


class ConvNetModule(nn.Module):
    """The modules `blocks` and `classifier`. Distribution matching uses the features of `embed`."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, *, depth: int, width: int) -> None:
        super().__init__()
        channels, *sides = image_shape
        padding = 3 if sides == [28, 28] else 1
        first = _block(channels, width, padding)
        self.blocks = nn.Sequential(first, *(_block(width, width, 1) for _ in range(depth - 1)))
        rows, columns = ((side + 2 * (padding - 1)) // 2**depth for side in sides)
        self.classifier = nn.Linear(width * rows * columns, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) to features (B, D), the flattened output of the last block. Differentiable."""
        return self.blocks(images).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of images (B, C, H, W)."""
        return self.classifier(self.embed(images))


def _block(inputs: int, width: int, padding: int) -> nn.Sequential:
    # GroupNorm with one group per channel is instance normalisation.
    return nn.Sequential(
        nn.Conv2d(inputs, width, 3, padding=padding),
        nn.GroupNorm(width, width),
        nn.ReLU(),
        nn.AvgPool2d(2),
    )

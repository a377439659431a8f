"""VGG-11 with batch normalisation (Simonyan & Zisserman, ICLR 2015, arXiv:1409.1556, column A).

The variant used in data-free distillation: five stages of 3x3 convolutions at widths w, 2w, 4w, 8w, 8w with BN, the
mean over space, and one linear layer instead of three. Stages 1 to 3 start with a pooling that halves the map; the last
stage does so only for images with sides of 64 pixels or more: on CIFAR the last two stages have 4x4 maps. He
initialisation.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from condkd_ray.models.batch_norm import BatchNorm2d
from condkd_ray.models.network import WideNetwork, he_init


@dataclass(frozen=True, kw_only=True)
class Vgg11(WideNetwork):
    """VGG-11 with BN; the teacher of the second CIFAR pair of Fast and later papers."""

    paper: ClassVar[str] = "Simonyan & Zisserman, ICLR 2015"
    name: Literal["vgg11"] = "vgg11"
    width: int = 64
    """Channels of the first stage; the last two have eight times as many."""

    def _build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return VggModule(image_shape, num_classes, width=self.width)


class VggModule(nn.Module):
    """The modules `stages` (layers "stages.0" to "stages.4"), mean over space, `classifier`."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, *, width: int) -> None:
        super().__init__()
        channels, height, width_of_image = image_shape
        self.stages = nn.Sequential(
            _stage(channels, width, 1, pool=False),
            _stage(width, 2 * width, 1, pool=True),
            _stage(2 * width, 4 * width, 2, pool=True),
            _stage(4 * width, 8 * width, 2, pool=True),
            _stage(8 * width, 8 * width, 2, pool=min(height, width_of_image) >= 64),
        )
        self.classifier = nn.Linear(8 * width, num_classes)
        he_init(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of images (B, C, H, W)."""
        return self.classifier(self.stages(images).mean((2, 3)))


def _stage(inputs: int, outputs: int, convs: int, *, pool: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.MaxPool2d(2)] if pool else []
    for channels in (inputs, *(outputs,) * (convs - 1)):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1), BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)

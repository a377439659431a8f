"""Torchvision's classifiers and segmentation networks by name, with random weights.

The classifiers are designed for 224x224 images, the segmentation networks for sides of about 520.

Parameters keep torchvision's names, so that weight files saved from its models load. Our choices: dropout and
stochastic depth are off, because draws from the global generator would make trials unrepeatable; running statistics of
BN have momentum 0.1, PyTorch's default, because with some models' own momentum (0.0003 in `mnasnet`) they would stay
near their initial values for hundreds of steps; grey images are read as colour images with three equal channels, by
summing the first convolution's weights over its input channels.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condkd_ray.core.method import require
from condkd_ray.core.task import BOTH, Task
from condkd_ray.models.network import Network

_MODELS = {
    1: """efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5
        efficientnet_b6 efficientnet_b7 efficientnet_v2_s efficientnet_v2_m efficientnet_v2_l mnasnet0_5 mnasnet0_75
        mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large regnet_x_400mf regnet_x_800mf
        regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf regnet_x_32gf regnet_y_400mf regnet_y_800mf
        regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf regnet_y_128gf resnet18 resnet34 resnet50
        resnet101 resnet152 resnext50_32x4d resnext101_32x8d resnext101_64x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0
        shufflenet_v2_x1_5 shufflenet_v2_x2_0 wide_resnet50_2 wide_resnet101_2""",
    29: "densenet121 densenet161 densenet169 densenet201",
    32: """convnext_tiny convnext_small convnext_base convnext_large vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19
        vgg19_bn""",
    63: "alexnet",
}
"""Models by the smallest image side that they accept, found by trial; models at 1 pad in every layer. Left out:
`googlenet` and `inception_v3` (several outputs in training), `squeezenet` (ends in a convolution), and the transformers
(fixed image size, or maps with channels last)."""
SMALLEST = {model: size for size, models in _MODELS.items() for model in models.split()}
"""Smallest image side, in pixels, of each accepted classifier."""
SEGMENTATION = dict.fromkeys(
    (
        *("deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "deeplabv3_resnet101", "fcn_resnet50", "fcn_resnet101"),
        "lraspp_mobilenet_v3_large",
    ),
    1,
)
"""Smallest image side, in pixels, of each accepted segmentation network."""


class _TasksOfModel:
    """Value of `Torchvision.tasks`: both for the class, for a network the one task that its model is made for."""

    def __get__(self, network: "Torchvision | None", _: type | None = None) -> tuple[Task, ...]:
        if network is None:
            return BOTH
        return ("segmentation",) if network.model in SEGMENTATION else ("classification",)


@dataclass(frozen=True, kw_only=True)
class Torchvision(Network):
    """A convolutional classifier or segmentation network of torchvision, by the model's name.

    For 32x32 images the last map of most classifiers has one position.
    """

    tasks: ClassVar[Any] = _TasksOfModel()
    name: Literal["torchvision"] = "torchvision"
    model: str = "resnet18"
    """Torchvision's name of the model, such as `resnet50` or `efficientnet_b0`; for segmentation `deeplabv3_resnet50`
    and others."""

    def __post_init__(self) -> None:
        accepted = f"{', '.join(sorted(SMALLEST))}; for segmentation {', '.join(sorted(SEGMENTATION))}"
        require(self.model in SMALLEST | SEGMENTATION, "torchvision model", self.model, accepted)

    @property
    def min_size(self) -> int:
        """Smallest side that the model's poolings and kernels accept."""
        return (SMALLEST | SEGMENTATION)[self.model]

    def _build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        channels = image_shape[0]
        require(channels in (1, 3), f"channels of images for torchvision's {self.model}", channels, "1 (grey) or 3")
        from torchvision import models, ops  # not at the top: over a second to import

        dense = self.model in SEGMENTATION
        weights = {"weights": None, **({"weights_backbone": None} if dense else {})}
        module: Any = models.get_model(self.model, **weights, num_classes=num_classes)
        module = SegmentationModule(module.backbone, module.classifier) if dense else module
        for layer in module.modules():
            if isinstance(layer, (nn.Dropout, ops.StochasticDepth)):
                layer.p = 0.0
            elif isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 0.1
        if channels == 1:
            _read_grey(module)
        return module


class SegmentationModule(nn.Module):
    """Torchvision's `backbone` and `classifier` of a segmentation network, which give logits instead of a dictionary.

    Without the auxiliary head, which only trains the backbone.
    """

    def __init__(self, backbone: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K, H, W) of images (B, C, H, W)."""
        maps: Any = self.backbone(images)
        logits = self.classifier(maps.get("out", maps))  # the head of LRASPP reads two maps
        return F.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)


@torch.no_grad()
def _read_grey(module: nn.Module) -> None:
    """Make the first convolution read one channel as if it were three equal channels."""
    first = next(layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
    first.weight = nn.Parameter(first.weight.sum(1, keepdim=True))
    first.in_channels = 1

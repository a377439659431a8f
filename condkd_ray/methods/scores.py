"""Scores of predicted classes: accuracy of images, and intersection over union (IoU) of the classes' pixels.

IoU of a class: pixels that have the class and are predicted as it, divided by the pixels for which either holds
(Everingham et al., IJCV 2010, section 4.2, "segmentation accuracy"). Pixels without a label are left out. Letters: N
images, H W height and width, K classes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from condkd_ray.data.datasets import RealImages

PIXELS = 2**20
"""Pixels of a forward pass; this only limits memory."""


def confusion(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return (K, K) int64 counts: of pixels labelled as the row's class, those predicted as the column's.

    `predicted` and `labels` have one shape; labels below 0 are left out. Does not wait for the device.
    """
    labels, predicted = labels.flatten().long(), predicted.flatten().long()
    # Left out pixels are counted in an additional place, because selecting the others would wait for the device.
    pairs = torch.where(labels < 0, num_classes**2, labels * num_classes + predicted)
    counts = torch.zeros(num_classes**2 + 1, dtype=torch.int64, device=labels.device)
    return counts.scatter_add_(0, pairs, torch.ones_like(pairs))[:-1].view(num_classes, num_classes)


def class_iou(counts: Tensor) -> Tensor:
    """Return (K,) float64: the IoU of each class from its `confusion`; NaN for a class without any pixel."""
    both = counts.diagonal().double()
    return both / (counts.sum(0) + counts.sum(1) - both)


def mean_iou(counts: Tensor) -> Tensor:
    """Return the mean of `class_iou` over the classes that have pixels, a float64 scalar."""
    return class_iou(counts).nanmean()


def named_iou(counts: Tensor, class_names: Sequence[str]) -> dict[str, float]:
    """Return the IoU of each class that has pixels, by name."""
    values = class_iou(counts).tolist()
    return {name: value for name, value in zip(class_names, values, strict=True) if not math.isnan(value)}


def constant_iou(counts: Tensor) -> float:
    """Return the highest mean IoU of a prediction that is one class everywhere: what a teacher must exceed."""
    shares = counts.sum(1).double() / counts.sum()
    return (shares.max() / (shares > 0).sum()).item()


@torch.no_grad()
def predicted_confusion(
    network: nn.Module,
    images: RealImages,
    mean: Sequence[float],
    std: Sequence[float],
    num_classes: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the `confusion` (K, K) of a segmentation network on `device`; images are moved there as uint8.

    `mean`, `std`: of the normalisation, per channel, in units of [0, 1] pixels. The network is left in eval mode.
    """
    network.eval()
    counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
    rows = max(1, PIXELS // math.prod(images.pixels.shape[2:]))
    for first in range(0, len(images), rows):
        part = images[slice(first, first + rows)].to(device)
        counts += confusion(network(part.samples(mean, std).images).argmax(1), part.labels, num_classes)
    return counts

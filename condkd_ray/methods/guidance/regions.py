"""Regions of segmented images: an image and a class that it shows, with the mean of a feature map under that class.

Guidance compares the features of regions as it compares those of whole images in classification. Our choice throughout.
A region has the number b K + k for image b and class k. Letters: B images, H W height and width, h w height and width
of a feature map, K classes, D channels of a map, R regions of an image, M regions in all.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from condkd_ray.core.samples import pixel_counts

MIN_SHARE = 0.01
"""Least share of an image's pixels for a class to count as shown: about one position of a small feature map."""


def shown_classes(labels: Tensor, num_classes: int) -> Tensor:
    """Return (B, K) bool: the classes with at least `MIN_SHARE` of the pixels of labels (B, H, W).

    If none has as many, the classes with the most pixels are shown; an image without any label shows none.
    """
    counts = pixel_counts(labels, num_classes)
    least = counts.amax(1, keepdim=True).clamp(1, max(1, round(MIN_SHARE * labels[0].numel())))
    return counts >= least


def region_numbers(shown: Tensor) -> Tensor:
    """Return the numbers (M,) of all regions of images that show the classes `shown` (B, K); waits for the device."""
    return shown.flatten().nonzero().flatten()


def class_masks(labels: Tensor, num_classes: int) -> Tensor:
    """Return (B, K, H, W) float32: 1 where a pixel of labels (B, H, W) has the class, else 0."""
    classes = torch.arange(num_classes, device=labels.device)
    return (labels[:, None] == classes[:, None, None]).float()


def region_means(maps: Tensor, masks: Tensor) -> Tensor:
    """Return the means of maps (B, D, h, w) under masks (B, K, H, W), (B K, D) float32; 0 under an empty mask.

    The masks are averaged over each position of the map; these shares are its weights in the mean.
    """
    with torch.autocast(maps.device.type, enabled=False):
        weights = F.adaptive_avg_pool2d(masks, (maps.shape[2], maps.shape[3])).flatten(2)
        weights = weights / weights.sum(2, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
        return (weights @ maps.to(weights.dtype).flatten(2).mT).flatten(0, 1)


def draw_regions(shown: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Return the numbers (B R,) of R = `count` regions of each image, given the classes that it shows (B, K).

    The classes are drawn uniformly without replacement, and repeat in the same order if the image shows fewer. An image
    that shows none gets regions of other images, drawn uniformly among those chosen. If no image shows any, the numbers
    have no meaning. Does not wait for the device.
    """
    images, num_classes = shown.shape
    keys = torch.rand(shown.shape, generator=rng, device=shown.device).masked_fill(~shown, -1)
    order = keys.topk(min(count, num_classes), dim=1).indices
    columns = torch.arange(count, device=shown.device) % shown.sum(1, keepdim=True).clamp_min(1)
    first = torch.arange(0, images * num_classes, num_classes, device=shown.device)
    regions = (first[:, None] + order.gather(1, columns)).flatten()
    return regions[own_or_other(shown.flatten()[regions], rng)]


def match_regions(shown: Tensor, wanted: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return for each class of `wanted` (M,) the number of a region with this class, drawn uniformly, and if it exists.

    `shown` (B, K): the classes that each image shows. Where the second tensor (M,) is False, no image shows the class.
    """
    candidates = shown.mT[wanted]
    keys = torch.rand(candidates.shape, generator=rng, device=shown.device).masked_fill(~candidates, -1)
    return keys.argmax(1) * shown.shape[1] + wanted, candidates.any(1)


def own_or_other(valid: Tensor, rng: torch.Generator) -> Tensor:
    """Return for each row of `valid` (M,) its own number if it is True, else that of a random row that is.

    If all are False, each row keeps a number without meaning. Does not wait for the device.
    """
    uniform = torch.rand(2, len(valid), generator=rng, device=valid.device)
    order = uniform[0].masked_fill(~valid, -1).argsort(descending=True)
    others = order[(uniform[1] * valid.sum()).long()]
    return torch.where(valid, torch.arange(len(valid), device=valid.device), others)

"""Classes of the pixels of segmented images. Letters: B images, H W height and width, K classes."""

import torch
from torch import Tensor


def pixel_counts(labels: Tensor, num_classes: int) -> Tensor:
    """Return (B, K) int64: the number of pixels of each class in labels (B, H, W); labels below 0 are left out.

    Does not wait for the device.
    """
    flat = labels.flatten(1).long()
    # Unlabelled pixels are counted in one more place, because selecting the others would wait for the device.
    places = torch.where(flat < 0, num_classes, flat)
    counts = torch.zeros(len(labels), num_classes + 1, dtype=torch.int64, device=labels.device)
    return counts.scatter_add_(1, places, torch.ones_like(places))[:, :-1]

"""A small segmentation set: two kinds of coloured rectangles on a dark ground, noise, and pixels without a class."""

import torch
from torch import nn

from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import MASK, UNLABELLED
from condkd_ray.data.datasets import Dataset, RealImages, own_constants
from condkd_ray.methods.supervised import Supervised

SHAPE, CLASSES, NAMES = (3, 16, 24), 3, ("ground", "red", "blue")
COLOURS = torch.tensor([[40, 40, 40], [200, 60, 60], [60, 60, 200]])
BOUNDS = ((0, 8), (0, 4), (4, 8), (4, 8))
"""Ranges of top, left, height and width of a rectangle."""


def patches(count: int, seed: int = 0) -> RealImages:
    """Return images with a red rectangle on the left, a blue one on the right, and a bottom row without classes."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.zeros(count, *SHAPE[1:], dtype=torch.int64)
    rows, columns = torch.arange(SHAPE[1])[:, None], torch.arange(SHAPE[2])
    for kind in (1, 2):
        top, left, high, wide = (torch.randint(a, b, (count, 1, 1), generator=rng) for a, b in BOUNDS)
        left = left + 12 * (kind - 1)
        inside = (rows >= top) & (rows < top + high) & (columns >= left) & (columns < left + wide)
        labels = torch.where(inside, kind, labels)
    pixels = COLOURS[labels].permute(0, 3, 1, 2) + torch.randint(-30, 31, (count, *SHAPE), generator=rng)
    labels[:, -1] = UNLABELLED
    return RealImages(pixels.clamp(0, 255).to(torch.uint8).contiguous(), labels.to(MASK))


def patch_set(count: int = 48) -> Dataset:
    """Return a data set of `patches`."""
    train, test = patches(count), patches(16, seed=1)
    mean, std = own_constants(train.pixels)
    return Dataset("patches", train, None, test, CLASSES, NAMES, mean, std, True, "digest", task="segmentation")


def trained_weights(dataset: Dataset) -> dict[str, torch.Tensor]:
    """Return weights of `network` that recognise the rectangles."""
    module = network()
    known = {"mean": dataset.mean, "std": dataset.std, "flip_ok": True, "rng": Streams(0)}
    Supervised(epochs=10, batch=8, lr=0.1, shift=0.0).train(module, dataset.train.pixels, dataset.train.labels, **known)
    return module.state_dict()


def network() -> nn.Module:
    """Return an untrained network that sees the colours around each pixel."""
    with Streams(0).forked("init/teacher"):
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, CLASSES, 1))

"""Chunks of random bits, and their comparison."""

import torch

from condkd_ray.core.samples import Encoded

RNG = torch.Generator().manual_seed(0)


def encoded(count, dtype=torch.uint8, shape=(3, 4, 5), classes=7, with_logits=True):
    """Return samples of random bits; float16 ones include infinities and NaN."""
    images = torch.randint(256, (count, *shape), generator=RNG, dtype=torch.uint8)
    if dtype == torch.float16:
        images = torch.randint(-(2**15), 2**15, (count, *shape), generator=RNG, dtype=torch.int16).view(dtype)
    labels = torch.randint(classes, (count,), generator=RNG)
    logits = torch.randn(count, classes, generator=RNG).half()
    return Encoded(images, labels, logits if with_logits else logits[:, :0].clone())


def bits(part):
    return [part.images.contiguous().view(torch.uint8), part.labels, part.logits.view(torch.int16)]


def equal(left, right):
    return all(map(torch.equal, bits(left), bits(right))) and left.images.dtype == right.images.dtype

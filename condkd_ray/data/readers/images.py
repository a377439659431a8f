"""Real images as tensors: what every reader gives."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from condkd_ray.core.device import sent
from condkd_ray.core.method import require
from condkd_ray.core.samples import Samples, to_model, unseen


@dataclass(frozen=True)
class RealImages:
    """Real images as they are: `pixels` uint8 (N, C, H, W), `labels` int64 (N,)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> Self:
        return replace(self, pixels=self.pixels[index], labels=self.labels[index])

    def to(self, device: torch.device | str) -> Self:
        """The same images on `device`, still as uint8."""
        return replace(self, pixels=sent(self.pixels, device), labels=sent(self.labels, device))

    def samples(self, mean: Sequence[float], std: Sequence[float]) -> Samples:
        """All of them as float32 in the teacher's space, four times their bytes; index first where that is much."""
        return unseen(to_model(self.pixels.float() / 255, mean, std), self.labels)


@dataclass(frozen=True)
class Raw(RealImages):
    """Images as a file holds them, with `class_names` by label."""

    class_names: tuple[str, ...]


def resize(pixels: Tensor, size: int) -> Tensor:
    """uint8 (N, C, H, W) to (N, C, size, size), bilinear with antialiasing; images of that size are untouched."""
    from torchvision.transforms import functional  # not at the top: it takes as long to import as digits to load

    if tuple(pixels.shape[-2:]) == (size, size):
        return pixels
    return functional.resize(pixels, [size, size], antialias=True)


def checked(pixels: Tensor, labels: Tensor, names: tuple[str, ...] | None, what: str) -> Raw:
    """A `Raw` whose labels are within its classes, which are numbered where `names` is None."""
    require(len(labels) > 0, f"number of images in {what}", 0, "at least 1")
    lowest, highest = int(labels.min()), int(labels.max())
    names = names or tuple(str(number) for number in range(highest + 1))
    within = lowest >= 0 and highest < len(names)
    require(within, f"labels in {what}", (lowest, highest), f"0 to {len(names) - 1}, the classes")
    return Raw(pixels, labels, names)

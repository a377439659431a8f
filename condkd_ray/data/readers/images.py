"""Real images as tensors: what every reader gives."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from condkd_ray.core.device import sent
from condkd_ray.core.method import require
from condkd_ray.core.samples import Samples, to_model, unseen

Ground = Literal["white", "black"]
MOST_CLASSES = 100_000
"""Of a set that does not name them (our choice): a label beyond is a mistake, and a network of as many no use."""


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
    """Images as a file holds them, with `class_names` by label.

    `ground`: what transparent ones were laid on; None where there were none. `notes`: what the user
    is to be told of the files, a sentence each.
    """

    class_names: tuple[str, ...]
    ground: Ground | None = None
    notes: tuple[str, ...] = ()


def resize(pixels: Tensor, size: int) -> Tensor:
    """uint8 (N, C, H, W) to (N, C, size, size), bilinear with antialiasing; images of that size are untouched."""
    from torchvision.transforms import functional  # not at the top: it takes as long to import as digits to load

    if tuple(pixels.shape[-2:]) == (size, size):
        return pixels
    return functional.resize(pixels, [size, size], antialias=True)


def checked(pixels: Tensor, labels: Tensor, names: tuple[str, ...] | None, what: str) -> Raw:
    """A `Raw` whose labels are within its classes, which are numbered where `names` is None."""
    check_labels(labels.tolist(), names, what)
    return Raw(pixels, labels, names or tuple(str(number) for number in range(int(labels.max()) + 1)))


def check_labels(labels: Sequence[int], names: Sequence[str] | None, what: str) -> None:
    """Raise `InputError` where labels of `what` are none of its classes, which `names` is None of where numbered."""
    require(len(labels) > 0, f"number of images in {what}", 0, "at least 1")
    below = sum(label < 0 for label in labels)
    accepted = f"0 or more ({below} of {len(labels)} are below): -1 mostly stands for labels that a test set keeps back"
    require(not below, f"lowest of the labels in {what}", min(labels), accepted)
    most = len(names) if names else MOST_CLASSES
    accepted = f"less than {most}, the number of its classes" if names else f"less than {most}, or names of the classes"
    require(max(labels) < most, f"highest of the labels in {what}", max(labels), accepted)

"""Real images as tensors, the result of every reader."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from condkd_ray.core.device import sent
from condkd_ray.core.method import require
from condkd_ray.core.samples import Samples, to_model, unseen

Ground = Literal["white", "black"]
Size = int | tuple[int, int]
"""Size of images in pixels: the side of square ones, or height and width."""
MOST_CLASSES = 100_000
"""Most classes of a set without class names (our choice): a larger label is a mistake, not a class."""


@dataclass(frozen=True)
class RealImages:
    """Unmodified real images: `pixels` uint8 (N, C, H, W), `labels` int64 (N,); for segmentation int16 (N, H, W)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> Self:
        return replace(self, pixels=self.pixels[index], labels=self.labels[index])

    def to(self, device: torch.device | str) -> Self:
        """Return the images on `device`, still as uint8."""
        return replace(self, pixels=sent(self.pixels, device), labels=sent(self.labels, device))

    def samples(self, mean: Sequence[float], std: Sequence[float]) -> Samples:
        """Return all images as float32 in the teacher's normalised space: four times the bytes, so index first."""
        return unseen(to_model(self.pixels.float() / 255, mean, std), self.labels.long())


@dataclass(frozen=True)
class Raw(RealImages):
    """Images of a file or folder with `class_names` by label.

    `ground`: background of transparent images; None if there are none. `notes`: sentences about the files for the user.
    """

    class_names: tuple[str, ...]
    ground: Ground | None = None
    notes: tuple[str, ...] = ()


def sides_of(size: Size) -> tuple[int, int]:
    """Return height and width."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def resize(pixels: Tensor, size: Size) -> Tensor:
    """Resize uint8 (N, C, H, W) to `size`, bilinear with antialiasing, unless they have that size."""
    from torchvision.transforms import functional  # imported here, because it takes as long as loading the digits

    sides = sides_of(size)
    if tuple(pixels.shape[-2:]) == sides:
        return pixels
    return functional.resize(pixels, list(sides), antialias=True)


def checked(pixels: Tensor, labels: Tensor, names: tuple[str, ...] | None, what: str) -> Raw:
    """Return a `Raw` after checking its labels; without `names` the classes are numbered."""
    check_labels(labels.tolist(), names, what)
    return Raw(pixels, labels, names or tuple(str(number) for number in range(int(labels.max()) + 1)))


def check_labels(labels: Sequence[int], names: Sequence[str] | None, what: str) -> None:
    """Raise `InputError` if labels of `what` are outside its classes; `names` is None if these are only numbered."""
    require(len(labels) > 0, f"number of images in {what}", 0, "at least 1")
    below = sum(label < 0 for label in labels)
    accepted = f"0 or more ({below} of {len(labels)} are below): -1 usually marks withheld labels of a test set"
    require(not below, f"lowest of the labels in {what}", min(labels), accepted)
    most = len(names) if names else MOST_CLASSES
    accepted = f"less than {most}, the number of its classes" if names else f"less than {most}, or names of the classes"
    require(max(labels) < most, f"highest of the labels in {what}", max(labels), accepted)

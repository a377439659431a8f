"""Real images as tensors, the result of every reader."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from condkd_ray.core.device import sent
from condkd_ray.core.method import require
from condkd_ray.core.samples import MASK, UNLABELLED, Samples, to_model, unseen

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

    def spread(self, count: int) -> Self:
        """Return `count` of the images, spread evenly from the first to the last; some of them again if N < `count`."""
        return self[torch.linspace(0, len(self) - 1, count).round().long()]

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


def resize_masks(labels: Tensor, size: Size) -> Tensor:
    """Resize labels per pixel (N, H, W) to `size`: each pixel gets the label at its centre (`nearest-exact`)."""
    sides = sides_of(size)
    if tuple(labels.shape[-2:]) == sides:
        return labels
    # In float32, which holds all int16 exactly, because PyTorch does not interpolate integers.
    return F.interpolate(labels[:, None].float(), size=sides, mode="nearest-exact")[:, 0].to(labels.dtype)


def check_masks(pixels: Tensor, labels: Tensor, names: Sequence[str], what: str) -> None:
    """Raise `InputError` unless the labels per pixel of `what` fit its images (N, C, H, W) and its classes.

    Accepted: uint8, int16 or int64 (N, H, W); -1 is a pixel without a class.
    """
    expected = (len(pixels), *pixels.shape[2:])
    fits = labels.dtype in (torch.uint8, MASK, torch.int64) and labels.shape == expected
    accepted = f"int16 {expected}, one per pixel; or uint8 or int64"
    require(fits, f"labels of {what}", f"{labels.dtype} {tuple(labels.shape)}", accepted)
    require(len(labels) > 0, f"number of images in {what}", 0, "at least 1")
    lowest, highest = int(labels.min()), int(labels.max())
    accepted = f"{UNLABELLED}, of pixels without a class, or more"
    require(lowest >= UNLABELLED, f"lowest of the labels in {what}", lowest, accepted)
    accepted = f"less than {len(names)}, the number of its classes"
    require(highest < len(names), f"highest of the labels in {what}", highest, accepted)


def without_void(raw: Raw, what: str) -> Raw:
    """Return the images of `what` that have a pixel with a class; a note says how many are left out.

    Raises `InputError` if there are none.
    """
    kept = (raw.labels != UNLABELLED).flatten(1).any(1)
    left_out = len(raw) - int(kept.sum())
    require(left_out < len(raw), f"number of {what} with a labelled pixel", 0, "1 or more: all is void")
    note = f"{left_out} of {len(raw)} {what} are left out: none of their pixels has a class"
    return replace(raw[kept], notes=(*raw.notes, note)) if left_out else raw


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

"""`Samples`, the type of all images that methods exchange: condensed, synthetic, replayed and real ones.

Letters, here and in all shapes: B or N images, C channels, H and W height and width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, Self

import torch
from torch import Tensor

UNLABELLED = -1
"""Label of an image whose class only the teacher determines, before its logits are computed; in segmentation, of a
pixel without a class."""
MASK = torch.int16
"""Type of stored labels per pixel; `Samples` have int64."""
COUNTED = 64
"""Images whose pixels are counted at once: int64 copies of all labels of a data set would be large."""
PixelSpace = Literal["unit", "model"]
"""`unit`: pixels in [0, 1] before normalisation, stored as uint8. `model`: any values, stored as float16."""


@dataclass(frozen=True)
class _Labelled:
    """Images, labels and logits, with one row per image."""

    images: Tensor
    labels: Tensor
    logits: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> Self:
        return type(self)(self.images[index], self.labels[index], self.logits[index])

    @property
    def has_logits(self) -> bool:
        """True if the teacher's logits are present."""
        return self.logits.shape[1] > 0

    @property
    def classes(self) -> Tensor:
        """(B,) int64: the class that the teacher predicts, or `UNLABELLED` without logits.

        In segmentation (B, H, W): without logits, the labels; those of synthetic images are the teacher's predictions.
        """
        if self.has_logits:
            return self.logits.argmax(1)
        return self.labels if self.dense else torch.full_like(self.labels, UNLABELLED)

    @property
    def dense(self) -> bool:
        """True if each pixel has a label (segmentation)."""
        return self.labels.ndim > 1


class Samples(_Labelled):
    """Labelled images with the teacher's logits.

    `images` (B, C, H, W): float32 in the teacher's normalised space. `labels` (B,): int64; between an unconditional
    inversion and `synthesis.settle` they are `UNLABELLED`. `logits` (B, K): float32, the teacher's for exactly these
    images, or (B, 0) if they are not computed yet. In segmentation `labels` are (B, H, W) and `logits` (B, K, H, W).
    """

    def to(self, device: torch.device | str) -> Samples:
        """Return the samples on `device`."""
        return Samples(self.images.to(device), self.labels.to(device), self.logits.to(device))


def unseen(images: Tensor, labels: Tensor) -> Samples:
    """Make samples without teacher logits: `logits` is (B, 0)."""
    return Samples(images, labels, images.new_zeros(len(images), 0))


def cat(parts: Sequence[Samples]) -> Samples:
    """Concatenate samples of one image shape. The result has logits only if all parts have."""
    if len(parts) == 1:
        return parts[0]
    images, labels = torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])
    if not all(part.has_logits for part in parts):
        return unseen(images, labels)
    return Samples(images, labels, torch.cat([part.logits for part in parts]))


def pixel_counts(labels: Tensor, num_classes: int) -> Tensor:
    """Return (B, K) int64: the number of pixels of each class in labels (B, H, W); labels below 0 are left out.

    Does not wait for the device.
    """
    return torch.cat([_counted(part, num_classes) for part in labels.flatten(1).split(COUNTED)])


def _counted(labels: Tensor, num_classes: int) -> Tensor:
    """Return the `pixel_counts` of labels (B, pixels)."""
    labels = labels.long()
    # Pixels without a label are counted in one more place, because selecting the others would wait for the device.
    places = torch.where(labels < 0, num_classes, labels)
    counts = torch.zeros(len(labels), num_classes + 1, dtype=torch.int64, device=labels.device)
    return counts.scatter_add_(1, places, torch.ones_like(places))[:, :-1]


class Encoded(_Labelled):
    """Samples in the form that stores keep: `images` uint8 or float16, `labels` int64, `logits` float16 or (B, 0).

    In segmentation the labels are int16.
    """

    def without_logits(self) -> Encoded:
        """Return the same images and labels with (B, 0) logits."""
        return Encoded(self.images, self.labels, self.logits.new_empty(len(self), 0))

    @property
    def num_bytes(self) -> int:
        """Size of the three tensors in bytes."""
        return sum(t.numel() * t.element_size() for t in (self.images, self.labels, self.logits))


@dataclass(frozen=True)
class Codec:
    """Converts samples to `Encoded` and back. The conversion is idempotent: a second pass changes nothing.

    `mean`, `std`: the teacher's normalisation, one value per channel, in units of [0, 1] pixels. `logits`: whether the
    trial's store keeps logits; if not, they are computed again when they are needed.
    """

    space: PixelSpace
    mean: tuple[float, ...]
    std: tuple[float, ...]
    logits: bool = True

    def encode(self, samples: Samples) -> Encoded:
        """Convert images to uint8 (values outside [0, 1] are clipped) or float16, and logits to float16."""
        if self.space == "unit":
            images = to_pixels(samples.images, self.mean, self.std)
        else:
            images = samples.images.to(torch.float16)
        labels = samples.labels.to(MASK) if samples.dense else samples.labels
        return Encoded(images.contiguous(), labels, samples.logits.to(torch.float16))

    def decode(self, encoded: Encoded) -> Samples:
        """Convert back to float32 in the teacher's normalised space."""
        images = encoded.images.float()
        if self.space == "unit":
            # In-place operations are twice as fast as four new tensors and give equal bits.
            images = images.div_(255).sub_(_per_channel(self.mean, images)).div_(_per_channel(self.std, images))
        return Samples(images, encoded.labels.long(), encoded.logits.float())


def to_model(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Convert [0, 1] pixels (B, C, H, W) to the teacher's normalised space."""
    return (pixels - _per_channel(mean, pixels)) / _per_channel(std, pixels)


def to_unit(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Invert `to_model`, without clipping."""
    return images * _per_channel(std, images) + _per_channel(mean, images)


def to_pixels(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Convert images from the teacher's normalised space to uint8 pixels; values outside [0, 1] are clipped."""
    return to_unit(images, mean, std).mul(255).round().clamp(0, 255).to(torch.uint8)


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    return _made_once(tuple(values), like.dtype, like.device)


@cache
def _made_once(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    # Cached, because each copy to another device would synchronise. The result must not be written to.
    return torch.tensor(values, dtype=dtype, device=device).view(1, -1, 1, 1)

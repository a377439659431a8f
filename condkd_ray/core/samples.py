"""`Samples`: the one currency between the families. Condensed, synthetic, replayed and real images are all this type.

Letters, here and in all shapes: B or N images, C channels, H W height and width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, Self

import torch
from torch import Tensor

UNLABELLED = -1
"""In the place of a class that only the teacher can tell, and has not been asked for."""
PixelSpace = Literal["unit", "model"]
"""`unit`: pixels lie in [0, 1] before normalisation, kept as uint8. `model`: free values, kept as float16."""


@dataclass(frozen=True)
class _Labelled:
    """Images, labels and logits, row by row."""

    images: Tensor
    labels: Tensor
    logits: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> Self:
        return type(self)(self.images[index], self.labels[index], self.logits[index])

    @property
    def asked(self) -> bool:
        """Whether the teacher's logits are there."""
        return self.logits.shape[1] > 0

    @property
    def classes(self) -> Tensor:
        """(B,) int64: the teacher's class of each, `UNLABELLED` where it has not been asked."""
        return self.logits.argmax(1) if self.asked else torch.full_like(self.labels, UNLABELLED)


class Samples(_Labelled):
    """Labelled images with the teacher's answer.

    `images` (B, C, H, W) float32 in the teacher's normalised space; `labels` (B,) int64, `UNLABELLED` between an
    unconditional inversion and `synthesis.settle`; `logits` (B, K) float32 of the teacher on just these images, or
    (B, 0) where it has not been asked yet.
    """

    def to(self, device: torch.device | str) -> Samples:
        """The same samples on `device`."""
        return Samples(self.images.to(device), self.labels.to(device), self.logits.to(device))


def unseen(images: Tensor, labels: Tensor) -> Samples:
    """Samples the teacher has not been asked about: `logits` is (B, 0)."""
    return Samples(images, labels, images.new_zeros(len(images), 0))


def cat(parts: Sequence[Samples]) -> Samples:
    """Samples one after the other, of one image shape. They have logits only where all parts do."""
    if len(parts) == 1:
        return parts[0]
    images, labels = torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])
    if not all(part.asked for part in parts):
        return unseen(images, labels)
    return Samples(images, labels, torch.cat([part.logits for part in parts]))


class Encoded(_Labelled):
    """Samples as every store keeps them: `images` uint8 or float16, `labels` int64, `logits` float16 or (B, 0)."""

    def without_logits(self) -> Encoded:
        """The same images and labels, with (B, 0) logits."""
        return Encoded(self.images, self.labels, self.logits.new_empty(len(self), 0))

    @property
    def num_bytes(self) -> int:
        """Bytes of the three tensors."""
        return sum(t.numel() * t.element_size() for t in (self.images, self.labels, self.logits))


@dataclass(frozen=True)
class Codec:
    """How samples become `Encoded` and back. `decode(encode(x))` is reached after one pass: encoding is idempotent.

    `mean`, `std`: the teacher's normalisation, one value a channel, in units of [0, 1] pixels. `logits`: whether the
    trial's store gives logits back with its samples; where it does not, who needs them asks the teacher.
    """

    space: PixelSpace
    mean: tuple[float, ...]
    std: tuple[float, ...]
    logits: bool = True

    def encode(self, samples: Samples) -> Encoded:
        """To uint8 (values outside [0, 1] are clipped) or float16 images; logits to float16."""
        if self.space == "unit":
            images = to_pixels(samples.images, self.mean, self.std)
        else:
            images = samples.images.to(torch.float16)
        return Encoded(images.contiguous(), samples.labels, samples.logits.to(torch.float16))

    def decode(self, encoded: Encoded) -> Samples:
        """Back to float32 in the teacher's space."""
        images = encoded.images.float()
        if self.space == "unit":
            # In place: twice as fast as four new tensors, and equal to the last bit.
            images = images.div_(255).sub_(_per_channel(self.mean, images)).div_(_per_channel(self.std, images))
        return Samples(images, encoded.labels, encoded.logits.float())


def to_model(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """[0, 1] pixels (B, C, H, W) to the teacher's normalised space."""
    return (pixels - _per_channel(mean, pixels)) / _per_channel(std, pixels)


def to_unit(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """The inverse of `to_model`; not clipped."""
    return images * _per_channel(std, images) + _per_channel(mean, images)


def to_pixels(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """The uint8 pixels of images in the teacher's space; what lies outside of [0, 1] is clipped."""
    return to_unit(images, mean, std).mul(255).round().clamp(0, 255).to(torch.uint8)


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    return _made_once(tuple(values), like.dtype, like.device)


@cache
def _made_once(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    # To another device each would be a copy that is waited for. Nobody writes to them.
    return torch.tensor(values, dtype=dtype, device=device).view(1, -1, 1, 1)

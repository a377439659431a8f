"""Space of a condensed set's pixels, estimated from the pixels alone.

The known spaces are those in which sets are published: 0 to 255, [0, 1], [-1, 1], normalised with the teacher's or
other usual constants, and normalised twice, which is a mistake. Condensed pixels leave their bounds by design, so a
value out of bounds refutes no space. Three properties give evidence, in nats: the mean and spread relative to real
images, whether the pixels fill the bounds of images and stay within, and whether they are integer grey values. All of
this is our choice. Letters: N images, C channels, H W height and width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from condkd_ray.core.samples import to_model, to_unit
from condkd_ray.data.datasets import CONSTANTS, Constants

SpaceName = Literal["unit", "signed", "normalised", "uint8", "twice"]

CERTAIN = 5.0
"""Lead in nats with which the pixels alone determine the space."""
GREY_VALUES, FILLED, TYPICAL = 30.0, 4.0, 3.0
"""Evidence of pixels that are integer grey values; of pixels that stay within the bounds of images and fill most of the
range (twice if they touch both bounds); and of a mean and spread typical of published sets."""
PRIOR = {"others": -1.5, "twice": -8.0}
"""Prior evidence for constants other than the teacher's, and for the mistake."""
MEAN_OFF, SPREAD_ABOVE, SPREAD_BELOW = 0.35, 0.5, 0.3
"""Standard deviations assumed for condensed sets: of their mean, in units of real images' spread, and of the logarithm
of their spread as a multiple of real images'. Published sets have 1.0 to 1.4 times real images' spread, some with one
image per class 5 times, and means within 0.25."""
TYPICAL_MEAN, TYPICAL_SPREAD = 0.3, (0.75, 1.6)
MAX_PIXELS = 100_000
"""Limit of the pixels of a channel that are analysed."""
MIN_LEVELS = 8
"""Least number of different values in a channel that can count as grey values."""

USUAL: dict[str, Constants] = {
    **{name: constants for name, constants in CONSTANTS.items()},
    "cifar10 (0.247)": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Constants with which images are usually normalised, by name."""


@dataclass(frozen=True)
class Space:
    """One interpretation of pixels: a channel's value v means the [0, 1] pixel v * std + mean."""

    name: SpaceName
    mean: tuple[float, ...]
    std: tuple[float, ...]
    whose: str = "the teacher's"
    """Origin of the constants of a normalised space."""

    @property
    def title(self) -> str:
        """Name of the space in sentences."""
        named = {"unit": "[0, 1]", "signed": "[-1, 1]", "uint8": "0 to 255", "twice": "normalised twice"}
        return named.get(self.name, f"normalised by {self.whose} constants")

    @property
    def flags(self) -> str:
        """Command-line flags that declare the space."""
        if self.name == "twice" or (self.name == "normalised" and self.whose != "the teacher's"):
            mean, std = (" ".join(f"{value:.5g}" for value in values) for values in (self.mean, self.std))
            return f"--condensed-mean {mean} --condensed-std {std}"
        return f"--condensed-space {self.name}"

    def convert(self, pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        """Convert pixels (N, C, H, W) of this space, float or uint8, to a teacher's space with `mean` and `std`."""
        pixels = pixels.float()
        if self.name == "normalised" and (self.mean, self.std) == (tuple(mean), tuple(std)):
            return pixels
        return to_model(self.unit(pixels), mean, std)

    def unit(self, pixels: Tensor) -> Tensor:
        """Return the [0, 1] pixels; condensed ones leave these bounds."""
        # Special cases, because multiplying and adding the constants would change the last bits.
        if self.name == "uint8":
            return pixels / 255
        return pixels if self.name == "unit" else to_unit(pixels, self.mean, self.std)

    def differs(self, other: Self, std: Sequence[float]) -> bool:
        """Return whether the choice between the two spaces makes a difference to a teacher with `std`."""
        scales = [abs(math.log(a / b)) for a, b in zip(self.std, other.std, strict=True)]
        shifts = [abs(a - b) / s for a, b, s in zip(self.mean, other.mean, std, strict=True)]
        return max(scales) > 0.35 or max(shifts) > 0.5


def plain(name: Literal["unit", "signed", "uint8"], channels: int) -> Space:
    """Return one of the spaces without constants."""
    mean, std = {"unit": (0.0, 1.0), "signed": (0.5, 0.5), "uint8": (0.0, 1 / 255)}[name]
    return Space(name, (mean,) * channels, (std,) * channels)


def known_spaces(mean: tuple[float, ...], std: tuple[float, ...]) -> list[Space]:
    """Return all possible spaces of a set for a teacher with these constants, each once."""
    teacher = Space("normalised", mean, std)
    twice = tuple(m * s + m for m, s in zip(mean, std, strict=True))
    found = [teacher, *(plain(name, len(mean)) for name in ("unit", "signed", "uint8"))]
    found += [Space("normalised", *usual, whose=f"{name}'s") for name, usual in USUAL.items()]
    found.append(Space("twice", twice, tuple(s * s for s in std)))
    once = {(space.mean, space.std): space for space in reversed(found) if len(space.mean) == len(mean)}
    return list(reversed(once.values()))


@dataclass(frozen=True)
class ImageStatistics:
    """Statistics of images in the teacher's space: mean of each channel (C,), spread, correlation of neighbours."""

    mean: Tensor
    spread: float
    neighbours: float
    """Correlation of horizontally adjacent pixels: 0.8 to 0.95 for real and published sets, less if whitened."""


def image_statistics(images: Tensor) -> ImageStatistics:
    """Return the statistics of images (N, C, H, W)."""
    pairs = torch.stack([images[..., :-1].flatten(), images[..., 1:].flatten()]).double()
    moved = pairs - pairs.mean(1, keepdim=True)
    both = moved.square().sum(1).prod().sqrt().clamp(min=1e-12)
    return ImageStatistics(images.mean((0, 2, 3)), images.std().item(), (moved.prod(0).sum() / both).item())


def evidence(pixels: Tensor, space: Space, real: ImageStatistics, mean: Sequence[float], std: Sequence[float]) -> float:
    """Return the nats for `space` given pixels (N, C, H, W), for comparison with those for other spaces."""
    unit = space.unit(pixels.float())
    found = PRIOR["others"] if space.whose != "the teacher's" else 0.0
    images = space.convert(pixels, mean, std)
    if space.name == "twice":
        # It moves the mean. Contrast alone, which varies widely among condensed sets, is no sign of it.
        moved = _off(images, real) < _off(pixels.float(), real)
        found += PRIOR["twice"] if moved else -GREY_VALUES
    if _grey_values(pixels, unit) or (space.name == "uint8" and not pixels.is_floating_point()):
        found += GREY_VALUES
    low, high = unit.min().item(), unit.max().item()
    if low >= -0.004 and high <= 1.004 and high - low > 0.8:
        found += FILLED * (2 if low <= 0.004 and high >= 0.996 else 1)
    return found + _statistics(images, real)


def _off(images: Tensor, real: ImageStatistics) -> float:
    """Return the distance between the means of images and real images, in units of the real images' spread."""
    return ((images.mean((0, 2, 3)) - real.mean) / real.spread).square().mean().sqrt().item()


def _statistics(images: Tensor, real: ImageStatistics) -> float:
    off = _off(images, real)
    times = max(images.std().item(), 1e-6) / real.spread
    grown = math.log(times)
    width = SPREAD_ABOVE if grown > 0 else SPREAD_BELOW
    usual = off < TYPICAL_MEAN and TYPICAL_SPREAD[0] <= times <= TYPICAL_SPREAD[1]
    return TYPICAL * usual - (off / MEAN_OFF) ** 2 / 2 - (grown / width) ** 2 / 2


def _grey_values(pixels: Tensor, unit: Tensor) -> bool:
    """Return whether [0, 1] pixels are multiples of 1/255 in all channels: true in the right space only."""
    tolerance = 0.1 if pixels.dtype in (torch.float16, torch.bfloat16) else 0.02
    for channel in unit.transpose(0, 1).flatten(1):
        grey = 255 * channel[:: max(1, len(channel) // MAX_PIXELS)].unique().double()
        whole = ((grey - grey.round()).abs() < tolerance) & (grey > -0.5) & (grey < 255.5)
        if len(grey) < MIN_LEVELS or whole.double().mean() < 0.99:
            return False
    return True

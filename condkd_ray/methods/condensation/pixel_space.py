"""In what space the pixels of somebody else's condensed set are, by the pixels alone.

Known are the spaces that people publish: 0 to 255, [0, 1], [-1, 1], normalised by the teacher's or other usual
constants, and normalised twice, which is a mistake. Condensed pixels leave their bounds by design, so none refutes a
space; each gives evidence, in nats: how mean and spread compare with those of real images, whether the pixels fill the
bounds of images and stay within, and whether they are whole grey values. All of it is our choice.
Letters: N images, C channels, H W height and width.
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
"""Nats by which the pixels alone settle the space."""
WHOLE_GREY, FILLED, TYPICAL = 30.0, 4.0, 3.0
"""Evidence of pixels that are whole grey values; that stay within the bounds of images and fill most of them, and
again if they touch both; and of mean and spread as published sets have them."""
PRIOR = {"others": -1.5, "twice": -8.0}
"""Of other constants than the teacher's, and of the mistake."""
MEAN_OFF, SPREAD_ABOVE, SPREAD_BELOW = 0.35, 0.5, 0.3
"""Standard deviations of what condensed sets have: of their mean, in spreads of real images, and of the logarithm of
their spread as a multiple of real images'. Published ones have 1.0 to 1.4 times real images' spread, some of one image
a class 5 times, and means within 0.25."""
TYPICAL_MEAN, TYPICAL_SPREAD = 0.3, (0.75, 1.6)
ENOUGH = 100_000
"""Pixels of a channel that are looked at."""
LEVELS = 8
"""Different values that a channel must have to be found on the grid of grey values."""

USUAL: dict[str, Constants] = {
    **{name: constants for name, constants in CONSTANTS.items()},
    "cifar10 (0.247)": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Constants with which images are usually normalised, by whose they are."""


@dataclass(frozen=True)
class Space:
    """One way to read pixels: a value v of a channel stands for the [0, 1] pixel v * std + mean."""

    name: SpaceName
    mean: tuple[float, ...]
    std: tuple[float, ...]
    whose: str = "the teacher's"
    """Constants, of the normalised ones."""

    @property
    def title(self) -> str:
        """What it is called in sentences."""
        named = {"unit": "[0, 1]", "signed": "[-1, 1]", "uint8": "0 to 255", "twice": "normalised twice"}
        return named.get(self.name, f"normalised by {self.whose} constants")

    @property
    def flags(self) -> str:
        """How a user declares it."""
        if self.name == "twice" or (self.name == "normalised" and self.whose != "the teacher's"):
            mean, std = (" ".join(f"{value:.5g}" for value in values) for values in (self.mean, self.std))
            return f"--condensed-mean {mean} --condensed-std {std}"
        return f"--condensed-space {self.name}"

    def convert(self, pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        """Pixels (N, C, H, W) of this space, float or uint8, in that of a teacher with `mean` and `std`."""
        pixels = pixels.float()
        if self.name == "normalised" and (self.mean, self.std) == (tuple(mean), tuple(std)):
            return pixels
        return to_model(self.unit(pixels), mean, std)

    def unit(self, pixels: Tensor) -> Tensor:
        """The [0, 1] pixels; condensed ones leave these bounds."""
        # The first two to the last bit as they always were.
        if self.name == "uint8":
            return pixels / 255
        return pixels if self.name == "unit" else to_unit(pixels, self.mean, self.std)

    def differs(self, other: Self, std: Sequence[float]) -> bool:
        """Whether it matters to a teacher with `std` which of the two is taken."""
        scales = [abs(math.log(a / b)) for a, b in zip(self.std, other.std, strict=True)]
        shifts = [abs(a - b) / s for a, b, s in zip(self.mean, other.mean, std, strict=True)]
        return max(scales) > 0.35 or max(shifts) > 0.5


def plain(name: Literal["unit", "signed", "uint8"], channels: int) -> Space:
    """One of the spaces without constants."""
    mean, std = {"unit": (0.0, 1.0), "signed": (0.5, 0.5), "uint8": (0.0, 1 / 255)}[name]
    return Space(name, (mean,) * channels, (std,) * channels)


def known_spaces(mean: tuple[float, ...], std: tuple[float, ...]) -> list[Space]:
    """All that a set for a teacher with these constants may be in, each once."""
    teacher = Space("normalised", mean, std)
    twice = tuple(m * s + m for m, s in zip(mean, std, strict=True))
    found = [teacher, *(plain(name, len(mean)) for name in ("unit", "signed", "uint8"))]
    found += [Space("normalised", *usual, whose=f"{name}'s") for name, usual in USUAL.items()]
    found.append(Space("twice", twice, tuple(s * s for s in std)))
    once = {(space.mean, space.std): space for space in reversed(found) if len(space.mean) == len(mean)}
    return list(reversed(once.values()))


@dataclass(frozen=True)
class Looks:
    """What images of a kind look like in the teacher's space: mean a channel (C,), spread, likeness of neighbours."""

    mean: Tensor
    spread: float
    neighbours: float
    """Correlation of pixels that lie side by side: 0.8 to 0.95 of real and published sets, less of whitened ones."""


def looks(images: Tensor) -> Looks:
    """Of images (N, C, H, W)."""
    pairs = torch.stack([images[..., :-1].flatten(), images[..., 1:].flatten()]).double()
    moved = pairs - pairs.mean(1, keepdim=True)
    both = moved.square().sum(1).prod().sqrt().clamp(min=1e-12)
    return Looks(images.mean((0, 2, 3)), images.std().item(), (moved.prod(0).sum() / both).item())


def evidence(pixels: Tensor, space: Space, real: Looks, mean: Sequence[float], std: Sequence[float]) -> float:
    """Nats for `space` of pixels (N, C, H, W), to be compared with those for another."""
    unit = space.unit(pixels.float())
    found = PRIOR["others"] if space.whose != "the teacher's" else 0.0
    images = space.convert(pixels, mean, std)
    if space.name == "twice":
        # It moves the mean. Contrast alone, which condensed sets have at will, is no sign of it.
        moved = _off(images, real) < _off(pixels.float(), real)
        found += PRIOR["twice"] if moved else -WHOLE_GREY
    if _whole_grey(pixels, unit) or (space.name == "uint8" and not pixels.is_floating_point()):
        found += WHOLE_GREY
    low, high = unit.min().item(), unit.max().item()
    if low >= -0.004 and high <= 1.004 and high - low > 0.8:
        found += FILLED * (2 if low <= 0.004 and high >= 0.996 else 1)
    return found + _statistics(images, real)


def _off(images: Tensor, real: Looks) -> float:
    """Distance of the mean from that of real images, in their spreads."""
    return ((images.mean((0, 2, 3)) - real.mean) / real.spread).square().mean().sqrt().item()


def _statistics(images: Tensor, real: Looks) -> float:
    off = _off(images, real)
    times = max(images.std().item(), 1e-6) / real.spread
    grown = math.log(times)
    width = SPREAD_ABOVE if grown > 0 else SPREAD_BELOW
    usual = off < TYPICAL_MEAN and TYPICAL_SPREAD[0] <= times <= TYPICAL_SPREAD[1]
    return TYPICAL * usual - (off / MEAN_OFF) ** 2 / 2 - (grown / width) ** 2 / 2


def _whole_grey(pixels: Tensor, unit: Tensor) -> bool:
    """Whether [0, 1] pixels are multiples of 1/255 in all channels: this happens in the right space alone."""
    tolerance = 0.1 if pixels.dtype in (torch.float16, torch.bfloat16) else 0.02
    for channel in unit.transpose(0, 1).flatten(1):
        grey = 255 * channel[:: max(1, len(channel) // ENOUGH)].unique().double()
        whole = ((grey - grey.round()).abs() < tolerance) & (grey > -0.5) & (grey < 255.5)
        if len(grey) < LEVELS or whole.double().mean() < 0.99:
            return False
    return True

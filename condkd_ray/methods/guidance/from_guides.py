"""Start at condensed images: an inversion begins a batch at condensed images of the target classes instead of noise.

Our choice throughout. Letters: B batch, M images of it that start this way, C channels, H W height and width.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from condkd_ray.core.method import Method, require


class Start(NamedTuple):
    """Start of the first M images of a batch."""

    images: Tensor
    """(M, C, H, W): condensed images of the first M labels of the batch, which generators approximate."""
    noisy: Tensor
    """(M, C, H, W): the same images with noise, the start of pixel optimisation."""
    steps: int
    """Adam steps towards `images`."""
    lr: float
    """Learning rate of the latents in these steps."""


@dataclass(frozen=True, kw_only=True)
class FromGuides(Method):
    """Share of a batch that starts at condensed images, and settings of this start. By default no image starts there.

    Hosts (guided inversion methods) that optimise pixels start at the condensed image plus noise. Hosts that optimise
    latents first invert the image: they take `steps` Adam steps on the mean squared pixel distance between the
    generated and the condensed image.
    """

    ours: ClassVar[tuple[str, ...]] = ("share", "noise", "steps", "lr")
    share: float = 0.0
    """Share of each batch that starts at condensed images, rounded, at least one image. These are the first images of
    the batch, whose labels are in random order. Pixels and latents of the other images stay as they are, but parameters
    that several images share do move: the noisy layer that `nayer` gives the r-th image of each class, and the
    generator of `cmi`. BN in a generator also makes each image depend slightly on all others."""
    noise: float = 0.1
    """Standard deviation of the noise on pixels, in units of the teacher's normalised input; generators get none."""
    steps: int = 20
    """Adam steps on the latents before the host's own steps; for `cmi`, whose generator is new in each round, on the
    generator too."""
    lr: float = 0.05
    """Learning rate of the latents in these steps; a generator uses the host's own `lr`."""

    def __post_init__(self) -> None:
        require(0 <= self.share <= 1, "from_guides share", self.share, "0 <= share <= 1")
        require(0 <= self.noise < math.inf, "from_guides noise", self.noise, ">= 0")
        require(self.steps >= 1, "from_guides steps", self.steps, "an integer >= 1")
        require(0 < self.lr < math.inf, "from_guides lr", self.lr, "> 0")

    def count(self, batch: int) -> int:
        """Return M for a batch of `batch` images."""
        return max(1, round(self.share * batch)) if self.share else 0

    def start(self, images: Tensor, rng: torch.Generator) -> Start:
        """Return the start at condensed `images` (M, C, H, W), with noise from `rng`."""
        noise = torch.randn(images.shape, generator=rng, device=images.device)
        return Start(images, images + self.noise * noise, self.steps, self.lr)

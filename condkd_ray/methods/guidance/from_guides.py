"""Start from the guides: an inversion begins a batch at condensed images of the wanted classes, and not at noise.

Our choice throughout. Letters: B batch, M images of it that start so, C channels, H W height and width.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from condkd_ray.core.method import Method, require


class Start(NamedTuple):
    """Where the first M images of a batch start."""

    images: Tensor
    """(M, C, H, W): condensed images of the first M labels of the batch, which generators are to come near to."""
    noisy: Tensor
    """(M, C, H, W): the same with noise, at which pixels start."""
    steps: int
    """Adam steps towards `images`."""
    lr: float
    """Of latents in these steps."""


@dataclass(frozen=True, kw_only=True)
class FromGuides(Method):
    """Which part of a batch starts at condensed images, and how a host gets there. The default is none.

    Hosts that optimise pixels begin at the image plus noise. Hosts that optimise latents first invert the image: they
    take `steps` Adam steps on the mean squared distance of pixels between what the generator makes and the image.
    """

    ours: ClassVar[tuple[str, ...]] = ("share", "noise", "steps", "lr")
    share: float = 0.0
    """Share of each batch that starts so, rounded, at least one image; the first ones, as the order of labels is
    random. Pixels and latents of the others stay where they are. What images share moves: the noisy layer that `nayer`
    gives the r-th image of each class, and the generator of `cmi`; and BN in a generator makes each image depend a
    little on all."""
    noise: float = 0.1
    """Standard deviation of the noise on pixels, in the units the teacher reads; generators see none."""
    steps: int = 20
    """Adam steps on latents before the host's own steps; for `cmi`, whose generator is new each round, on that too."""
    lr: float = 0.05
    """Of the latents in these steps; a generator moves at the host's own `lr`."""

    def __post_init__(self) -> None:
        require(0 <= self.share <= 1, "from_guides share", self.share, "0 <= share <= 1")
        require(0 <= self.noise < math.inf, "from_guides noise", self.noise, ">= 0")
        require(self.steps >= 1, "from_guides steps", self.steps, "an integer >= 1")
        require(0 < self.lr < math.inf, "from_guides lr", self.lr, "> 0")

    def count(self, batch: int) -> int:
        """M of a batch of `batch` images."""
        return max(1, round(self.share * batch)) if self.share else 0

    def start(self, images: Tensor, rng: torch.Generator) -> Start:
        """The start at condensed `images` (M, C, H, W), with noise from `rng`."""
        noise = torch.randn(images.shape, generator=rng, device=images.device)
        return Start(images, images + self.noise * noise, self.steps, self.lr)

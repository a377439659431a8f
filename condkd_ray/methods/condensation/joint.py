"""What condensers that optimise the images of all classes together have in common: the start, nesting, ConvNets.

What they make the images agree with stands in each paper's file: `optimise`.

Letters: K classes, N real and M synthetic images a class, C channels, H W height and width.
"""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Literal, Self, final

import torch
from torch import Tensor

from condkd_ray.core.method import require
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples, unseen
from condkd_ray.core.view import OnStep, unheard
from condkd_ray.data.augment import dsa
from condkd_ray.methods.condensation.condensation import Condensation, first_per_class, random_per_class
from condkd_ray.methods.condensation.convnets import fresh_convnet
from condkd_ray.models.convnet import ConvNet, ConvNetModule


@dataclass(frozen=True, kw_only=True)
class Joint(Condensation):
    """Base of the condensers whose images depend on each other; pixels are never clamped."""

    condensed_together: int = 10
    """Images per class optimised together, at least `ipc`; a smaller ipc takes the first ones of each class.

    Our choice: the images of one optimisation depend on each other, and sets of one seed are to be nested.
    """
    prefixes: bool = True
    iterations: int = 100
    lr: float = 1.0
    """Of the images."""
    momentum: float = 0.5
    """Of the images."""
    width: int = 32
    """Channels of the ConvNets."""
    depth: int = 3
    """Their blocks; each halves the image. Fewer on images below 16x16, where the last map would be a single place."""
    augment: Literal["dsa", "none"] = "dsa"

    def __post_init__(self) -> None:
        super().__post_init__()
        together = self.condensed_together
        require(together >= self.ipc, "condensation.condensed_together", together, f"{self.ipc} or more, the ipc")
        require(self.iterations >= 1, "condensation.iterations", self.iterations, "1 or more")
        require(self.lr > 0, "condensation.lr", self.lr, "more than 0")
        require(0 <= self.momentum < 1, "condensation.momentum", self.momentum, "0 <= momentum < 1")
        ConvNet(width=self.width, depth=self.depth)  # has bounds of its own

    def whole(self) -> Self:
        """All that are optimised together."""
        return replace(self, ipc=self.condensed_together)

    @abstractmethod
    def optimise(
        self, start: Samples, real: Samples, num_classes: int, *, flip_ok: bool, rng: Streams, on_step: OnStep
    ) -> Tensor:
        """The images (K x M, C, H, W), class-major, from `start`, real ones of as many. May raise `NonFiniteError`."""

    @final
    def condense(
        self, real: Samples, *, num_classes: int, flip_ok: bool, rng: Streams, on_step: OnStep = unheard, **_: object
    ) -> Samples:
        """Optimise `condensed_together` images of each class; the first `ipc` of each. See `optimise` too."""
        rows = random_per_class(real.labels, self.condensed_together, num_classes, rng["condensation"])
        start = unseen(real.images[rows], real.labels[rows])
        images = self.optimise(start, real, num_classes, flip_ok=flip_ok, rng=rng, on_step=on_step)
        return first_per_class(unseen(images, start.labels), self.ipc, num_classes)

    def network(self, images: Tensor, num_classes: int, name: str, rng: Streams) -> ConvNetModule:
        """A fresh ConvNet for `images`, from stream `init/<name>`."""
        return fresh_convnet(images, num_classes, name, rng, width=self.width, depth=self.depth)

    def augmented(self, images: Tensor, use: str, *, flip_ok: bool, rng: Streams) -> Tensor:
        """One randomly chosen augmentation, each image by draws of its own, from stream `augment/<use>`; or none."""
        if self.augment == "none":
            return images
        name = f"augment/{use}"
        return dsa(images, rng=rng[name], choice=rng.host(name), flip=flip_ok)

    def siamese(self, real: Tensor, images: Tensor, *, flip_ok: bool, rng: Streams) -> tuple[Tensor, Tensor]:
        """The same randomly drawn augmentation of both, from stream `augment/condensation`; or none."""
        if self.augment == "none":
            return real, images
        name = "augment/condensation"
        both = torch.cat([real, images])
        both = dsa(both, rng=rng[name], choice=rng.host(name), flip=flip_ok, siamese=True)
        real, images = both.split([len(real), len(images)])
        return real, images

"""The frozen teacher and what one look at it gives.

Letters: B batch, C channels, H W height and width, K classes, D features.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from condkd_ray.core.method import require
from condkd_ray.core.samples import to_model
from condkd_ray.models.hooks import over_space, tapped, trace, watched

PENULTIMATE = "penultimate"
"""The name of what enters the last linear layer, among layers."""


@dataclass(frozen=True)
class Observation:
    """What the teacher showed of one batch. A value: nothing is kept in the teacher between calls.

    `logits` (B, K); `features` (B, D), what enters the last linear layer; `bn`, for each BN layer in the order of
    execution the (mean, biased variance) of its input in this batch, each (C,), and empty where not asked for; `taps`,
    outputs of the named layers; `input_means` (B, sum of C), where asked for, each image's own means over space of
    the inputs of the named layers, side by side.
    """

    logits: Tensor
    features: Tensor
    bn: tuple[tuple[Tensor, Tensor], ...]
    taps: dict[str, Tensor] = field(default_factory=dict)
    input_means: Tensor | None = None

    def detach(self) -> Observation:
        """The same values outside the graph."""
        return Observation(
            self.logits.detach(),
            self.features.detach(),
            tuple((mean.detach(), var.detach()) for mean, var in self.bn),
            {name: tap.detach() for name, tap in self.taps.items()},
            None if self.input_means is None else self.input_means.detach(),
        )

    def pooled(self, layer: str) -> Tensor:
        """(B, D): the features where `layer` is `penultimate`, else that tap's mean over space."""
        if layer == PENULTIMATE:
            return self.features
        return over_space(self.taps[layer])


@dataclass(eq=False, kw_only=True)
class Teacher:
    """A trained classifier, frozen and in eval mode, with what is known of its training data.

    `image_shape` (C, H, W); `mean`, `std` per channel, in units of [0, 1] pixels; `train_size`, images it was trained
    on; `flip_ok`, whether a mirrored image keeps its class (False for digits).
    """

    network: nn.Module = field(kw_only=False)
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_size: int
    flip_ok: bool

    def __post_init__(self) -> None:
        self.network.eval().requires_grad_(False)
        self.mean, self.std = tuple(self.mean), tuple(self.std)
        self._traced = trace(self.network, self.num_classes, self.image_shape)
        self._layers: dict[str, nn.Module] = dict(self.network.named_modules())

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        *,
        num_classes: int,
        image_shape: tuple[int, int, int],
        mean: Sequence[float],
        std: Sequence[float],
        train_size: int = 50_000,
        flip_ok: bool = False,
    ) -> Teacher:
        """A teacher from any module that maps (B, C, H, W) normalised images to (B, K) logits.

        The module is copied; the caller's own is left as it was. Raises `InputError` where images of `image_shape`
        do not give `num_classes` logits, or where no linear layer produces them.
        """
        require(len(mean) == image_shape[0], "length of mean", len(mean), f"{image_shape[0]}, one a channel")
        require(len(std) == image_shape[0], "length of std", len(std), f"{image_shape[0]}, one a channel")
        return cls(
            copy.deepcopy(module),
            num_classes=num_classes,
            image_shape=image_shape,
            mean=tuple(mean),
            std=tuple(std),
            train_size=train_size,
            flip_ok=flip_ok,
        )

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.network.parameters()).device

    @property
    def black(self) -> Tensor:
        """(1, C, 1, 1): pixels of 0 in [0, 1], in the space the teacher reads."""
        return self.normalise(torch.zeros(1, len(self.mean), 1, 1, device=self.device))

    @property
    def running_bn(self) -> list[tuple[Tensor, Tensor]]:
        """(running mean, running variance) of each BN layer, in the order of `Observation.bn`."""
        layers = [self._layers[name] for name in self._traced.bn]
        return [(layer.running_mean, layer.running_var) for layer in layers]  # type: ignore[misc]

    @property
    def bn_inputs(self) -> dict[str, int]:
        """Names of the BN layers and the channels of what enters each, in the order of `Observation.bn`."""
        return {name: len(mean) for name, (mean, _) in zip(self._traced.bn, self.running_bn, strict=True)}

    @property
    def stage_inputs(self) -> dict[str, int]:
        """Names of the stages and the channels of what enters each: see `condkd_ray.models.hooks.stage_inputs`."""
        return self._traced.stages

    @property
    def num_features(self) -> int:
        """D: how many values enter the last linear layer."""
        return self._traced.classifier.in_features

    @property
    def weighted(self) -> dict[str, nn.Linear | nn.Conv2d]:
        """Linear layers and convolutions by name, in the order in which they run; the last linear one is not there."""
        return {name: self._layers[name] for name in self._traced.weighted}  # type: ignore[misc]

    def to(self, device: torch.device | str) -> Teacher:
        """The same teacher on `device` (moved, not copied)."""
        self.network.to(device)
        return self

    def normalise(self, pixels: Tensor) -> Tensor:
        """[0, 1] pixels (B, C, H, W) to the space the teacher reads."""
        return to_model(pixels, self.mean, self.std)

    def logits(self, images: Tensor) -> Tensor:
        """(B, K) logits, differentiable in `images`; no hook runs."""
        return self.network(images).float()

    @torch.no_grad()
    def answers(self, images: Tensor) -> Tensor:
        """(B, K) logits of any number of images, in batches and outside the graph."""
        return torch.cat([self.logits(part) for part in images.split(512)])

    def observe(
        self, images: Tensor, layers: Sequence[str] = (), *, bn: bool = True, input_means: Sequence[str] = ()
    ) -> Observation:
        """One forward pass over `images` (B, C, H, W): outputs of `layers`, means of what enters `input_means`.

        Without `bn` no BN statistics are computed. Raises `InputError` for a layer that does not exist.
        """
        self.check_layers([*layers, *input_means])
        asked = self._traced.bn if bn else ()
        with (
            tapped(self.network, layers) as taps,
            watched({"last": self._traced.classifier}, lambda x: x) as features,
            watched({name: self._layers[name] for name in asked}, moments) as statistics,
            watched({name: self._layers[name] for name in input_means}, over_space) as means,
        ):
            logits = self.network(images).float()
        own = torch.cat([means[name] for name in input_means], 1) if input_means else None
        return Observation(logits, features["last"], tuple(statistics[name] for name in asked), taps, own)

    def answer_from(self, layer: str, values: Tensor, image: Tensor | None = None) -> Tensor:
        """(B, K) logits where `layer` gives `values` (B, ...) for its own output.

        For `penultimate` they are what enters the last linear layer. Right where `decides` holds: what runs before
        sees one `image` (1, C, H, W), a blank one by default, and must not matter.
        """
        if layer == PENULTIMATE:
            handle = self._traced.classifier.register_forward_pre_hook(lambda *_: (values,))
        else:
            handle = self._layers[layer].register_forward_hook(lambda *_: values.clone())
        with handle:
            return self.network(self._blank() if image is None else image).float()

    @torch.no_grad()
    def decides(self, layer: str, width: int) -> bool:
        """Whether `width` values of `layer` alone make the answer. Tried out: three vectors, two images."""
        values = torch.randn(3, width, generator=torch.Generator().manual_seed(0)).to(self.device)
        try:
            answer = self.answer_from(layer, values)
            same, other = self.answer_from(layer, values, self._blank() + 1), self.answer_from(layer, values.neg())
        except (RuntimeError, ValueError):
            return False
        fits = answer.shape == same.shape == (3, self.num_classes)
        return fits and torch.allclose(answer, same) and not torch.allclose(answer, other)

    def _blank(self) -> Tensor:
        return torch.zeros(1, *self.image_shape, device=self.device)

    def check_layers(self, names: Sequence[str]) -> None:
        """Raise `InputError`, with the layers there are, for a name that is none of them."""
        there = self._traced.tappable
        for name in names:
            require(name in there, "teacher layer", name, ", ".join([PENULTIMATE, *there]))


class _Moments(torch.autograd.Function):
    """See `moments`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    def backward(ctx: Any, to_mean: Tensor, to_var: Tensor) -> Tensor:  # type: ignore[override]
        x, mean = ctx.saved_tensors
        count, shape = x.numel() // len(mean), [-1] + [1] * (x.ndim - 2)
        slope = 2 * to_var / count
        return torch.addcmul((to_mean / count - slope * mean).view(shape), x, slope.view(shape))


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, (C,) each, of the channels of float32 values (B, C, ...)."""
    # By the kernel of batch normalisation, as exact as a layer's own statistics when it trains: on a CPU
    # `torch.var_mean` takes ten times as long where channels lie last.
    return _Moments.apply(x)

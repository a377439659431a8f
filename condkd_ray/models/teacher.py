"""The frozen teacher.

Letters: B batch, C channels, H W height and width, K classes, D features, L BN layers, S channels of all of these.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from condkd_ray.core.method import InputError, require
from condkd_ray.models.folding import folded
from condkd_ray.models.hooks import cast, sharing, trace
from condkd_ray.models.observation import PENULTIMATE, Observation, Observer
from condkd_ray.models.own_module import with_safe_convolutions

log = logging.getLogger(__name__)

STATISTICS = ("running_mean", "running_var")


@dataclass(eq=False, kw_only=True)
class Teacher:
    """A trained classifier, frozen and in eval mode, with what is known of its training data.

    Frozen for good: what it has made of its network's weights, such as `bn`, does not follow if these are changed.
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
        self._last = next(name for name, layer in self._layers.items() if layer is self._traced.classifier)
        self._settle()

    def _settle(self) -> None:
        """Make anew what depends on where the tensors of the network lie."""
        self._observers: dict[Any, Observer] = {}
        self._folded: nn.Module | None = None
        self._casts: bool | None = None
        self._mean, self._std = (
            torch.tensor(values, device=self.device).view(1, -1, 1, 1) for values in (self.mean, self.std)
        )
        layers: list[Any] = [self._layers[name] for name in self._traced.bn]
        empty = torch.empty(0, device=self.device)
        running = [torch.cat([getattr(layer, name) for layer in layers] or [empty]) for name in STATISTICS]
        sizes = torch.tensor([layer.num_features for layer in layers], dtype=torch.int64)
        ends = sizes.cumsum(0)[:, None]
        place = torch.arange(len(running[0]))
        inside = (place >= ends - sizes[:, None]) & (place < ends)
        self._bn = torch.stack(running), inside.to(running[0])

    def __getstate__(self) -> dict[str, Any]:
        """What a copy, or a pickle, is made from: without the observers, whose readers write to themselves alone."""
        return vars(self) | {"_observers": {}, "_folded": None}

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
        """Make a teacher of any module that maps (B, C, H, W) normalised images to (B, K) logits.

        The module is copied; the caller's own is left as it was, on its device, in its mode.

        Args:
            module: Ends in a `torch.nn.Linear` with K outputs.
            num_classes: K.
            image_shape: (C, H, W).
            mean: Per channel, of the normalisation that the module was trained with, in units of [0, 1] pixels.
            std: Likewise.
            train_size: Number of images that it was trained on. `train`, `sweep` and `search` take the number of train
                images of their data set instead.
            flip_ok: Whether a mirrored image keeps its class; False is right for all classes.

        Raises:
            InputError: `module` is no module with parameters, cannot be copied, does not map two images of
                `image_shape` to (2, K) finite logits, or no linear layer produces them.
        """
        kind = type(module).__name__
        require(isinstance(module, nn.Module), "teacher module", kind, "a torch.nn.Module")
        require(next(module.parameters(), None) is not None, "parameters of the teacher module", 0, "1 or more")
        require(len(mean) == image_shape[0], "length of mean", len(mean), f"{image_shape[0]}, one a channel")
        require(len(std) == image_shape[0], "length of std", len(std), f"{image_shape[0]}, one a channel")
        require(all(value > 0 for value in std), "std of the teacher", tuple(std), "positive values")
        try:
            network = copy.deepcopy(module)
        except Exception as error:
            text = f"teacher module is a {kind}, which cannot be copied ({error})"
            raise InputError(f"{text}; accepted: a module that copy.deepcopy copies") from error
        made = cls(
            with_safe_convolutions(network),
            num_classes=num_classes,
            image_shape=(image_shape[0], image_shape[1], image_shape[2]),
            mean=tuple(map(float, mean)),
            std=tuple(map(float, std)),
            train_size=train_size,
            flip_ok=flip_ok,
        )
        finite = bool(made.answers(made._some()).isfinite().all())
        what = f"the teacher's answer to 2 images of shape {made.image_shape}"
        require(finite, what, "NaN or infinite", f"finite logits of {num_classes} classes")
        return made

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.network.parameters()).device

    @property
    def black(self) -> Tensor:
        """(1, C, 1, 1): pixels of 0 in [0, 1], in the space the teacher reads."""
        return -self._mean / self._std

    @property
    def bn(self) -> tuple[Tensor, Tensor]:
        """What `bn_distance` compares a look with: (2, S) and (L, S).

        Running means and variances of the BN layers, side by side as in `Observation.bn`; 1 where a channel is of a
        layer, else 0.
        """
        return self._bn

    @property
    def bn_inputs(self) -> dict[str, int]:
        """Names of the BN layers and the channels of what enters each, in the order of `Observation.bn`."""
        return {name: self._layers[name].num_features for name in self._traced.bn}  # type: ignore[misc]

    @property
    def stage_inputs(self) -> dict[str, int]:
        """Names of the stages and the channels of what enters each: see `condkd_ray.models.hooks.stage_inputs`."""
        return self._traced.stages

    @property
    def stage_outputs(self) -> tuple[str, ...]:
        """Names of the layers whose outputs end the stages, in the order of execution: what `layers` of a look can be.

        See `condkd_ray.models.hooks.stage_outputs`. A last stage whose mean over space is the features is left out.
        """
        return self._traced.ends

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
        self._settle()
        return self

    def in_order(self, order: Sequence[int]) -> Teacher:
        """The same teacher (changed, not copied) whose output `order[k]` is what was its output k before."""
        places, classifier = torch.as_tensor(order).argsort().to(self.device), self._traced.classifier
        with torch.no_grad():
            for rows in (classifier.weight, classifier.bias):
                if rows is not None:
                    rows.copy_(rows[places])
        self._settle()
        return self

    def normalise(self, pixels: Tensor) -> Tensor:
        """[0, 1] pixels (B, C, H, W) to the space the teacher reads."""
        return (pixels - self._mean.to(pixels)) / self._std.to(pixels)

    def logits(self, images: Tensor) -> Tensor:
        """(B, K) logits, differentiable in `images`; no hook runs."""
        return self.network(images).float()

    @property
    def answering(self) -> nn.Module:
        """What gives its logits where neither gradients nor what happens inside are wanted.

        Under bfloat16 autocast that is a copy with folded BN, whose weights need no cast; elsewhere the network itself.
        """
        dtype = self._autocast
        if dtype is None:
            return self.network
        if self._folded is None:
            self._folded = folded(self.network, dtype, self._some())
        return self._folded

    @property
    def _takes_cast(self) -> bool:
        """Whether its network runs under the autocast of now with weights that are cast beforehand. Tried out once."""
        dtype = self._autocast
        if self._casts is None and dtype is not None:
            try:
                with torch.no_grad():
                    found, wanted = cast(sharing(self.network), dtype)(self._some()), self.network(self._some())
                self._casts = torch.allclose(found.float(), wanted.float(), rtol=1e-2, atol=1e-2)
            except Exception as error:  # whatever a network's own code raises, such as where it switches autocast off
                log.info(f"the teacher's weights are cast in every pass: {error}")
                self._casts = False
        return bool(self._casts)

    def _some(self) -> Tensor:
        """(2, C, H, W): images on which something is tried out."""
        return torch.randn(2, *self.image_shape, generator=torch.Generator().manual_seed(0)).to(self.device)

    @property
    def _autocast(self) -> torch.dtype | None:
        """bfloat16 within an autocast to that on its device, else None."""
        kind = self.device.type
        enabled = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        return torch.bfloat16 if enabled and torch.get_autocast_dtype(kind) == torch.bfloat16 else None

    @torch.no_grad()
    def answers(self, images: Tensor) -> Tensor:
        """(B, K) logits of any number of images, in batches and outside the graph."""
        return torch.cat([self.answering(part).float() for part in images.split(512)])

    def observe(
        self, images: Tensor, layers: Sequence[str] = (), *, bn: bool = True, input_means: Sequence[str] = ()
    ) -> Observation:
        """One forward pass over `images` (B, C, H, W): outputs of `layers`, means of what enters `input_means`.

        Without `bn` no BN statistics are computed. Raises `InputError` for a layer that does not exist.
        """
        return self.observer(tuple(layers), bn, tuple(input_means))(images)

    def observer(self, layers: tuple[str, ...] = (), bn: bool = True, input_means: tuple[str, ...] = ()) -> Observer:
        """Who takes the look that `observe` describes; the same for equal wishes. Raises as that does."""
        dtype = self._autocast if self._takes_cast else None
        wishes = layers, bn, input_means, dtype
        if wishes not in self._observers:
            self.check_layers([*layers, *input_means])
            asked = {"layers": layers, "bn": self._traced.bn if bn else (), "input_means": input_means}
            self._observers[wishes] = Observer(self.network, self._last, **asked, dtype=dtype)
        return self._observers[wishes]

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

"""The frozen teacher: logits, features, layer outputs and BN statistics.

Letters: B batch, C channels, H W height and width, h w those of a map inside the network, K classes, D features, L BN
layers, S channels of all BN layers together.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from condkd_ray.core.config import Finite, Flag, Positive, checked
from condkd_ray.core.method import InputError, require
from condkd_ray.core.task import Task, is_dense
from condkd_ray.models.folding import folded
from condkd_ray.models.hooks import cast, sharing, trace
from condkd_ray.models.observation import PENULTIMATE, Observation, Observer
from condkd_ray.models.own_module import with_safe_convolutions

log = logging.getLogger(__name__)

STATISTICS = ("running_mean", "running_var")
"""Buffers of a BN layer with the statistics that an inversion matches."""
PIXELS = 2**20
"""Pixels of a forward pass of a segmentation network without gradients; this only limits memory."""


@dataclass(eq=False, kw_only=True)
class Teacher:
    """A trained network, frozen and in eval mode, with the known facts of its training data.

    It gives logits per image (classification) or per pixel (segmentation): see `task`.

    The network must not change afterwards, except by `to` and `in_order`: values computed from its parameters and
    buffers, such as `bn`, would not be updated. `image_shape` (C, H, W); `mean`, `std` per channel, in units of [0, 1]
    pixels; `train_size`, number of training images; `flip_ok`, True if a mirrored image keeps its class (False for
    digits).
    """

    network: nn.Module = field(kw_only=False)
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_size: int
    flip_ok: bool

    def __post_init__(self) -> None:
        """Raises `InputError` if the network does not give such logits: see `hooks.trace`."""
        self.network.eval().requires_grad_(False)
        self.mean, self.std = tuple(self.mean), tuple(self.std)
        self._traced = trace(self.network, self.num_classes, self.image_shape)
        self._layers: dict[str, nn.Module] = dict(self.network.named_modules())
        self._last = next(name for name, layer in self._layers.items() if layer is self._traced.classifier)
        self._settle()

    def _settle(self) -> None:
        """Compute everything that depends on the device or the values of the network's tensors."""
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
        channel = torch.arange(len(running[0]))
        inside = (channel >= ends - sizes[:, None]) & (channel < ends)
        self._bn = torch.stack(running), inside.to(running[0])

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copies and pickles, without the observers and the folded copy, which are made again."""
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
        """Make a teacher from any module that maps normalised images (B, C, H, W) to logits, (B, K) or (B, K, H, W).

        The module is copied; the caller's module keeps its device and mode.

        Args:
            module: Its logits come from a `torch.nn.Linear` with K outputs, or for logits per pixel from a
                `torch.nn.Conv2d` with K outputs, enlarged to H x W. It may return a dictionary with the logits under
                "out", as torchvision's segmentation networks do. It gets float32 images; its weights may have any type.
            num_classes: K.
            image_shape: (C, H, W).
            mean: Mean per channel of the normalisation used in the module's training, in units of [0, 1] pixels.
            std: Standard deviation, likewise.
            train_size: Number of images that it was trained on. `train`, `sweep` and `search` take the number of train
                images of their data set instead.
            flip_ok: Whether a mirrored image keeps its class; False is right for all classes.

        Raises:
            InputError: An argument has a wrong type or value; `module` is no module with parameters, cannot be copied,
                does not map two images of `image_shape` to finite logits, (2, K) or (2, K, H, W), or no linear layer
                or convolution produces them.
        """
        kind = type(module).__name__
        require(isinstance(module, nn.Module), "teacher module", kind, "a torch.nn.Module")
        require(next(module.parameters(), None) is not None, "parameters of the teacher module", 0, "1 or more")
        three = "three integers >= 1: channels, height and width"
        image_shape = checked(tuple[Positive, Positive, Positive], image_shape, "image_shape of the teacher", three)
        num_classes = checked(Positive, num_classes, "num_classes of the teacher", "an integer >= 1")
        train_size = checked(Positive, train_size, "train_size of the teacher", "an integer >= 1")
        flip_ok = checked(Flag, flip_ok, "flip_ok of the teacher", "True or False")
        each = f"a sequence with one finite number per channel ({image_shape[0]})"
        mean = checked(tuple[Finite, ...], mean, "mean of the teacher", each)
        std = checked(tuple[Finite, ...], std, "std of the teacher", each)
        require(len(mean) == image_shape[0], "length of mean", len(mean), f"{image_shape[0]}, one per channel")
        require(len(std) == image_shape[0], "length of std", len(std), f"{image_shape[0]}, one per channel")
        require(all(value > 0 for value in std), "std of the teacher", tuple(std), "positive values")
        try:
            network = copy.deepcopy(module)
        except Exception as error:
            text = f"teacher module is a {kind}, which cannot be copied ({error})"
            raise InputError(f"{text}; accepted: a module that copy.deepcopy copies") from error
        made = cls(
            with_safe_convolutions(network),
            num_classes=num_classes,
            image_shape=image_shape,
            mean=tuple(mean),
            std=tuple(std),
            train_size=train_size,
            flip_ok=flip_ok,
        )
        finite = bool(made.batched_logits(made._probe_images()).isfinite().all())
        what = f"the teacher's output for 2 images of shape {made.image_shape}"
        require(finite, what, "NaN or infinite", f"finite logits of {num_classes} classes")
        return made

    @property
    def device(self) -> torch.device:
        """Device of the network's parameters."""
        return next(self.network.parameters()).device

    @property
    def black(self) -> Tensor:
        """(1, C, 1, 1): black pixels in normalised units."""
        return -self._mean / self._std

    @property
    def bn(self) -> tuple[Tensor, Tensor]:
        """Running statistics for `bn_distance`, (2, S), and the assignment of channels to layers, (L, S).

        The first tensor has running means and variances of the BN layers, concatenated as in `Observation.bn`. The
        second is 1 if the channel belongs to a layer, otherwise 0.
        """
        return self._bn

    @property
    def bn_inputs(self) -> dict[str, int]:
        """Names of the BN layers and their input channels, in the order of `Observation.bn`."""
        return {name: self._layers[name].num_features for name in self._traced.bn}  # type: ignore[misc]

    @property
    def stage_inputs(self) -> dict[str, int]:
        """Names of the stages and their input channels: see `condkd_ray.models.hooks.stage_inputs`."""
        return self._traced.stages

    @property
    def stage_outputs(self) -> tuple[str, ...]:
        """Names of the layers whose outputs end the stages, in the order of execution; usable as `layers` of `observe`.

        See `condkd_ray.models.hooks.stage_outputs`. A last stage whose spatial mean is the features is left out.
        """
        return self._traced.ends

    @property
    def task(self) -> Task:
        """`segmentation` if the network gives logits per pixel, else `classification`."""
        return self._traced.task

    @property
    def num_features(self) -> int:
        """D, the number of inputs of the layer that computes the logits: in segmentation, of channels."""
        last = self._traced.classifier
        return last.in_channels if isinstance(last, nn.Conv2d) else last.in_features

    @property
    def weighted(self) -> dict[str, nn.Linear | nn.Conv2d]:
        """Convolutions and linear layers by name, in the order of execution, without the one for the logits."""
        return {name: self._layers[name] for name in self._traced.weighted}  # type: ignore[misc]

    def to(self, device: torch.device | str) -> Teacher:
        """Move the teacher to `device` and return it."""
        self.network.to(device)
        self._settle()
        return self

    def in_order(self, order: Sequence[int]) -> Teacher:
        """Permute the outputs in place so that output `order[k]` is the former output k, and return this teacher.

        Raises `InputError` if several convolutions compute the logits of a segmentation network.
        """
        former = torch.as_tensor(order).argsort().to(self.device)
        before = self.network(self._probe_images()) if is_dense(self.task) else None
        self._take_outputs(former)
        if before is not None:
            alone = torch.allclose(self.network(self._probe_images()), before[:, former], rtol=1e-3, atol=1e-4)
            if not alone:
                self._take_outputs(torch.as_tensor(order, device=self.device))
            what = f"order of the teacher's outputs, which are computed by {self._last} and other layers,"
            require(alone, what, [*order], "the order as it is, or a network whose last convolution gives the logits")
        self._settle()
        return self

    @torch.no_grad()
    def _take_outputs(self, rows: Tensor) -> None:
        """Replace output k of the layer for the logits by its output `rows[k]`."""
        for values in (self._traced.classifier.weight, self._traced.classifier.bias):
            if values is not None:
                values.copy_(values[rows])

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise [0, 1] pixels (B, C, H, W) with `mean` and `std`."""
        return (pixels - self._mean.to(pixels)) / self._std.to(pixels)

    def logits(self, images: Tensor) -> Tensor:
        """Return logits (B, K) or (B, K, H, W), differentiable in `images`; no hooks for layers run."""
        return self.network(images).float()

    @property
    def logits_network(self) -> nn.Module:
        """The network for logits alone, without gradients or layer outputs.

        Under bfloat16 autocast it is a copy with folded BN and weights in bfloat16, if folding succeeds; otherwise it
        is the network itself.
        """
        dtype = self._autocast
        if dtype is None:
            return self.network
        if self._folded is None:
            self._folded = folded(self.network, dtype, self._probe_images())
        return self._folded

    @property
    def _can_cast(self) -> bool:
        """True if weights converted beforehand give the same logits under the current autocast; tested once."""
        dtype = self._autocast
        if self._casts is None and dtype is not None:
            try:
                with torch.no_grad():
                    images = self._probe_images()
                    found, wanted = cast(sharing(self.network), dtype)(images), self.network(images)
                self._casts = torch.allclose(found.float(), wanted.float(), rtol=1e-2, atol=1e-2)
            except Exception as error:  # the user's network may raise anything, for example if it disables autocast
                log.info(f"the teacher's weights are cast in every pass: {error}")
                self._casts = False
        return bool(self._casts)

    def _probe_images(self) -> Tensor:
        """Return random images (2, C, H, W), the same on each call, for trial passes."""
        return torch.randn(2, *self.image_shape, generator=torch.Generator().manual_seed(0)).to(self.device)

    @property
    def _autocast(self) -> torch.dtype | None:
        """bfloat16 if autocast to bfloat16 is active on the teacher's device, else None."""
        kind = self.device.type
        enabled = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        return torch.bfloat16 if enabled and torch.get_autocast_dtype(kind) == torch.bfloat16 else None

    @torch.no_grad()
    def batched_logits(self, images: Tensor) -> Tensor:
        """Return (B, K) or (B, K, H, W) logits of any number of images, computed in batches without gradients."""
        rows = max(1, PIXELS // math.prod(self.image_shape[1:])) if is_dense(self.task) else 512
        return torch.cat([self.logits_network(part).float() for part in images.split(rows)])

    def observe(
        self, images: Tensor, layers: Sequence[str] = (), *, bn: bool = True, input_means: Sequence[str] = ()
    ) -> Observation:
        """Run one forward pass over `images` (B, C, H, W); collect outputs of `layers`, input means of `input_means`.

        Without `bn` no BN statistics are computed. Raises `InputError` for a layer name that does not exist.
        """
        return self.observer(tuple(layers), bn, tuple(input_means))(images)

    def observer(self, layers: tuple[str, ...] = (), bn: bool = True, input_means: tuple[str, ...] = ()) -> Observer:
        """Return the `Observer` of these layers, cached by its arguments. Raises `InputError` like `observe`."""
        dtype = self._autocast if self._can_cast else None
        key = layers, bn, input_means, dtype
        if key not in self._observers:
            self.check_layers([*layers, *input_means])
            collected = {"layers": layers, "bn": self._traced.bn if bn else (), "input_means": input_means}
            self._observers[key] = Observer(self.network, self._last, **collected, dtype=dtype)
        return self._observers[key]

    def logits_from(self, layer: str, values: Tensor, image: Tensor | None = None) -> Tensor:
        """Return the logits when the output of `layer` is replaced by `values` (B, ...).

        For `penultimate` the values replace the input of the layer that computes the logits. The layers before it run
        on one `image` (1, C, H, W), by default zeros. The result is meaningful only if it does not depend on this
        image: see `decides`.
        """
        if layer == PENULTIMATE:
            handle = self._traced.classifier.register_forward_pre_hook(lambda *_: (values,))
        else:
            handle = self._layers[layer].register_forward_hook(lambda *_: values.clone())
        with handle:
            return self.network(self._blank() if image is None else image).float()

    @torch.no_grad()
    def decides(self, layer: str, width: int) -> bool:
        """Return whether the logits depend on the `width` outputs of `layer` only; tested on 3 vectors and 2 images.

        Never for logits per pixel, which depend on maps.
        """
        values = torch.randn(3, width, generator=torch.Generator().manual_seed(0)).to(self.device)
        try:
            logits = self.logits_from(layer, values)
            same, other = self.logits_from(layer, values, self._blank() + 1), self.logits_from(layer, values.neg())
        except (RuntimeError, ValueError):
            return False
        fits = logits.shape == same.shape == (3, self.num_classes)
        return fits and torch.allclose(logits, same) and not torch.allclose(logits, other)

    def _blank(self) -> Tensor:
        return torch.zeros(1, *self.image_shape, device=self.device)

    def check_layers(self, names: Sequence[str]) -> None:
        """Raise `InputError`, listing the existing layers, for a name that is not among them."""
        there = [PENULTIMATE, *self._traced.tappable]
        for name in names:
            require(name in there, "teacher layer", name, ", ".join(there))

"""Logits, features and layer statistics of one forward pass, and the object that collects them.

Letters: B batch, C channels, H W height and width, h w those of a map inside the network, K classes, D features, S
channels of all BN layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from condkd_ray.models.hooks import HALF_TYPES, cast, over_space, sharing

PENULTIMATE = "penultimate"
"""Layer name that means the input of the layer that computes the logits (see `hooks.Trace`)."""


@dataclass(frozen=True)
class Observation:
    """Values collected in one forward pass of a batch. Nothing is kept in the network between passes.

    `logits` (B, K), of a segmentation network (B, K, H, W); `features` (B, D), the input of the last linear layer, of a
    segmentation network (B, D, h, w), that of the last convolution; `bn` (2, S), means and biased variances in
    this batch of the inputs of the BN layers, concatenated in the order of execution (S channels in all), or (2, 0) if
    they were not requested; `taps`, outputs of the requested layers by name; `input_means` (B, sum of C) if requested,
    the spatial means of each image at the inputs of the requested layers, concatenated; `inside` int64 (B, H, W), in
    segmentation 0 for a pixel of an image and `UNLABELLED` for one that an augmentation moved in from outside, None if
    no augmentation did.
    """

    logits: Tensor
    features: Tensor
    bn: Tensor
    taps: dict[str, Tensor] = field(default_factory=dict)
    input_means: Tensor | None = None
    inside: Tensor | None = None

    def detach(self) -> Observation:
        """Return the same values, detached from the autograd graph."""
        return Observation(
            self.logits.detach(),
            self.features.detach(),
            self.bn.detach(),
            {name: tap.detach() for name, tap in self.taps.items()},
            None if self.input_means is None else self.input_means.detach(),
            self.inside,
        )

    def pooled(self, layer: str) -> Tensor:
        """Return (B, D): the features if `layer` is `penultimate`, else the spatial means of that layer's output.

        The features of a segmentation network stay maps: see `maps`.
        """
        if layer == PENULTIMATE:
            return self.features
        return over_space(self.taps[layer])

    def maps(self, layer: str) -> Tensor:
        """Return the features if `layer` is `penultimate`, else that layer's output, as a map (B, D, h, w).

        A vector is a map of one position.
        """
        values = self.features if layer == PENULTIMATE else self.taps[layer]
        return values[:, :, None, None] if values.ndim == 2 else values


class Observer:
    """Collects an `Observation` in each forward pass of a network, with hooks that stay registered.

    The hooks are in a copy of the modules that shares the network's tensors, so that the network itself runs without
    hooks. A compiler can trace permanent hooks, but not hooks that are registered and removed around each pass.
    """

    def __init__(
        self,
        network: nn.Module,
        classifier: str,
        *,
        layers: Sequence[str] = (),
        bn: Sequence[str] = (),
        input_means: Sequence[str] = (),
        dtype: torch.dtype | None = None,
    ) -> None:
        """Choose what to collect, by layer name: outputs of `layers`, inputs of `classifier`, `bn` and `input_means`.

        In `layers` and `input_means` the name `penultimate` stands for the input of `classifier`.
        `dtype`: if set, the frozen network's weights are converted once to `dtype`, as autocast does in every pass.
        """
        self._network = sharing(network) if dtype is None else cast(sharing(network), dtype)
        self._layers, self._bn, self._means = tuple(layers), tuple(bn), tuple(input_means)
        self._found: dict[tuple[str, str], Any] = {}
        self._read(("last", ""), classifier, lambda x: x.float())
        for name in self._bn:
            self._read(("bn", name), name, moments)
        for name in self._means:
            layer = classifier if name == PENULTIMATE else name
            self._read(("mean", name), layer, lambda x: over_space(x.float()))
        for name in self._layers:
            if name == PENULTIMATE:
                self._read(("tap", name), classifier, lambda x: x.to(torch.float32, copy=True))
            else:
                self._network.get_submodule(name).register_forward_hook(partial(self._keep_output, name))

    def __call__(self, images: Tensor) -> Observation:
        """Run the network on `images` (B, C, H, W) and return the collected values."""
        logits = self._network(images).float()
        found = self._found
        statistics = [found["bn", name] for name in self._bn]
        flat = [mean for mean, _ in statistics] + [var for _, var in statistics]
        observation = Observation(
            logits,
            found["last", ""],
            torch.cat(flat).view(2, -1) if flat else logits.new_zeros(2, 0),
            {name: found["tap", name] for name in self._layers},
            torch.cat([found["mean", name] for name in self._means], 1) if self._means else None,
        )
        found.clear()  # otherwise this pass's graph would be kept until the next pass
        return observation

    def _read(self, key: tuple[str, str], name: str, read: Any) -> None:
        def record(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._found[key] = read(inputs[0])

        self._network.get_submodule(name).register_forward_pre_hook(record)

    def _keep_output(self, name: str, _: nn.Module, __: object, output: Tensor) -> None:
        # A copy: the next layer, such as an in-place ReLU, may overwrite this output.
        self._found["tap", name] = output.to(torch.float32, copy=True)


class _Moments(torch.autograd.Function):
    """Autograd function of `moments`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    def backward(ctx: Any, to_mean: Tensor, to_var: Tensor) -> Tensor:  # type: ignore[override]
        x, mean = ctx.saved_tensors
        return to_inputs(x, mean, to_mean, to_var)


def to_inputs(x: Tensor, mean: Tensor, to_mean: Tensor, to_var: Tensor) -> Tensor:
    """Return the gradient at x (B, C, ...), given the gradients (C,) at its channel means and biased variances.

    `mean` (C,): the channel means of `x`.
    """
    count, shape = x.numel() // len(mean), [-1] + [1] * (x.ndim - 2)
    slope, centre = 2 * to_var / count, mean
    if x.dtype in HALF_TYPES:
        # Subtract the mean first: in half precision the difference of two large products would lose most digits.
        centre = mean - mean.to(x.dtype)
        x = x - mean.to(x.dtype).view(shape)
    level = to_mean / count - slope * centre
    return torch.addcmul(level.to(x.dtype).view(shape), x, slope.to(x.dtype).view(shape))


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance, (C,) each, of the channels of x (B, C, ...); float32 for half-precision x."""
    whole = x.float() if x.dtype in HALF_TYPES else x
    if torch.compiler.is_compiling():
        # The compiler fuses this with the operations before it, so that no float32 map is stored.
        var, mean = torch.var_mean(whole, [0, *range(2, x.ndim)], correction=0)
        return mean, var
    # The kernel of batch normalisation is as exact as a BN layer's own statistics in training. On a CPU
    # `torch.var_mean` takes ten times as long for channels-last tensors. On a GPU the kernel reads bfloat16 and sums
    # in float32.
    return _Moments.apply(whole if x.device.type == "cpu" else x)

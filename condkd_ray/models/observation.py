"""What one look at a network gives, and who takes it.

Letters: B batch, C channels, K classes, D features, S channels of all BN layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from condkd_ray.models.hooks import HALVES, cast, over_space, sharing

PENULTIMATE = "penultimate"
"""The name of what enters the last linear layer, among layers."""


@dataclass(frozen=True)
class Observation:
    """What the teacher showed of one batch. A value: nothing is kept in the teacher between calls.

    `logits` (B, K); `features` (B, D), what enters the last linear layer; `bn` (2, S), means and biased variances in
    this batch of what enters the BN layers, side by side in the order of execution, S channels in all, and (2, 0) where
    not asked for; `taps`, outputs of the named layers; `input_means` (B, sum of C), where asked for, each image's own
    means over space of the inputs of the named layers, side by side.
    """

    logits: Tensor
    features: Tensor
    bn: Tensor
    taps: dict[str, Tensor] = field(default_factory=dict)
    input_means: Tensor | None = None

    def detach(self) -> Observation:
        """The same values outside the graph."""
        return Observation(
            self.logits.detach(),
            self.features.detach(),
            self.bn.detach(),
            {name: tap.detach() for name, tap in self.taps.items()},
            None if self.input_means is None else self.input_means.detach(),
        )

    def pooled(self, layer: str) -> Tensor:
        """(B, D): the features where `layer` is `penultimate`, else that tap's mean over space."""
        if layer == PENULTIMATE:
            return self.features
        return over_space(self.taps[layer])


class Observer:
    """Takes the same look at a network again and again: its readers stay at their layers.

    They stand in a copy of the network that shares its tensors with it, so that the network itself runs without them.
    A compiler follows a look whole; hooks that come and go it cannot follow.
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
        """Of `layers` the outputs are read, of `classifier`, `bn` and `input_means` what enters: names of layers.

        `dtype`: to which autocast would cast the frozen network's weights; that is done once then.
        """
        self._network = sharing(network) if dtype is None else cast(sharing(network), dtype)
        self._layers, self._bn, self._means = tuple(layers), tuple(bn), tuple(input_means)
        self._found: dict[tuple[str, str], Any] = {}
        self._read("last", classifier, lambda x: x.float())
        for name in self._bn:
            self._read("bn", name, moments)
        for name in self._means:
            self._read("mean", name, lambda x: over_space(x.float()))
        for name in self._layers:
            self._network.get_submodule(name).register_forward_hook(partial(self._keep_output, name))

    def __call__(self, images: Tensor) -> Observation:
        """What the network shows of `images` (B, C, H, W)."""
        logits = self._network(images).float()
        found = self._found
        statistics = [found["bn", name] for name in self._bn]
        flat = [mean for mean, _ in statistics] + [var for _, var in statistics]
        seen = Observation(
            logits,
            found["last", ""],
            torch.cat(flat).view(2, -1) if flat else logits.new_zeros(2, 0),
            {name: found["tap", name] for name in self._layers},
            torch.cat([found["mean", name] for name in self._means], 1) if self._means else None,
        )
        found.clear()  # else the graph behind it would live until the next look
        return seen

    def _read(self, what: str, name: str, read: Any) -> None:
        key = what, "" if what == "last" else name

        def see(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._found[key] = read(inputs[0])

        self._network.get_submodule(name).register_forward_pre_hook(see)

    def _keep_output(self, name: str, _: nn.Module, __: object, output: Tensor) -> None:
        # A copy: the layer behind, such as a ReLU, may write into what this one gave.
        self._found["tap", name] = output.to(torch.float32, copy=True)


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
        return to_inputs(x, mean, to_mean, to_var)


def to_inputs(x: Tensor, mean: Tensor, to_mean: Tensor, to_var: Tensor) -> Tensor:
    """The gradient at values x (B, C, ...) with means (C,), of those at their means and biased variances (C,)."""
    count, shape = x.numel() // len(mean), [-1] + [1] * (x.ndim - 2)
    slope, centre = 2 * to_var / count, mean
    if x.dtype in HALVES:
        # Centred first: of two large products that cancel, half precision would leave little.
        centre = mean - mean.to(x.dtype)
        x = x - mean.to(x.dtype).view(shape)
    level = to_mean / count - slope * centre
    return torch.addcmul(level.to(x.dtype).view(shape), x, slope.to(x.dtype).view(shape))


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, (C,) each, of the channels of values (B, C, ...); of half precision, in float32."""
    whole = x.float() if x.dtype in HALVES else x
    if torch.compiler.is_compiling():
        # The compiler fuses all of it with what stands before, so that no float32 map is ever made.
        var, mean = torch.var_mean(whole, [0, *range(2, x.ndim)], correction=0)
        return mean, var
    # By the kernel of batch normalisation, as exact as a layer's own statistics when it trains: on a CPU
    # `torch.var_mean` takes ten times as long where channels lie last. On a GPU it reads bfloat16 and sums float32.
    return _Moments.apply(whole if x.device.type == "cpu" else x)

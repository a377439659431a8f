"""Records the convolutions of a computation and times them alone; the rest of a round's time is overhead."""

import time
from collections import Counter
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Form(NamedTuple):
    """Shape, strides (hence memory format) and type of a tensor, without its values."""

    size: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    def random(self) -> Tensor:
        """Return a random tensor of this form."""
        # An expanded tensor, with strides of 0, gets no more memory than the original one.
        extent = 1 + sum((size - 1) * stride for size, stride in zip(self.size, self.strides, strict=True))
        return torch.randn(extent, dtype=self.dtype).as_strided(self.size, self.strides)


class Call(NamedTuple):
    """An operator and its arguments, with a `Form` in place of each tensor."""

    operator: Callable[..., Any]
    arguments: tuple[Any, ...]

    def seconds(self, repeats: int) -> float:
        """Return the CPU seconds of this call on random tensors: the median of `repeats`, after one warm-up call."""
        arguments = [one.random() if isinstance(one, Form) else one for one in self.arguments]
        taken = []
        for _ in range(repeats + 1):
            begun = time.process_time()
            self.operator(*arguments)
            taken.append(time.process_time() - begun)
        return median(taken[1:])


class Convolutions(TorchDispatchMode):
    """Context that counts each convolution, forward and backward, by shapes, strides, padding and requested gradients.

    It works below autograd and so records what really runs: a backward pass for the input's gradient alone differs
    from one for both gradients.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Call] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "convolution" in func.name():
            assert not kwargs, "keyword arguments are not recorded"
            self.calls[Call(func, tuple(map(_without_values, args)))] += 1
        return func(*args, **(kwargs or {}))

    def seconds(self, repeats: int = 5) -> float:
        """Return the CPU seconds of all counted convolutions, run alone: each distinct call's time times its count."""
        with torch.no_grad():
            return sum(count * call.seconds(repeats) for call, count in self.calls.items())


def _without_values(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return Form(tuple(argument.shape), argument.stride(), argument.dtype)
    return tuple(argument) if isinstance(argument, list) else argument

"""The convolutions of a computation: noted while it runs, then run alone. What a round takes above them is overhead."""

import time
from collections import Counter
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Form(NamedTuple):
    """A tensor but for its values: shape, strides, so the memory format too, and type."""

    size: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    def random(self) -> Tensor:
        """A tensor of this form."""
        # Of a tensor that is expanded, with strides of 0, as large a piece of memory as it has.
        extent = 1 + sum((size - 1) * stride for size, stride in zip(self.size, self.strides, strict=True))
        return torch.randn(extent, dtype=self.dtype).as_strided(self.size, self.strides)


class Call(NamedTuple):
    """An operator and its arguments, a `Form` in the place of each tensor."""

    operator: Callable[..., Any]
    arguments: tuple[Any, ...]

    def seconds(self, repeats: int) -> float:
        """CPU seconds of this call on random tensors: the median of `repeats`, after one that is not counted."""
        arguments = [one.random() if isinstance(one, Form) else one for one in self.arguments]
        taken = []
        for _ in range(repeats + 1):
            begun = time.process_time()
            self.operator(*arguments)
            taken.append(time.process_time() - begun)
        return median(taken[1:])


class Convolutions(TorchDispatchMode):
    """Within it each convolution, forward and backward, is counted: by shapes, strides, padding, what is asked for.

    It stands below autograd, so it hears what is really run: a backward pass of the input's gradient alone is another
    call than one of both gradients.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Call] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "convolution" in func.name():
            assert not kwargs, "an argument by name would be lost"
            self.calls[Call(func, tuple(map(_noted, args)))] += 1
        return func(*args, **(kwargs or {}))

    def seconds(self, repeats: int = 5) -> float:
        """CPU seconds of all that was counted, run alone: of each distinct call its own, times how often it ran."""
        with torch.no_grad():
            return sum(count * call.seconds(repeats) for call, count in self.calls.items())


def _noted(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return Form(tuple(argument.shape), argument.stride(), argument.dtype)
    return tuple(argument) if isinstance(argument, list) else argument

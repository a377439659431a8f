"""Compilation of step functions by `torch.compile`, switched on once around the rounds of a trial.

A method marks a step function with `whole`. Whether it is compiled is decided by the trial, not by the method. Shapes
do not change within a trial, except for tensors marked `growing`. Each function is therefore compiled once, and once
more if a later round differs in kind, for example after a warm-up.
"""

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, Literal, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from condkd_ray.core.method import require

P = ParamSpec("P")
R = TypeVar("R")
Compile = Literal["off", "default", "max-autotune"]
"""`default` fuses operations; `max-autotune` also measures kernels, which takes minutes at the start."""


class Mode(NamedTuple):
    """Arguments of `torch.compile`."""

    backend: str = "inductor"
    mode: str | None = None


_MODE: ContextVar[Mode | None] = ContextVar("_MODE", default=None)
MODES = {
    ("off", True): Mode("cudagraphs"),
    ("default", False): Mode(),
    ("default", True): Mode(mode="reduce-overhead"),
    ("max-autotune", False): Mode(mode="max-autotune-no-cudagraphs"),
    ("max-autotune", True): Mode(mode="max-autotune"),
}
"""Modes by the trial's `compile` and `graphs`; other values of both compile nothing."""


@contextmanager
def compiling(compile: Compile, graphs: bool) -> Iterator[None]:
    """Compile `whole` functions in the context as given; with `graphs`, replay them as CUDA graphs."""
    with in_mode(MODES.get((compile, graphs))):
        yield


@contextmanager
def in_mode(mode: Mode | None) -> Iterator[None]:
    """Compile `whole` functions in the context with these arguments; with None nothing is compiled."""
    before = _MODE.set(mode)
    try:
        with warnings.catch_warnings():
            # PyTorch causes this warning itself while it traces a function; a user cannot avoid it.
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
            yield
    finally:
        _MODE.reset(before)


class Whole(Generic[P, R]):
    """A function that is compiled if the trial's config selects it; `uncompiled` is the original function."""

    def __init__(self, function: Callable[P, R]) -> None:
        self.uncompiled = function
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function, compiled or not."""
        mode = _MODE.get()
        call = self.uncompiled if mode is None else _compiled(self.uncompiled, mode)
        return call(*args, **kwargs)


def whole(function: Callable[P, R]) -> Whole[P, R]:
    """Mark a function that can be compiled as one graph: it draws no random numbers and reads no tensor's value.

    With CUDA graphs its results may be overwritten after the next `begin_step`; copy what must be kept longer.
    """
    return Whole(function)


@functools.cache
def _compiled(function: Callable[..., Any], mode: Mode) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, dynamic=False, backend=mode.backend, mode=mode.mode)


def growing(tensor: Tensor) -> Tensor:
    """Return `tensor`, marked so that `whole` functions are compiled once for all lengths of its first dimension."""
    if _MODE.get() is not None:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
    return tensor


def begin_step() -> None:
    """Announce the next step: CUDA graphs may then overwrite the results of the last one."""
    if _MODE.get() is not None:
        torch.compiler.cudagraph_mark_step_begin()


def clear_compiled() -> None:
    """Delete all compiled code: another trial may have other networks and shapes, and PyTorch limits recompilations."""
    if _compiled.cache_info().currsize:
        _compiled.cache_clear()
        torch.compiler.reset()


def check(compile: Compile, graphs: bool, device: torch.device | str) -> None:
    """Raise `InputError` if `device` or this machine does not support the settings."""
    cuda = torch.device(device).type == "cuda"
    require(cuda or not graphs, "graphs on a CPU", graphs, "false, or a trial on a GPU")
    if compile != "off":
        fault = compiler_fault(str(device))
        require(fault is None, "compile", compile, f"off, or a machine on which PyTorch's compiler works: here {fault}")


@functools.cache
def compiler_fault(device: str) -> str | None:
    """Return the reason why nothing can be compiled for `device`, found by compiling a function; None if it works."""
    try:
        torch.compile(lambda x: x.cos() + x.sin(), fullgraph=True)(torch.ones(8, device=device))
    except Exception as error:  # errors of the compiler and of the programs it calls
        return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return None

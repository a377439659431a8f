"""Functions that a compiler can take whole, and whether it does: said once, around a trial's rounds.

A method marks what it does in a step with `whole`; whether that is compiled is its trial's to say, not the method's.
Shapes within a trial stay as they are, but for what is said to be `growing`; so each such function is compiled once,
and once more where a round differs in kind from the first, such as the end of a warm-up.
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
"""`default` fuses operations; `max-autotune` also tries kernels out, and takes minutes to begin with."""


class _Mode(NamedTuple):
    """How functions are compiled: arguments of `torch.compile`."""

    backend: str = "inductor"
    mode: str | None = None


_MODE: ContextVar[_Mode | None] = ContextVar("_MODE", default=None)
_MODES = {
    ("off", True): _Mode("cudagraphs"),
    ("default", False): _Mode(),
    ("default", True): _Mode(mode="reduce-overhead"),
    ("max-autotune", False): _Mode(mode="max-autotune-no-cudagraphs"),
    ("max-autotune", True): _Mode(mode="max-autotune"),
}


@contextmanager
def compiling(compile: Compile, graphs: bool) -> Iterator[None]:
    """Within it, `whole` functions are compiled so, and, with `graphs`, replayed as CUDA graphs."""
    with _in_mode(_MODES.get((compile, graphs))):
        yield


@contextmanager
def _in_mode(mode: _Mode | None) -> Iterator[None]:
    before = _MODE.set(mode)
    try:
        with warnings.catch_warnings():
            # PyTorch's own, of its own doing as it follows a function: no user can do anything about it.
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
            yield
    finally:
        _MODE.reset(before)


class Whole(Generic[P, R]):
    """A function that is compiled where the trial says so; `uncompiled` is the function as it was written."""

    def __init__(self, function: Callable[P, R]) -> None:
        self.uncompiled = function
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """What the function returns."""
        mode = _MODE.get()
        call = self.uncompiled if mode is None else _compiled(self.uncompiled, mode)
        return call(*args, **kwargs)


def whole(function: Callable[P, R]) -> Whole[P, R]:
    """Mark a function that is compiled whole where its trial says so: it draws nothing, and reads no tensor's value.

    What it returns may be overwritten once the next step has begun (`begin_step`), where graphs are replayed: whoever
    keeps it longer keeps a copy.
    """
    return Whole(function)


@functools.cache
def _compiled(function: Callable[..., Any], mode: _Mode) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, dynamic=False, backend=mode.backend, mode=mode.mode)


def growing(tensor: Tensor) -> Tensor:
    """Itself; a `whole` function is compiled once for all its lengths, and not anew for each."""
    if _MODE.get() is not None:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
    return tensor


def begin_step() -> None:
    """Say that another step begins: graphs may write over what the last one has returned."""
    if _MODE.get() is not None:
        torch.compiler.cudagraph_mark_step_begin()


def forget() -> None:
    """Let go of all that was compiled: another trial may have other networks and shapes, and there is a limit."""
    if _compiled.cache_info().currsize:
        _compiled.cache_clear()
        torch.compiler.reset()


def check(compile: Compile, graphs: bool, device: torch.device | str) -> None:
    """Raise `InputError` where `device`, or this machine, cannot do that."""
    cuda = torch.device(device).type == "cuda"
    require(cuda or not graphs, "graphs on a CPU", graphs, "false, or a trial on a GPU")
    if compile != "off":
        fault = _fault(str(device))
        require(fault is None, "compile", compile, f"off, or a machine on which PyTorch's compiler works: here {fault}")


@functools.cache
def _fault(device: str) -> str | None:
    """Why nothing can be compiled for `device`; found out by compiling something, for a compiler needs many things."""
    try:
        torch.compile(lambda x: x.cos() + x.sin(), fullgraph=True)(torch.ones(8, device=device))
    except Exception as error:  # the compiler's own, and those of the programs it calls
        return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return None

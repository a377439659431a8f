"""Imports other projects' released code from checkouts and runs it on a CPU. The code itself is not changed.

It needs further packages: `pip install kornia termcolor tqdm xlsxwriter`.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple
from unittest.mock import patch

import torch
from torch import nn

from condkd_ray.core.method import InputError, require

NEEDED = "kornia termcolor tqdm xlsxwriter"
Name = Literal["fast", "cmi", "nayer"]


class Peer(NamedTuple):
    """A public code base, called peer in this package."""

    repository: str
    commit: str
    """Commit with which the stored rows were measured."""
    mark: str
    """A file that exists in this code base and in none of the others."""
    modules: tuple[str, ...]
    """Modules that are imported besides `datafree`."""


GENERATOR = "datafree.models.generator"
PEERS: dict[Name, Peer] = {
    # Only Fast's training program is used: its function `train`.
    "fast": Peer("zju-vipa/Fast-Datafree", "0dcecbc", "datafree_kd_tSNE.py", (GENERATOR, "datafree_kd")),
    "cmi": Peer("zju-vipa/CMI", "9e79fa9", "scripts/cmi/cmi_cifar10.sh", (GENERATOR,)),
    "nayer": Peer("tmtuan1307/NAYER", "c6bedcd", "datafree/synthesis/nayer.py", (GENERATOR,)),
}


@contextmanager
def imported(name: Name, checkout: Path) -> Iterator[ModuleType]:
    """Yield the peer's package `datafree`; afterwards it is removed from `sys.modules`.

    All peers use the same package name, so only one can be imported at a time. Raises `InputError` if `checkout` is not
    a checkout of this peer, or if a module that it imports is missing.
    """
    peer, written = PEERS[name], sys.dont_write_bytecode
    require((checkout / peer.mark).is_file(), f"--{name}", str(checkout), f"a checkout of github.com/{peer.repository}")
    with patch.object(sys, "path", [str(checkout.resolve()), *sys.path]), _on_a_cpu():
        # Write no __pycache__ into the checkout.
        sys.dont_write_bytecode = True
        try:
            yield _package(name, checkout)
        finally:
            sys.dont_write_bytecode = written
            for known in [known for known, module in sys.modules.items() if _lies_in(module, checkout)]:
                del sys.modules[known]


def _package(name: Name, checkout: Path) -> ModuleType:
    try:
        package = import_module("datafree")
        for module in PEERS[name].modules:
            import_module(module)
    except ModuleNotFoundError as error:
        accepted = f"a checkout whose requirements are installed: `pip install {NEEDED}`"
        raise InputError(f"--{name} is {str(checkout)!r}, and {error}; accepted: {accepted}") from error
    return package


def check(name: Name, checkout: Path) -> None:
    """Raise `InputError` if the peer's code cannot be imported."""
    with imported(name, checkout):
        pass


@contextmanager
def _on_a_cpu() -> Iterator[None]:
    """Patch PyTorch so that code written for a GPU, four reader processes and an older torchvision runs on this CPU."""
    # The code moves tensors and modules to a GPU inside a step, for the meta gradient and for a clone of the generator.
    unmoved: Any = lambda self, *_, **__: self  # noqa: E731
    # It starts processes each round to read images; their CPU time would not be part of this process's CPU time.
    loader = partial(_in_this_process, torch.utils.data.DataLoader)
    # torchvision has moved this name; a network that is imported but not used here needs it.
    moved = ModuleType("torchvision.models.utils")
    moved.__dict__["load_state_dict_from_url"] = torch.hub.load_state_dict_from_url
    with (
        patch.object(torch.Tensor, "cuda", unmoved),
        patch.object(nn.Module, "cuda", unmoved),
        patch.object(torch.utils.data, "DataLoader", loader),
    ):
        sys.modules[moved.__name__] = moved
        try:
            yield
        finally:
            del sys.modules[moved.__name__]


def _in_this_process(loader: Any, *args: Any, **settings: Any) -> Any:
    return loader(*args, **settings | {"num_workers": 0, "pin_memory": False})


def _lies_in(module: ModuleType, checkout: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).is_relative_to(checkout.resolve())

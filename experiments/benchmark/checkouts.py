"""Other people's released code, imported from checkouts of it, as it runs on a CPU. Nothing in them is changed.

What it needs beyond this project: `pip install kornia termcolor tqdm xlsxwriter`.
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
    """A public code base."""

    repository: str
    commit: str
    """That the stored rows were measured with."""
    mark: str
    """A file that it has and the others do not."""
    modules: tuple[str, ...]
    """What is imported of it, beside `datafree`."""


GENERATOR = "datafree.models.generator"
PEERS: dict[Name, Peer] = {
    # Of the programs that train the one of Fast alone is asked for something: its `train`.
    "fast": Peer("zju-vipa/Fast-Datafree", "0dcecbc", "datafree_kd_tSNE.py", (GENERATOR, "datafree_kd")),
    "cmi": Peer("zju-vipa/CMI", "9e79fa9", "scripts/cmi/cmi_cifar10.sh", (GENERATOR,)),
    "nayer": Peer("tmtuan1307/NAYER", "c6bedcd", "datafree/synthesis/nayer.py", (GENERATOR,)),
}


@contextmanager
def imported(name: Name, checkout: Path) -> Iterator[ModuleType]:
    """Its package `datafree`, usable within the context, and gone from `sys.modules` afterwards.

    All peers call their packages alike, so that there is one at a time. Raises `InputError` where `checkout` is none
    of this peer's, and where a module is missing that it imports.
    """
    peer, written = PEERS[name], sys.dont_write_bytecode
    require((checkout / peer.mark).is_file(), f"--{name}", str(checkout), f"a checkout of github.com/{peer.repository}")
    with patch.object(sys, "path", [str(checkout.resolve()), *sys.path]), _on_a_cpu():
        # No __pycache__ is left in the checkout.
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
        accepted = f"one with all that it imports installed: `pip install {NEEDED}`"
        raise InputError(f"--{name} is {str(checkout)!r}, and {error}; accepted: {accepted}") from error
    return package


def check(name: Name, checkout: Path) -> None:
    """Raise `InputError` where that cannot be imported."""
    with imported(name, checkout):
        pass


@contextmanager
def _on_a_cpu() -> Iterator[None]:
    """The released code means a GPU, four processes that read images, and an older torchvision; here it has none."""
    # It asks for a GPU in the middle of a step, for the meta gradient and for a clone of the generator.
    still: Any = lambda self, *_, **__: self  # noqa: E731
    # What processes of their own do, which it starts each round to read images, is not in this one's CPU time.
    loader = partial(_in_this_process, torch.utils.data.DataLoader)
    # torchvision has moved this name, and one network that nobody here runs is imported with it.
    moved = ModuleType("torchvision.models.utils")
    moved.__dict__["load_state_dict_from_url"] = torch.hub.load_state_dict_from_url
    with (
        patch.object(torch.Tensor, "cuda", still),
        patch.object(nn.Module, "cuda", still),
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

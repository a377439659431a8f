"""What kind of machine a trial ran on: rows of unlike kinds are never paired, as they train unlike teachers."""

import platform
from pathlib import Path

import torch
import yaml
from benchmark.rows import processor

from condkd_ray.core.config import read_tree
from condkd_ray.core.storage import atomic_write

FILE = "machines.yaml"
"""In the folder of a claim's records: the kind of each node that has run there, by its name."""


def kind(gpus: float) -> str:
    """This machine's processor, and the GPU where trials have some of it."""
    gpu = torch.cuda.get_device_name() if gpus and torch.cuda.is_available() else ""
    return "; ".join(filter(None, (f"{platform.machine()}, {processor()}", gpu)))


def known(folder: Path) -> dict[str, str]:
    """The kinds of the nodes whose records lie in `folder`."""
    path = folder / FILE
    return {str(node): str(told) for node, told in read_tree(path).items()} if path.is_file() else {}


def remember(folder: Path, told: str) -> None:
    """Write down that this node is of a kind, before it leaves records."""
    atomic_write(folder / FILE, yaml.safe_dump(known(folder) | {platform.node(): told}).encode())

"""Checks the machine, folders and data of a call, before anything is measured."""

from pathlib import Path

import torch

from condkd_ray.core.environment import default_device, set_up_process
from condkd_ray.core.locks import claim
from condkd_ray.core.method import require
from condkd_ray.core.storage import check_writable
from gpu.parts import Setup
from gpu.plan import NEED_DATA
from gpu.sizes import full, tiny
from gpu.teacher import read


def opened(data_root: Path | None, results: Path, work: Path, *, only: str, small: bool) -> Setup:
    """Return the setup, with data read if a part of `only` needs them, and both folders claimed for this process.

    `small`: run on the CPU. Raises `InputError` if the machine, a folder or the data cannot be used.
    """
    require(data_root is None or data_root.is_dir(), "--data-root", str(data_root), "a folder")
    device = torch.device("cpu" if small else default_device())
    require(small or device.type == "cuda", "device", str(device), "a CUDA device; or --tiny, on the CPU")
    for folder, what in ((results, "folder of --out"), (work, "--work")):
        check_writable(folder, what)
        # Two calls in one folder would overwrite each other's results and distort the times.
        claim(folder, what)
    set_up_process(1)
    setup = Setup(device, tiny() if small else full(), data_root, work)
    if data_root is not None and {*only} & {*NEED_DATA}:
        read(setup)
    return setup

"""(a) Installed versions, and the device's speed at the main operations: matrix products, copies, convolutions."""

import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from gpu.parts import Box, Setup, Verdict
from gpu.timing import milliseconds, peak_tflops

MATRICES, COPIES = "matrix product", "copy"
"""Names of figures that other parts read."""


def ceilings(setup: Setup, box: Box) -> Verdict:
    """Note versions, TFLOP/s of a bfloat16 matrix product, GB/s of a copy, TFLOP/s of the recipe's 3x3 convolutions."""
    box.note("versions", versions(setup.device))
    box.note(MATRICES, {"tflops": _matrices(setup)})
    box.note(COPIES, {"gb_per_second": _copies(setup)})
    with fastest():
        for batch in setup.sizes.batches:
            for channels, side in setup.sizes.maps:
                box.note(
                    f"3x3, {channels} channels, {side}x{side}, batch {batch}",
                    _convolution(setup, batch, channels, side),
                )
    return Verdict(True, "measured; ceilings have no goal")


@contextmanager
def fastest() -> Iterator[None]:
    """Let cuDNN choose the fastest algorithm for each convolution in the block, even if results are not repeatable."""
    backend = torch.backends.cudnn
    before = backend.benchmark, backend.deterministic
    # Not with `torch.backends.cudnn.flags`, which also sets the precision of float32 products.
    backend.benchmark, backend.deterministic = True, False
    try:
        yield
    finally:
        backend.benchmark, backend.deterministic = before


def versions(device: torch.device) -> dict[str, Any]:
    """Return the versions of Python, PyTorch, CUDA and cuDNN; on a GPU also its name, memory and driver."""
    found: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__, "device": str(device)}
    if device.type != "cuda":
        return found
    properties = torch.cuda.get_device_properties(device)
    found |= {"device": properties.name, "memory_gib": properties.total_memory / 2**30}
    found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "driver": _driver()}
    return found | {"data_sheet_tflops": peak_tflops(device)}


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({type(error).__name__})"


def _matrices(setup: Setup) -> float:
    side = setup.sizes.gemm
    # Random values: with zeros a GPU uses less power, and may run faster.
    left, right = (torch.randn(side, side, device=setup.device, dtype=torch.bfloat16) for _ in range(2))
    taken = milliseconds(partial(torch.mm, left, right), setup.device, repeats=setup.sizes.repeats)
    return 2 * side**3 / taken / 1e9


def _copies(setup: Setup) -> float:
    source = torch.randint(0, 256, (setup.sizes.copied,), dtype=torch.uint8, device=setup.device)
    target = torch.empty_like(source)
    taken = milliseconds(partial(target.copy_, source), setup.device, repeats=setup.sizes.repeats)
    # Both the bytes read and the bytes written count.
    return 2 * setup.sizes.copied / taken / 1e6


def _convolution(setup: Setup, batch: int, channels: int, side: int) -> dict[str, float]:
    def values(*shape: int) -> torch.Tensor:
        made = torch.randn(shape, device=setup.device, dtype=torch.bfloat16)
        return made.contiguous(memory_format=torch.channels_last)

    images, weights = values(batch, channels, side, side), values(channels, channels, 3, 3)
    gradient = values(batch, channels, side, side)
    geometry = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False])
    backward = partial(torch.ops.aten.convolution_backward, gradient, images, weights, None, *geometry)
    operations = 2 * images.numel() * channels * 9
    times = {"device": setup.device, "repeats": setup.sizes.repeats}
    forward = milliseconds(partial(F.conv2d, images, weights, padding=1), **times)
    return {
        "forward_tflops": operations / forward / 1e9,
        "backward_tflops": 2 * operations / milliseconds(backward, **times) / 1e9,
    }

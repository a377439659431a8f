"""Copies from the CPU to the computing device without a wait of the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return `tensor` on `device`; the same tensor if it is there already.

    A copy from the CPU to a GPU uses pinned memory, so that the CPU continues at once; later work on the GPU starts
    after the copy. Do not use it for copies to the CPU, which must be complete before they are read.
    """
    there = torch.device(device)
    if tensor.device.type != "cpu" or there.type == "cpu":
        return tensor.to(there)
    if there.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(there, non_blocking=True)


class CopyStream:
    """Copies to a device in parallel with its computation. On a CPU, which has no streams, copies are immediate.

    Ordering relative to the caller's work refers to PyTorch's current stream at the time of the call.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._beside = (torch.cuda.Stream(device), torch.cuda.Event()) if device.type == "cuda" else None

    @contextmanager
    def copying(self, *, after_all: bool) -> Iterator[None]:
        """Make the copies in the block run in parallel with the caller's work.

        `after_all`: start them only after all work that is queued on the device so far. This is needed if they read the
        results of that work or overwrite its inputs.
        """
        if self._beside is None:
            yield
            return
        stream, done = self._beside
        if after_all:
            stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            yield
            done.record(stream)

    def awaited(self) -> None:
        """Make later work of the caller on the device start after the copies so far; the CPU does not wait."""
        if self._beside is not None:
            torch.cuda.current_stream(self._device).wait_event(self._beside[1])

    def keep_until_copied(self, tensor: Tensor) -> None:
        """Declare that copies use the caller's `tensor`: its memory is not reused before they are complete."""
        if self._beside is not None and tensor.is_cuda:
            tensor.record_stream(self._beside[0])

    def keep_until_used(self, tensor: Tensor) -> None:
        """Declare that the caller uses a copied `tensor`: its memory is not reused before that use is complete."""
        if self._beside is not None:
            tensor.record_stream(torch.cuda.current_stream(self._device))

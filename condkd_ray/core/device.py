"""From the CPU to the device that computes, without waiting for it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """`tensor` on `device`; itself where it lies there already.

    From the CPU to a GPU it goes by way of pinned memory, so that the host goes on at once; work that the GPU is given
    later sees it whole. Never used the other way round, where a value that is read has to be waited for.
    """
    there = torch.device(device)
    if tensor.device.type != "cpu" or there.type == "cpu":
        return tensor.to(there)
    if there.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(there, non_blocking=True)


class CopyStream:
    """Copies to a device beside what it computes. Where there are no streams, as on a CPU, each is done at once.

    What it is told of the caller's work holds for the stream that is PyTorch's current one at the call.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._beside = (torch.cuda.Stream(device), torch.cuda.Event()) if device.type == "cuda" else None

    @contextmanager
    def copying(self, *, after_all: bool) -> Iterator[None]:
        """Have the copies within the block made beside the caller's work.

        `after_all`: once all is done that the caller has asked of the device so far; needed where they read what that
        writes, or overwrite what that reads.
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
        """Let what the caller asks of the device from now on begin after the copies so far. The host does not wait."""
        if self._beside is not None:
            torch.cuda.current_stream(self._device).wait_event(self._beside[1])

    def lend(self, tensor: Tensor) -> None:
        """Say that copies use `tensor`, the caller's: its memory goes to nobody else before they are done with it."""
        if self._beside is not None and tensor.is_cuda:
            tensor.record_stream(self._beside[0])

    def hand_over(self, tensor: Tensor) -> None:
        """Say that the caller uses `tensor`, which was made among the copies; as `lend`, the other way round."""
        if self._beside is not None:
            tensor.record_stream(torch.cuda.current_stream(self._device))

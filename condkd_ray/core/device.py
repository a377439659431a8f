"""From the CPU to the device that computes, without waiting for it."""

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

"""Tensors as numpy arrays over the same memory, with their strides: what Ray maps rather than copies."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

Plain = tuple[np.ndarray, tuple[int, ...], tuple[int, ...]]
"""A tensor: its values as they lie in memory, one after the other, and its shape and strides.

Strides are kept because convolutions choose their algorithm by them: other strides, other last bits.
"""


def to_plain(tensor: Tensor) -> Plain:
    """A tensor as numpy, over the same memory where it lies densely on the CPU."""
    tensor = tensor.detach().cpu()
    if not _is_dense(tensor):
        tensor = tensor.contiguous()
    flat = tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())
    return flat.numpy(), tuple(tensor.shape), tensor.stride()


def to_tensor(plain: Plain) -> Tensor:
    """A tensor over the same memory."""
    values, shape, stride = plain
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values).as_strided(shape, stride)


def _is_dense(tensor: Tensor) -> bool:
    """Whether its elements fill a stretch of memory without gap or overlap, in any order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True

"""Tensors as numpy arrays over the same memory, with their strides: what Ray maps rather than copies."""

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Plain(NamedTuple):
    """A tensor: its values as they lie in memory, one after the other.

    Strides are kept because convolutions choose their algorithm by them: other strides, other last bits.
    """

    values: np.ndarray
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def to_plain(value: Any) -> Any:
    """A tensor as a `Plain`, over the same memory where it lies densely on the CPU; so all in dicts and tuples."""
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(map(to_plain, value))
    if not isinstance(value, Tensor):
        return value
    tensor = value.detach().cpu()
    if not _is_dense(tensor):
        tensor = tensor.contiguous()
    flat = tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())
    return Plain(flat.numpy(), tuple(tensor.shape), tensor.stride())


def to_tensor(value: Any) -> Any:
    """The inverse of `to_plain`: tensors over the same memory."""
    if isinstance(value, dict):
        return {key: to_tensor(item) for key, item in value.items()}
    if isinstance(value, Plain):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(value.values).as_strided(value.shape, value.strides)
    return tuple(map(to_tensor, value)) if isinstance(value, tuple) else value


def _is_dense(tensor: Tensor) -> bool:
    """Whether its elements fill a stretch of memory without gap or overlap, in any order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True

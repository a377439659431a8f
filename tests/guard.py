"""Finds operations that make the host wait for a GPU, on a machine without one.

The device `meta` stands for the GPU: its tensors have shapes but no values, so that no value can be read. `Guard`
refuses operations that make the host wait for a value (`item`, a mask as an index, a copy to the host, a blocking copy
to the device), and operations on tensors of both host and device, which fail on a GPU.
On CUDA the same tests run under `torch.cuda.set_sync_debug_mode("error")`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from condkd_ray.core.rng import Streams
from condkd_ray.methods.memory.store import LiveIds

DEVICE = torch.device("meta")
WAITING = {"_local_scalar_dense", "nonzero", "nonzero_static", "masked_select", "unique_dim", "_unique2", "bincount"}
"""Operators for whose result, or its size, the host waits, although PyTorch may run them on `meta`."""
COPIES = {"_to_copy", "copy_"}
_statistics = torch.library.Library("aten", "IMPL", "Meta")
# PyTorch 2.14 has no meta implementation of this operator; on CUDA the outputs have these shapes.
_statistics.impl("batch_norm_update_stats", lambda x, mean, var, momentum: (_of_channels(x), _of_channels(x)))


def _of_channels(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1], dtype=torch.float32)


class WaitsError(AssertionError):
    """The host would wait for the GPU."""


class Guard(TorchDispatchMode):
    """Context in which nothing may make the host wait for `DEVICE`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func._schema.name.removeprefix("aten::")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_device = [tensor for tensor in tensors if tensor.device == DEVICE]
        on_host = [tensor for tensor in tensors if tensor.device != DEVICE]
        if on_device and name in WAITING:
            raise WaitsError(f"the host waits for the result of {name}")
        if name in COPIES:
            self._check_copy(name, args, kwargs)
        elif on_device and any(tensor.ndim for tensor in on_host):
            raise WaitsError(f"{name} of tensors on both sides: {[(tuple(x.shape), x.device.type) for x in tensors]}")
        return func(*args, **kwargs)

    def _check_copy(self, name, args, kwargs):
        source, target = (args[1].device, args[0].device) if name == "copy_" else (args[0].device, kwargs.get("device"))
        waits = name == "_to_copy" or len(args) < 3
        if target is None or torch.device(target) == source:
            return
        if source == DEVICE:
            raise WaitsError(f"{name} from the device to the host, shape {tuple(args[0].shape)}")
        if waits and not kwargs.get("non_blocking"):
            raise WaitsError(f"{name} to the device is waited for, shape {tuple(args[0].shape)}")


@contextmanager
def simulated() -> Iterator[None]:
    """Let `DEVICE` be used like a GPU in the block: with random streams, autocast, and fused optimisers."""
    with pytest.MonkeyPatch.context() as patch:
        # A generator needs values. Streams of the host are not changed.
        patch.setattr(Streams, "__getitem__", lambda self, name: None if self.device == DEVICE else _own(self, name))
        patch.setattr(torch, "autocast", _autocast(torch.autocast))
        for kind in (torch.optim.Adam, torch.optim.SGD):
            patch.setattr(torch.optim, kind.__name__, partial(_plain, kind))
        yield


_own = Streams.__getitem__


def _autocast(real):
    def autocast(device_type, dtype=None, **settings):
        return real("cpu", dtype, enabled=False) if device_type == DEVICE.type else real(device_type, dtype, **settings)

    return autocast


def _plain(kind, parameters, *args, fused=False, **settings):
    """Build an optimiser that is not fused: fused ones reject meta tensors, and a host step counter causes no wait."""
    return kind(parameters, *args, foreach=False, **settings)


_cover = LiveIds.cover


def covered_without_classes(ids, start, classes):
    """Replacement for `LiveIds.cover`, which reads the classes from the copy that is made once per round."""
    _cover(ids, start, torch.zeros(len(classes), dtype=torch.int32))


def without_logits(state):
    """Replacement for the priorities that `prioritized` reads once per round: samples without the student's logits."""
    count = len(state.ids)
    return torch.arange(count), torch.ones(count, dtype=torch.float64), torch.ones(count, dtype=torch.float64)

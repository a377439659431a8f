"""What trials are prepared with, by way of the object store: each content goes there once a sweep, as numpy arrays.

Trials get references. What a reused process has unpacked for one trial serves the next that needs the same.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from condkd_ray.core.samples import Samples
from condkd_ray.data.datasets import RealImages
from condkd_ray.models.network import label
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.diagnosis import Landmarks

Plain = tuple[np.ndarray, tuple[int, ...], tuple[int, ...]]
"""A tensor: its values as they lie in memory, one after the other, and its shape and strides.

Strides are kept because convolutions choose their algorithm by them: other strides, other last bits.
"""


@dataclass(frozen=True)
class Part:
    """One content: what names it, and the reference to its tensors, `dict[str, Plain]`."""

    name: str
    ref: Any


@dataclass(frozen=True)
class Parcel:
    """A `Prepared` to be sent: small, whatever its size. `teacher` holds the plain arguments of `Teacher`."""

    parts: dict[str, Part]
    teacher: dict[str, Any]
    hashes: dict[str, str]


class Depot:
    """Packs for one sweep, on the driver, which owns the objects."""

    def __init__(self) -> None:
        self._parts: dict[str, Part] = {}

    def pack(self, prepared: Prepared) -> Parcel:
        """A parcel; contents that an earlier one holds are not stored again. Needs all of `prepared.hashes`."""
        teacher, hashes = prepared.teacher, prepared.hashes
        # The logits in condensed and proxy sets are the teacher's, and their own hashes do not cover these.
        contents = {
            "teacher": (hashes["teacher"], teacher.network.state_dict()),
            "proxy": (f"{hashes['proxy']}/{hashes['teacher']}", vars(prepared.proxy)),
        }
        for name, images in (("test", prepared.test), ("val", prepared.val)):
            if images is not None:
                contents[name] = (hashes["data"], vars(images))
        if prepared.condensed is not None:
            contents["condensed"] = (f"{hashes['condensed']}/{hashes['teacher']}", vars(prepared.condensed))
        if prepared.landmarks is not None:
            made_from = "/".join(hashes[kind] for kind in ("data", "proxy", "teacher", "condensed"))
            tensors = {name: tensor for name, tensor in vars(prepared.landmarks).items() if tensor is not None}
            contents["landmarks"] = (made_from, tensors)
        names = ("num_classes", "image_shape", "mean", "std", "train_size", "flip_ok")
        return Parcel(
            parts={kind: self._part(f"{kind}/{digest}", tensors) for kind, (digest, tensors) in contents.items()},
            teacher={name: getattr(teacher, name) for name in names},
            hashes=hashes,
        )

    def _part(self, name: str, tensors: dict[str, Tensor]) -> Part:
        import ray

        if name not in self._parts:
            self._parts[name] = Part(name, ray.put({key: to_plain(tensor) for key, tensor in tensors.items()}))
        return self._parts[name]


_unpacked: dict[tuple[str, ...], Any] = {}
"""By name and device: what the last trial of this process used."""


def unpack(config: TrialConfig, parcel: Parcel, device: str) -> Prepared:
    """What was packed, with all but real images on `device`. The teacher's module is built from its config.

    On the CPU all sets but the teacher's weights are views of shared memory: nobody may write to them.
    """
    import ray

    keys = {kind: (part.name, device, label(config.teacher.network)) for kind, part in parcel.parts.items()}
    missing = [kind for kind, key in keys.items() if key not in _unpacked]
    arrays = ray.get([parcel.parts[kind].ref for kind in missing])
    for kind, found in zip(missing, arrays, strict=True):
        tensors = {name: to_tensor(plain) for name, plain in found.items()}
        _unpacked[keys[kind]] = _build(kind, tensors, config, parcel, device)
    for key in set(_unpacked) - set(keys.values()):
        del _unpacked[key]
    contents: dict[str, Any] = {"test": None, "val": None, "condensed": None, "landmarks": None}
    contents |= {kind: _unpacked[key] for kind, key in keys.items()}
    return Prepared(**contents, hashes=parcel.hashes)


def _build(kind: str, tensors: dict[str, Tensor], config: TrialConfig, parcel: Parcel, device: str) -> Any:
    if kind in ("test", "val"):
        return RealImages(**tensors)
    if kind in ("condensed", "proxy"):
        return Samples(**tensors).to(device)
    if kind == "landmarks":
        return Landmarks(**{name: tensor.to(device) for name, tensor in tensors.items()})
    about = parcel.teacher
    with torch.random.fork_rng(devices=[]):
        network = config.teacher.network.build(about["image_shape"], about["num_classes"])
    # Assigned rather than copied into the fresh parameters, so that strides stay; cloned, as modules can be written to.
    network.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
    return Teacher(network.to(device), **about)


def own_device() -> str:
    """The GPU Ray gave this process, if it is a real one."""
    import ray

    return "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"


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

"""Serialisation of a trial's artifacts: named contents, and references to them that are small enough for a message.

Tensors become numpy arrays over the same memory, with their type and strides, because Ray maps such arrays instead of
copying.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from condkd_ray.core.samples import Samples
from condkd_ray.data.datasets import RealImages
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.diagnosis import Landmarks

MODULE = "module"
"""Kind of content that only `cluster.jobs` packs and unpacks: the network of a user's own teacher, as a pickle that
includes its code. The other kinds are those of `named_contents`."""
TEACHER_FIELDS = ("num_classes", "image_shape", "mean", "std", "train_size", "flip_ok")
"""Arguments of `Teacher` besides the network: plain values, which a message contains as they are."""


@dataclass(frozen=True)
class ContentRef:
    """Name of a content, and `ref`, a Ray `ObjectRef` of its tensors, `dict[str, Plain]`."""

    name: str
    ref: Any


@dataclass(frozen=True)
class PreparedRefs:
    """Represents a `Prepared` in messages.

    `contents`: by kind. `teacher`: its `TEACHER_FIELDS`. `hashes` and `class_names`: as in `Prepared`.
    """

    contents: dict[str, ContentRef]
    teacher: dict[str, Any]
    hashes: dict[str, str]
    class_names: tuple[str, ...] = ()


def named_contents(prepared: Prepared) -> dict[str, tuple[str, dict[str, Tensor]]]:
    """Return the name and the tensors of each content, by kind: teacher, test, val, condensed, proxy, landmarks.

    Equal names imply equal tensors. `prepared.hashes` must have the keys `data`, `teacher`, `condensed` and `proxy`.
    """
    hashes = prepared.hashes
    # Condensed and proxy sets include the teacher's logits, which their own hashes do not cover.
    digests = {
        "test": hashes["data"],
        "val": hashes["data"],
        "condensed": f"{hashes['condensed']}/{hashes['teacher']}",
        "proxy": f"{hashes['proxy']}/{hashes['teacher']}",
        "landmarks": "/".join(hashes[kind] for kind in ("data", "proxy", "teacher", "condensed")),
    }
    found = {"teacher": (f"teacher/{hashes['teacher']}", prepared.teacher.network.state_dict())}
    for kind, digest in digests.items():
        if (content := getattr(prepared, kind)) is not None:
            tensors = {name: tensor for name, tensor in vars(content).items() if tensor is not None}
            found[kind] = (f"{kind}/{digest}", tensors)
    return found


def build_content(
    kind: str,
    tensors: dict[str, Tensor],
    config: TrialConfig,
    refs: PreparedRefs,
    device: str,
    own: Callable[[], nn.Module] | None = None,
) -> Any:
    """Rebuild a content of a `Prepared` from its tensors, on `device`; real images stay on the CPU.

    `kind` is one of those that `named_contents` lists. The teacher's network is built from its config, or by `own` if
    it is a user's own module.
    """
    if kind in ("test", "val"):
        return RealImages(**tensors)
    if kind in ("condensed", "proxy"):
        return Samples(**tensors).to(device)
    if kind == "landmarks":
        return Landmarks(**{name: tensor.to(device) for name, tensor in tensors.items()})
    with torch.random.fork_rng(devices=[]):
        shape, classes = refs.teacher["image_shape"], refs.teacher["num_classes"]
        network = config.teacher.network.build(shape, classes) if own is None else own()
    # `assign` keeps the strides; the clones are needed because mapped memory is read-only and modules may write to it.
    network.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
    return Teacher(network.to(device), **refs.teacher)


class Plain(NamedTuple):
    """A tensor as its bytes in memory order, type, shape and strides.

    Bytes, because numpy lacks types such as bfloat16. The strides are kept because convolutions choose their algorithm
    by them: other strides change the last bits.
    """

    content: np.ndarray
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def to_plain(value: Any) -> Any:
    """Convert tensors, also in dicts and tuples, to `Plain`; a dense CPU tensor keeps its memory."""
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
    return Plain(flat.view(torch.uint8).numpy(), tensor.dtype, tuple(tensor.shape), tensor.stride())


def to_tensor(value: Any) -> Any:
    """Invert `to_plain`: return tensors over the same memory."""
    if isinstance(value, dict):
        return {key: to_tensor(item) for key, item in value.items()}
    if isinstance(value, Plain):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            # numpy gives an empty array the stride 0, with which it cannot be viewed as another type.
            content = torch.from_numpy(value.content).as_strided(value.content.shape, (1,))
            return content.view(value.dtype).as_strided(value.shape, value.strides)
    return tuple(map(to_tensor, value)) if isinstance(value, tuple) else value


def _is_dense(tensor: Tensor) -> bool:
    """Return whether the elements fill a stretch of memory without gap or overlap, in any order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True

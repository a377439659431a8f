"""Saves and loads state trees as one safetensors file, with the tensors as tensors and all else as JSON in the header.

A state is a dataclass of tensors, plain values, containers of both, nested states, and objects with `state_dict` and
`load_state_dict` (modules, optimisers, schedulers, streams). It is loaded *into* a newly made state, which supplies the
structure; nothing is ever unpickled. Fields marked `transient()` are left out.

Devices: a loaded tensor that replaces a tensor of the new state is moved to the device of that tensor. All others (in
lists, in optimisers, or in place of None) are moved to the device passed to `load`, except tensors that were on the CPU
while others of the state were on an accelerator, such as a memory's ids: they stay on the CPU. If the whole state was
on the CPU, there is no such exception.
"""

import dataclasses
import json
import logging
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from condkd_ray.core.storage import Location, reading, writing

log = logging.getLogger(__name__)

FORMAT = "condkd-state-1"
Packed = dict[str, Any]
"""A state as plain values and CPU copies of its tensors. It can be sent to other processes or be part of a state."""


class DamagedError(ValueError):
    """A file does not contain a complete state: it is empty, truncated or of another format. The message names it."""


def transient(**kwargs: Any) -> Any:
    """Declare a dataclass field that is not part of a checkpoint and is made again by `start`."""
    return dataclasses.field(metadata={"transient": True}, **kwargs)


def save(state: Any, path: Location) -> None:
    """Write `state` to `path` atomically: a reader finds either the complete old file or the complete new one."""
    packed = pack(state)
    metadata = {"format": FORMAT, "tree": packed["tree"], "host": json.dumps(packed["host"])}
    with writing(path, durable=True) as partial:
        save_file(packed["tensors"], partial, metadata=metadata)


def load(state: Any, path: Location, device: torch.device | str = "cpu") -> Any:
    """Load the file at `path` into `state`, whose accelerator is `device`, and return `state`.

    Raises `DamagedError`, before `state` is changed, if the file is incomplete or of another format.
    """
    return unpack(state, _read(path), device)


def load_whole(state: Any, path: Location, device: torch.device | str = "cpu") -> Any | None:
    """Load the file like `load`; return None if there is none. A damaged file is logged and deleted, and gives None."""
    if not path.is_file():
        return None
    try:
        return load(state, path, device)
    except DamagedError as error:
        log.info(f"{error}; it is deleted and will be made again")
        path.unlink(missing_ok=True)
        return None


def _read(path: Location) -> Packed:
    try:
        with reading(path) as local, safe_open(local, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise DamagedError(f"{path} has format {metadata.get('format')!r}; accepted: {FORMAT!r}")
            # These tensors are views of the mapped file; `unpack` copies them.
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return {"tree": metadata["tree"], "host": json.loads(metadata.get("host", "[]")), "tensors": tensors}
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise DamagedError(f"{path} is damaged or of an unknown format ({error}); accepted: {FORMAT!r}") from None


def pack(state: Any) -> Packed:
    """Return a copy of `state`, which later changes of `state` do not affect."""
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_pack(state, tensors))
    host = _host_keys(tensors)
    # Each tensor is copied, because safetensors does not accept tensors that share memory.
    copies = {key: tensor.to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}
    return {"tree": tree, "host": host, "tensors": copies}


def unpack(state: Any, packed: Packed, device: torch.device | str = "cpu") -> Any:
    """Load a packed state into `state`, whose accelerator is `device`, and return `state`."""
    host = set(packed["host"])
    # Copied, so that no loaded tensor shares memory with another one or with the mapped file.
    tensors = {key: tensor.to("cpu" if key in host else device, copy=True) for key, tensor in packed["tensors"].items()}
    return _into(state, json.loads(packed["tree"]), tensors)


def _host_keys(tensors: dict[str, Tensor]) -> list[str]:
    """Return the keys of the tensors on the CPU; empty if all tensors are there."""
    keys = [key for key, tensor in tensors.items() if tensor.device.type == "cpu"]
    return keys if len(keys) < len(tensors) else []


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        key = str(len(tensors))
        last = value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last)
        tensors[key] = value.detach()
        return {"$tensor": key, "channels_last": last and not value.is_contiguous()}
    if hasattr(value, "state_dict"):
        return {"$object": _pack(value.state_dict(), tensors)}
    if dataclasses.is_dataclass(value):
        kept = [f.name for f in dataclasses.fields(value) if not f.metadata.get("transient")]
        return {"$fields": {name: _pack(getattr(value, name), tensors) for name in kept}}
    if isinstance(value, dict):
        return {"$dict": [[_pack_item(k, tensors), _pack_item(v, tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "$tuple" if isinstance(value, tuple) else "$list"
        return {kind: [_pack_item(item, tensors) for item in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"cannot save a {type(value).__name__} in a state")


def _pack_item(value: Any, tensors: dict[str, Tensor]) -> Any:
    # A container is rebuilt on loading, so it cannot supply an object to load a nested state into.
    if hasattr(value, "state_dict") or dataclasses.is_dataclass(value):
        raise TypeError(f"cannot save a {type(value).__name__} inside a container; accepted: as a field of a state")
    return _pack(value, tensors)


def _unpack(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    if "$tensor" in tree:
        tensor = tensors[tree["$tensor"]]
        return tensor.contiguous(memory_format=torch.channels_last) if tree["channels_last"] else tensor
    if "$dict" in tree:
        return {_unpack(k, tensors): _unpack(v, tensors) for k, v in tree["$dict"]}
    for key, kind in (("$list", list), ("$tuple", tuple)):
        if key in tree:
            return kind(_unpack(item, tensors) for item in tree[key])
    raise ValueError(f"unknown state node with keys {sorted(tree)}")


def _into(value: Any, tree: Any, tensors: dict[str, Tensor]) -> Any:
    if hasattr(value, "load_state_dict"):
        value.load_state_dict(_unpack(tree["$object"], tensors))
        return value
    if dataclasses.is_dataclass(value):
        for name, node in tree["$fields"].items():
            setattr(value, name, _into(getattr(value, name), node, tensors))
        return value
    loaded = _unpack(tree, tensors)
    if isinstance(value, Tensor) and isinstance(loaded, Tensor):
        return loaded.to(value.device).requires_grad_(value.requires_grad)
    return loaded

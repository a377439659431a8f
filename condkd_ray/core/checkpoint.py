"""Save and load any state tree: one safetensors file, tensors as tensors and the rest as JSON in its header.

A state is a dataclass of tensors, plain values, containers of both, nested states, and objects with `state_dict` /
`load_state_dict` (modules, optimisers, schedulers, streams). It is loaded *into* a freshly made state, which supplies
all structure; nothing is ever unpickled. Fields marked `transient()` are left out.

Devices: a tensor that replaces one of the fresh state lies where that lay. All others (in lists, in optimisers, where
there was None) go to the device that `load` is given, but for those that lay on the CPU beside others on an
accelerator: they, such as a memory's ids, stay on the CPU. A state wholly on the CPU says nothing of the kind.
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
"""A state as plain values and copies of its tensors on the CPU: can be sent, or be part of another state."""


class DamagedError(ValueError):
    """A file holds no whole state: it is empty, torn, or of another format; the message names it."""


def transient(**kwargs: Any) -> Any:
    """A dataclass field that is not part of a checkpoint (it is made again by `start`)."""
    return dataclasses.field(metadata={"transient": True}, **kwargs)


def save(state: Any, path: Location) -> None:
    """Write `state` to `path`, atomically: a reader sees the old file or the new one, whole."""
    packed = pack(state)
    metadata = {"format": FORMAT, "tree": packed["tree"], "host": json.dumps(packed["host"])}
    with writing(path, durable=True) as partial:
        save_file(packed["tensors"], partial, metadata=metadata)


def load(state: Any, path: Location, device: torch.device | str = "cpu") -> Any:
    """Load the file at `path` into `state`, whose accelerator is `device`.

    Raises `DamagedError`, with the state as it was, for a file that is not whole, or of another format.
    """
    return unpack(state, _read(path), device)


def load_whole(state: Any, path: Location, device: torch.device | str = "cpu") -> Any | None:
    """As `load`; None where there is no file, or a damaged one, which is deleted and told of: it is made anew."""
    if not path.is_file():
        return None
    try:
        return load(state, path, device)
    except DamagedError as error:
        log.info(f"{error}; it is deleted and made anew")
        path.unlink(missing_ok=True)
        return None


def _read(path: Location) -> Packed:
    try:
        with reading(path) as local, safe_open(local, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise DamagedError(f"{path} has format {metadata.get('format')!r}; accepted: {FORMAT!r}")
            # Copied when unpacked: these lie in the file's map.
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return {"tree": metadata["tree"], "host": json.loads(metadata.get("host", "[]")), "tensors": tensors}
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise DamagedError(f"{path} is damaged or of no known format ({error}); accepted: {FORMAT!r}") from None


def pack(state: Any) -> Packed:
    """A copy of `state`, which may go on changing."""
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_pack(state, tensors))
    host = _host_keys(tensors)
    # Each a copy of its own: the file's format allows no two tensors that share memory.
    copies = {key: tensor.to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}
    return {"tree": tree, "host": host, "tensors": copies}


def unpack(state: Any, packed: Packed, device: torch.device | str = "cpu") -> Any:
    """Load what was packed into `state`, whose accelerator is `device`, and return it."""
    host = set(packed["host"])
    # Copied: a loaded tensor must never share memory with another or with the file's map.
    tensors = {key: tensor.to("cpu" if key in host else device, copy=True) for key, tensor in packed["tensors"].items()}
    return _into(state, json.loads(packed["tree"]), tensors)


def _host_keys(tensors: dict[str, Tensor]) -> list[str]:
    """Keys of those on the CPU where others are not."""
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
    # A container is made anew on loading, so that nothing in it could say what to load an object into.
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

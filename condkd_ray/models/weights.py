"""A user's own weights: safetensors, or `.pt` files read without unpickling code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from condkd_ray.core.method import InputError

ACCEPTED = "a safetensors file, or a .pt with a state dict, bare or under 'state_dict'"


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a file; a `module.` prefix (DataParallel) is taken off. Raises `InputError`."""
    loaded = _load(path)
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise InputError(f"weights file {path} holds no state dict; accepted: {ACCEPTED}")
    wrapped = all(str(name).startswith("module.") for name in loaded)
    return {str(name).removeprefix("module.") if wrapped else str(name): tensor for name, tensor in loaded.items()}


def _load(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"weights file is {str(path)!r}, which is no file; accepted: {ACCEPTED}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a stranger's file makes the loaders raise is the file's fault
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"weights file {path} cannot be read safely ({reason}); accepted: {ACCEPTED}") from None


def load_into(network: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Load `weights` into `network`. Raises `InputError` with the first missing, unexpected and misshapen names."""
    own = network.state_dict()
    # A counter of batches that no forward pass in eval mode reads; older files lack it.
    optional = {name for name in own if name.endswith("num_batches_tracked")}
    missing = [name for name in own if name not in weights and name not in optional]
    unexpected = [name for name in weights if name not in own]
    misshapen = [
        f"{name} {tuple(weights[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    problems = [
        f"{kind}: {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if names
    ]
    if problems:
        raise InputError(f"{what} do not fit the network: {'; '.join(problems)}")
    network.load_state_dict(dict(weights), strict=False)

"""Comparisons of states, modules and configs, bit for bit."""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from condkd_ray.core import checkpoint
from condkd_ray.core.config import build, to_tree
from condkd_ray.core.families import family_of
from condkd_ray.core.rng import Streams


def expect(holds: bool, text: str) -> None:
    """Raise `AssertionError` unless `holds`."""
    if not holds:
        raise AssertionError(text)


def check_config(method: Any) -> None:
    """A method is a member of its family, survives YAML, hashes, and names only its own fields in `ours`."""
    kind = type(method)
    family = family_of(kind)
    expect(family is not None, f"{kind.__name__} derives from the base of a family")
    assert family is not None
    if kind not in family.own:
        family.check_contract(kind)
    found = family.members().get(method.name)
    expect(found is kind, f"{kind.__name__} is registered under its name {method.name!r}")
    read = build(kind, yaml.safe_load(yaml.safe_dump(to_tree(method))), "config")
    expect(read == method and hash(read) == hash(method), f"{method} is equal after YAML: {read}")
    names = {one.name for one in fields(kind)} - {"name"}
    expect(set(kind.ours) <= names, f"ours names fields: {sorted(set(kind.ours) - names)} are none")


def same(left: Any, right: Any) -> bool:
    """Whether two trees of containers are equal, tensors bit for bit."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def frozen(module: nn.Module) -> tuple[Any, ...]:
    """All of a module that other code could change: parameters, buffers, gradients, mode."""
    tensors = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}
    return tensors, grads, [part.training for part in module.modules()]


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in a state that is saved, with those of its modules and optimisers."""
    if isinstance(value, torch.Tensor):
        yield value
    else:
        for part in parts(value):
            yield from tensors(part)


def parts(value: Any) -> Iterable[Any]:
    """The parts of one part of a state."""
    if isinstance(value, (list, tuple)):
        return value
    if isinstance(value, dict):
        return value.values()
    if hasattr(value, "state_dict"):
        return value.state_dict().values()
    if is_dataclass(value):
        return [getattr(value, one.name) for one in fields(value) if not one.metadata.get("transient")]
    return vars(value).values() if hasattr(value, "__dict__") else []


def pointers(value: Any) -> set[int]:
    """Addresses of the tensors in a state."""
    return {tensor.data_ptr() for tensor in tensors(value)}


def reloaded(state: Any, rng: Streams, fresh: Any, fresh_rng: Streams) -> tuple[Any, Streams]:
    """State and streams, saved and loaded into fresh ones; checks that all tensors are equal and shared by nobody."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint.save(state, folder / "state")
        checkpoint.save(rng, folder / "streams")
        loaded = checkpoint.load(fresh, folder / "state")
        streams = checkpoint.load(fresh_rng, folder / "streams")
    expect(same(list(tensors(loaded)), list(tensors(state))), "a loaded state has the tensors of the saved one")
    expect(not {one for one in pointers(loaded) & pointers(state) if one}, "a loaded state shares no tensor")
    return loaded, streams


def opened(rng: Streams) -> set[str]:
    """Streams that were drawn from, each as `place/name`; the place is `device` or `host`."""
    return {f"{place}/{name}" for place, names in rng.state_dict().items() for name in names}

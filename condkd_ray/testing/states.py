"""Bitwise comparisons of states, modules and configs."""

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
    """Raise `AssertionError` with `text` unless `holds`."""
    if not holds:
        raise AssertionError(text)


def check_config(method: Any) -> None:
    """Check that a method is a member of its family, can be written to YAML, can be hashed, and has a valid `ours`.

    `ours` may contain only names of fields. Raises `AssertionError` with the rule that is broken.
    """
    kind = type(method)
    family = family_of(kind)
    expect(family is not None, f"{kind.__name__} derives from the base of a family")
    assert family is not None
    if kind not in family.own:
        family.check_contract(kind)
    found = family.members().get(method.name)
    expect(found is kind, f"{kind.__name__} is registered under its name {method.name!r}")
    read = build(kind, yaml.safe_load(yaml.safe_dump(to_tree(method))), "config")
    expect(
        read == method and hash(read) == hash(method),
        f"{method} is equal after it was written to YAML and read: {read}",
    )
    names = {one.name for one in fields(kind)} - {"name"}
    expect(set(kind.ours) <= names, f"ours names fields, but {sorted(set(kind.ours) - names)} are not")


def same(left: Any, right: Any) -> bool:
    """Return whether two nested containers are equal, tensors bit for bit."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def snapshot(module: nn.Module) -> tuple[Any, ...]:
    """Return a copy of a module's parameters, buffers, gradients and training modes."""
    tensors = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}
    return tensors, grads, [part.training for part in module.modules()]


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield every tensor in a state that is saved, including those of modules and optimisers."""
    if isinstance(value, torch.Tensor):
        yield value
    else:
        for part in parts(value):
            yield from tensors(part)


def parts(value: Any) -> Iterable[Any]:
    """Return the direct parts of a part of a state."""
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
    """Return the memory addresses of the tensors in a state."""
    return {tensor.data_ptr() for tensor in tensors(value)}


def reloaded(state: Any, rng: Streams, fresh: Any, fresh_rng: Streams) -> tuple[Any, Streams]:
    """Save `state` and `rng`, load them into `fresh` and `fresh_rng`, and return the loaded ones.

    Checks that all tensors are equal and that loaded tensors share no memory with saved ones.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint.save(state, folder / "state")
        checkpoint.save(rng, folder / "streams")
        loaded = checkpoint.load(fresh, folder / "state")
        streams = checkpoint.load(fresh_rng, folder / "streams")
    expect(same(list(tensors(loaded)), list(tensors(state))), "a loaded state has the same tensors as the saved one")
    expect(
        not {one for one in pointers(loaded) & pointers(state) if one},
        "a loaded state shares no memory with the saved one",
    )
    return loaded, streams


def used_streams(rng: Streams) -> set[str]:
    """Return the random streams used so far, each as `place/name`; the place is `device`, or `host` for the CPU."""
    return {f"{place}/{name}" for place, names in rng.state_dict().items() for name in names}

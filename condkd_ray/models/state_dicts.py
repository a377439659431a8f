"""Finds the state dicts in the content of a file, beside optimizers and settings, and strips prefixes of wrappers."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from condkd_ray.core.method import require

Weights = dict[str, Tensor]
WRAPPERS = ("module", "model", "net", "network", "teacher", "backbone", "_orig_mod")
"""Attributes under which wrappers store a whole network: DataParallel, Lightning, torch.compile and others."""
AROUND_PARTS = ("module", "_orig_mod")
"""Wrapper attributes that may also enclose a part of a network."""
MAX_NESTING = 50
"""Largest accepted nesting of dictionaries, and number of parts of a name. Usual checkpoints have 4 and 10."""
COUNTER = "n_averaged"
"""The counter that `torch.optim.swa_utils.AveragedModel` stores beside its network."""


def state_dicts(content: Any) -> dict[str, Weights]:
    """Return all state dicts in a file's content, by their keys joined with "/"; "" for a state dict without a key.

    A state dict is a dictionary of tensors by name, possibly with plain values among them. Dictionaries of single
    numbers are metrics, and the state of an optimizer is skipped. Raises `InputError` if a dictionary contains itself
    or is nested more than `MAX_NESTING` deep, or if a name has more parts than `MAX_NESTING`.
    """
    return {place: weights for place, weights in _found(content, "", ()) if any(t.ndim for t in weights.values())}


def _found(content: Any, place: str, around: tuple[int, ...]) -> Iterator[tuple[str, Weights]]:
    """Yield state dicts with their places. `around`: ids of the dictionaries that contain `content`."""
    if not isinstance(content, Mapping) or "param_groups" in content:
        return
    require(id(content) not in around, "dictionary", place, "one that does not contain itself")
    accepted = f"dictionaries nested at most {MAX_NESTING} deep"
    require(len(around) < MAX_NESTING, "depth of its dictionaries", len(around) + 1, accepted)
    tensors = {_text(name): value for name, value in content.items() if isinstance(value, Tensor)}
    inner = {_text(name): value for name, value in content.items() if isinstance(value, Mapping)}
    for name in tensors:
        parts = name.count(".") + 1
        require(parts <= MAX_NESTING, f"number of parts of the name {name[:40]}...", parts, f"at most {MAX_NESTING}")
    whole = len(tensors) == len(content) or any(name.endswith("weight") for name in tensors)
    if tensors and not inner and whole:
        yield place, tensors
    for name, value in inner.items():
        yield from _found(value, f"{place}/{name}" if place else name, (*around, id(content)))


def _text(name: object) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


def parts(weights: Weights) -> Iterator[tuple[str, Weights]]:
    """Yield ("", all weights), then the weights below each name prefix, by that prefix without its dot, outer first."""
    waiting = [("", weights)]
    for place, within in waiting:
        yield place, within
        below: dict[str, Weights] = {}
        for name, value in within.items():
            first, dot, rest = name.partition(".")
            if dot:
                below.setdefault(f"{place}.{first}" if place else first, {})[rest] = value
        waiting += below.items()


def unwrapped(weights: Weights) -> Weights:
    """Return the weights under the names of the innermost network.

    A wrapper's prefix is removed if all names have it. A wrapper's name inside a part of the network is removed if all
    names of that part have it.
    """
    while len(first := {name.partition(".")[0] for name in weights if name != COUNTER}) == 1:
        [prefix] = first
        if prefix not in WRAPPERS or any("." not in name for name in weights if name != COUNTER):
            break
        weights = {name.removeprefix(f"{prefix}."): value for name, value in weights.items() if name != COUNTER}
    return _without_inner(weights)


def _without_inner(weights: Weights) -> Weights:
    below: dict[str, set[str]] = {}
    for name in weights:
        parts = name.split(".")
        for depth in range(1, len(parts)):
            below.setdefault(".".join(parts[:depth]), set()).add(parts[depth])
    around = {place for place, children in below.items() if len(children) == 1 and children <= set(AROUND_PARTS)}
    if not around:
        return weights

    def bare(name: str) -> str:
        parts = name.split(".")
        return ".".join(part for i, part in enumerate(parts) if ".".join(parts[:i]) not in around)

    return {bare(name): value for name, value in weights.items()}

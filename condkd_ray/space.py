"""A search space is a trial config with some leaves open; closing them on an Optuna trial gives a config.

Tags of open leaves: `!uniform [a, b]`, `!log_uniform [a, b]`, `!int [a, b]` (both ends included), `!choice [...]`.
A choice among methods is made by name, and only the chosen one's own leaves are opened after. Parameter names are
paths: `inversion/bn_weight`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import yaml

from condkd_ray.config import from_tree
from condkd_ray.method import InputError
from condkd_ray.trial import TrialConfig


@dataclass(frozen=True)
class Open:
    """An open leaf: `kind` is its tag, `values` its bounds or choices."""

    kind: str
    values: tuple[Any, ...]


def _construct(kind: str) -> Callable[[yaml.SafeLoader, yaml.Node], Open]:
    def construct(loader: yaml.SafeLoader, node: yaml.Node) -> Open:
        if not isinstance(node, yaml.SequenceNode):
            raise InputError(f"!{kind}{node.start_mark} needs a list")
        return _checked(kind, loader.construct_sequence(node, deep=True))

    return construct


def _checked(kind: str, values: list[Any]) -> Open:
    if kind == "choice":
        if not values:
            raise InputError("!choice is []; accepted: at least one value")
        return Open(kind, tuple(values))
    try:
        # YAML 1.1 reads 1e-3 as text.
        low, high = (int(v) if kind == "int" else float(v) for v in values)
    except (TypeError, ValueError):
        raise InputError(f"!{kind} is {values!r}; accepted: [low, high], two numbers") from None
    if not low < high or (kind == "log_uniform" and low <= 0):
        raise InputError(f"!{kind} is {values!r}; accepted: low < high" + (", both > 0" * (kind == "log_uniform")))
    return Open(kind, (low, high))


class _Loader(yaml.SafeLoader):
    pass


for _kind in ("uniform", "log_uniform", "int", "choice"):
    _Loader.add_constructor(f"!{_kind}", _construct(_kind))


def read(path: Path) -> dict[str, Any]:
    """The tree of a space file, with `Open` leaves. Raises `InputError`."""
    try:
        return parse(path.read_text())
    except OSError as error:
        raise InputError(
            f"search space is {str(path)!r}, which cannot be read ({error}); accepted: a YAML file"
        ) from None


def parse(text: str) -> dict[str, Any]:
    """The tree of a space given as YAML."""
    try:
        tree = yaml.load(text, _Loader)  # a SafeLoader with four more tags
    except yaml.YAMLError as error:
        raise InputError(f"the search space is not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise InputError("the search space holds no mapping of config fields")
    return tree


def close(tree: dict[str, Any], trial: optuna.trial.BaseTrial) -> TrialConfig:
    """The config that `trial`'s suggestions give. Raises `InputError` for keys that name no field."""
    return from_tree(_close(tree, trial, ""), "search space")


def _close(node: Any, trial: optuna.trial.BaseTrial, path: str) -> Any:
    if isinstance(node, Open):
        return (
            _close(_suggest(node, trial, path), trial, path) if node.kind == "choice" else _suggest(node, trial, path)
        )
    if isinstance(node, dict):
        return {key: _close(value, trial, f"{path}/{key}".strip("/")) for key, value in node.items()}
    if isinstance(node, list):
        return [_close(value, trial, f"{path}/{i}") for i, value in enumerate(node)]
    return node


def _suggest(leaf: Open, trial: optuna.trial.BaseTrial, path: str) -> Any:
    if leaf.kind == "uniform":
        return trial.suggest_float(path, *leaf.values)
    if leaf.kind == "log_uniform":
        return trial.suggest_float(path, *leaf.values, log=True)
    if leaf.kind == "int":
        return trial.suggest_int(path, *leaf.values)
    if not any(isinstance(value, dict) for value in leaf.values):
        return trial.suggest_categorical(path, leaf.values)
    by_name = {value["name"] if isinstance(value, dict) else value: value for value in leaf.values}
    return by_name[trial.suggest_categorical(f"{path}/name", list(by_name))]

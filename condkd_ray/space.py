"""A search space is a trial config with some leaves open; closing them on an Optuna trial gives a config.

Tags of open leaves: `!uniform [a, b]`, `!log_uniform [a, b]`, `!int [a, b]` (both ends included), `!choice [...]`.
A choice among methods is made by name, and only the chosen one's own leaves are opened after. Parameter names are
paths: `inversion/bn_weight`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import yaml

from condkd_ray.config import from_tree
from condkd_ray.method import InputError, require
from condkd_ray.trial import TrialConfig


@dataclass(frozen=True)
class Open:
    """An open leaf: `kind` is its tag, `values` its bounds or choices."""

    kind: str
    values: tuple[Any, ...]


def _construct(kind: str) -> Callable[[yaml.SafeLoader, yaml.Node], Open]:
    def construct(loader: yaml.SafeLoader, node: yaml.Node) -> Open:
        listed = isinstance(node, yaml.SequenceNode)
        require(listed, f"!{kind} in line {node.start_mark.line + 1}", node.value, "a list")
        values = loader.construct_sequence(node, deep=True)  # type: ignore[arg-type]
        return _choice(values) if kind == "choice" else _range(kind, values)

    return construct


def _choice(values: list[Any]) -> Open:
    require(bool(values), "!choice", values, "at least one value")
    if any(isinstance(value, dict) for value in values):
        names = [value.get("name") if isinstance(value, dict) else value for value in values]
        named = all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
        require(named, "!choice among methods, by name,", names, "a name for each, and each once")
    return Open("choice", tuple(values))


def _range(kind: str, values: list[Any]) -> Open:
    try:
        # YAML 1.1 reads 1e-3 as text.
        low, high = map(float, values)
    except (TypeError, ValueError):
        low = high = math.nan
    require(math.isfinite(low) and math.isfinite(high), f"!{kind}", values, "[low, high], two numbers")
    require(low < high, f"!{kind}", values, "[low, high] with low < high")
    require(low > 0 or kind != "log_uniform", f"!{kind}", values, "[low, high], both > 0")
    if kind != "int":
        return Open(kind, (low, high))
    require(low.is_integer() and high.is_integer(), "!int", values, "[low, high], two whole numbers")
    return Open(kind, (int(low), int(high)))


class _Loader(yaml.SafeLoader):
    pass


for _kind in ("uniform", "log_uniform", "int", "choice"):
    _Loader.add_constructor(f"!{_kind}", _construct(_kind))


def read(path: Path) -> dict[str, Any]:
    """The tree of a space file, with `Open` leaves. Raises `InputError`."""
    try:
        return parse(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"search space is {str(path)!r}, which cannot be read ({error}); accepted: a YAML file"
        ) from None


def parse(text: str) -> dict[str, Any]:
    """The tree of a space given as YAML."""
    try:
        tree = yaml.load(text, _Loader)  # a SafeLoader with four more tags
    except yaml.YAMLError as error:
        raise InputError(f"the search space is not YAML: {' '.join(str(error).split())}") from None
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

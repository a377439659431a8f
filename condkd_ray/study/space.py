"""Search spaces: trees of trial configs in which some values, the open leaves, are ranges or choices.

An Optuna trial suggests a value for each open leaf; the tree with these values is closed and gives a config.

Tags of open leaves: `!uniform [a, b]`, `!log_uniform [a, b]`, `!int [a, b]` (both ends included), `!choice [...]`. A
choice between methods is a choice of their names; the values of the chosen method's open leaves are suggested after it.
Parameter names are paths, such as `inversion/bn_weight`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from condkd_ray.core.config import content_hash, plugins_of_tree, to_tree
from condkd_ray.core.families import plugins_named
from condkd_ray.core.method import InputError, require
from condkd_ray.core.text import read_text
from condkd_ray.core.yaml_text import load_yaml
from condkd_ray.trial.config import TrialConfig, from_tree


@dataclass(frozen=True, repr=False)
class Open:
    """An open leaf. `kind` is its tag; `values` are its bounds or choices."""

    kind: str
    values: tuple[Any, ...]

    def __repr__(self) -> str:
        """The leaf in the notation of a space file, for messages."""
        return f"!{self.kind} {list(self.values)}"

    @property
    def examples(self) -> list[Any]:
        """The bounds or the choices, with methods represented by their names."""
        return [value["name"] if isinstance(value, dict) else value for value in self.values]


def _construct(kind: str, loader: yaml.SafeLoader, node: yaml.Node) -> Open:
    listed = isinstance(node, yaml.SequenceNode)
    value = node.value if isinstance(node, yaml.ScalarNode) else "a mapping"
    require(listed, f"!{kind} in line {node.start_mark.line + 1}", value, "a list")
    values = loader.construct_sequence(node, deep=True)  # type: ignore[arg-type]
    return _choice(values) if kind == "choice" else _range(kind, values)


def _choice(values: list[Any]) -> Open:
    require(bool(values), "!choice", values, "at least one value")
    if any(isinstance(value, dict) for value in values):
        names = [value.get("name") if isinstance(value, dict) else value for value in values]
        named = all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
        require(named, "!choice among methods, by name,", names, "a unique name for each")
    return Open("choice", tuple(values))


def _range(kind: str, values: list[Any]) -> Open:
    try:
        # YAML 1.1 parses 1e-3 as text.
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
    """YAML loader with the four tags of open leaves."""


for _kind in ("uniform", "log_uniform", "int", "choice"):
    _Loader.add_constructor(f"!{_kind}", partial(_construct, _kind))


def read(path: Path) -> dict[str, Any]:
    """Read the tree of a space file, with `Open` leaves.

    Raises `InputError` if the file cannot be read or is not a space.
    """
    return parse(read_text(path, "search space", "a YAML file"))


def parse(text: str) -> dict[str, Any]:
    """Parse the tree of a space in YAML, with `Open` leaves.

    Raises `InputError` if the text is not a YAML mapping, or has a tag with bad values.
    """
    try:
        tree = load_yaml(text, _Loader)
    except yaml.YAMLError as error:
        raise InputError(f"the search space is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise InputError(f"the search space is a {type(tree).__name__}; accepted: a mapping of config fields")
    return tree


def leaves(tree: Any, path: str = "") -> dict[str, Open]:
    """Return the open leaves of a space by parameter name; the leaves of methods follow the choice between them.

    If several methods have different ranges for a parameter, the smallest range that contains all of them is returned.
    Raises `InputError` if a parameter has different kinds in different methods.
    """
    if isinstance(tree, Open):
        if not _among_methods(tree):
            return {path: tree}
        methods = [(path, value) for value in tree.values if isinstance(value, dict)]
        return {f"{path}/name": tree} | _joined(leaves(value, at) for at, value in methods)
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return _joined(leaves(value, f"{path}/{key}".strip("/")) for key, value in parts)


def _joined(parts: Iterable[dict[str, Open]]) -> dict[str, Open]:
    found: dict[str, Open] = {}
    for part in parts:
        for name, leaf in part.items():
            other = found.setdefault(name, leaf)
            same = other == leaf or (other.kind == leaf.kind != "choice")
            both = f"{other} and {leaf}"
            require(same, f"open leaf {name} of two methods", both, "the same choices, or ranges of one kind, for both")
            if other != leaf:
                bounds = [*other.values, *leaf.values]
                found[name] = Open(leaf.kind, (min(bounds), max(bounds)))
    return found


def conditional(tree: Any) -> bool:
    """Return whether the set of open leaves depends on a choice."""
    return any(leaves(value) for leaf in leaves(tree).values() for value in leaf.values)


def default(tree: dict[str, Any]) -> TrialConfig:
    """Return the config of a space in which each open leaf has its field's default, and choices have the first method.

    Raises `InputError` if this config is invalid.
    """
    return from_tree(_default(tree), "search space")


def _default(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {
            key: _default(value) for key, value in tree.items() if not isinstance(value, Open) or _among_methods(value)
        }
    if isinstance(tree, Open):
        return _default(tree.values[0])
    return [_default(value) for value in tree] if isinstance(tree, list) else tree


def corners(tree: dict[str, Any]) -> dict[str, TrialConfig]:
    """Return the default config and the corners of the space, by name.

    In a corner, all ranges are at their lower or all at their upper end. The k-th pair of corners has the k-th value of
    each choice; choices with fewer values start over. Raises `InputError` if one of these configs is invalid.
    """
    places = max((len(leaf.values) for leaf in leaves(tree).values() if leaf.kind == "choice"), default=1)
    found = {"default": default(tree)}
    for place in range(places):
        which = f", choice {place + 1}" if places > 1 else ""
        for end, name in ((0, "lowest"), (-1, "highest")):
            found[f"{name}{which}"] = from_tree(_at(tree, place, end), "search space")
    return found


def _at(tree: Any, place: int, end: int) -> Any:
    def chosen(leaf: Open, path: str) -> Any:
        return _at(leaf.values[place % len(leaf.values) if leaf.kind == "choice" else end], place, end)

    return _replaced(tree, chosen)


def plugin_classes(tree: dict[str, Any]) -> list[type]:
    """Return the plug-ins that configs of a space can contain, from every value of every choice.

    Raises `InputError` for a name that no method has.
    """

    def values(part: Any) -> Sequence[Any]:
        return part.values if isinstance(part, Open) else (part,)

    return list(dict.fromkeys(plugins_of_tree(TrialConfig, tree, "search space", values)))


def to_plain(tree: Any) -> Any:
    """Return the space as plain values, for comparison and storage."""
    return _replaced(tree, lambda leaf, path: {f"!{leaf.kind}": to_plain(list(leaf.values))})


def plugins(tree: dict[str, Any]) -> list[str]:
    """Return the plug-ins that a space names, with their versions, as text.

    With another version of a plug-in, the same parameters have other results. Raises `InputError` if a plug-in has no
    version.
    """
    return [f"{place}: {origin}" for place, origin in sorted(plugins_named(set(_words(tree))).items())]


def _words(tree: Any) -> Iterator[str]:
    """Yield all texts in a space."""
    parts = tree.values if isinstance(tree, Open) else tree.values() if isinstance(tree, dict) else tree
    if isinstance(parts, str):
        yield parts
    elif isinstance(parts, Iterable):
        for part in parts:
            yield from _words(part)


def close(tree: dict[str, Any], trial: optuna.trial.BaseTrial) -> TrialConfig:
    """Return the config with the values that `trial` suggests. Raises `InputError` if this config is invalid."""

    def suggested(leaf: Open, path: str) -> Any:
        return _replaced(_suggest(leaf, trial, path), suggested, path)

    return from_tree(_replaced(tree, suggested), "search space")


def params_of(
    tree: dict[str, Any], config: TrialConfig, settle: Callable[[TrialConfig], TrialConfig]
) -> dict[str, Any]:
    """Return the values of the open leaves, by name, with which the space `tree` becomes `config`.

    `settle`: fills in the settings that depend on the hardware; it is applied to both before they are compared. Raises
    `InputError` if there are no such values, because the config is not from this space.
    """
    whole, same, found = to_tree(config), content_hash(settle(config)), dict[str, Any]()

    def closes(value: Any, keys: list[str]) -> bool:
        try:
            return content_hash(settle(from_tree(_with(whole, keys, value), "config"))) == same
        except InputError:
            return False

    def value_of(leaf: Open, path: str) -> Any:
        keys = path.split("/")
        value = _below(whole, keys)
        if leaf.kind != "choice":
            found[path] = value
            return value
        if _among_methods(leaf):
            here = [one for one in leaf.values if _name(one) == _name(value)]
            require(bool(here), path, value, ", ".join(leaf.examples))
            found[f"{path}/name"] = _name(value)
            return _replaced(here[0], value_of, path)
        here = [one for one in leaf.values if closes(one, keys)]
        require(bool(here), path, value, ", ".join(map(str, leaf.values)))
        found[path] = here[0]
        return here[0]

    closed = settle(from_tree(_replaced(tree, value_of), "search space"))
    require(content_hash(closed) == same, "config", "different in its fixed fields", "a config of this space")
    return found


def _name(method: Any) -> Any:
    return method.get("name") if isinstance(method, dict) else method


def _below(tree: Any, keys: Sequence[str]) -> Any:
    """Return the value in a complete tree at the path `keys`. Raises `InputError` if there is none."""
    for key in keys:
        parts: Any = dict(enumerate(tree)) if isinstance(tree, list) else tree
        place = int(key) if isinstance(tree, list) else key
        require(isinstance(parts, dict) and place in parts, "config without", "/".join(keys), "a config of this space")
        tree = parts[place]
    return tree


def _with(tree: Any, keys: Sequence[str], value: Any) -> Any:
    """Return a complete tree with `value` at the path `keys`."""
    if not keys:
        return value
    if isinstance(tree, list):
        return [_with(one, keys[1:], value) if i == int(keys[0]) else one for i, one in enumerate(tree)]
    return {**tree, keys[0]: _with(tree[keys[0]], keys[1:], value)}


def _replaced(tree: Any, replacement: Callable[[Open, str], Any], path: str = "") -> Any:
    """Return the tree with each open leaf replaced by `replacement(leaf, path)`."""
    if isinstance(tree, Open):
        return replacement(tree, path)
    if isinstance(tree, dict):
        return {key: _replaced(value, replacement, f"{path}/{key}".strip("/")) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_replaced(value, replacement, f"{path}/{i}") for i, value in enumerate(tree)]
    return tree


def _suggest(leaf: Open, trial: optuna.trial.BaseTrial, path: str) -> Any:
    if leaf.kind in ("uniform", "log_uniform"):
        return trial.suggest_float(path, *leaf.values, log=leaf.kind == "log_uniform")
    if leaf.kind == "int":
        return trial.suggest_int(path, *leaf.values)
    if not _among_methods(leaf):
        return trial.suggest_categorical(path, leaf.values)
    by_name = dict(zip(leaf.examples, leaf.values, strict=True))
    return by_name[trial.suggest_categorical(f"{path}/name", list(by_name))]


def distribution(leaf: Open) -> BaseDistribution:
    """Return the Optuna distribution of a leaf's parameter, as a study stores it."""
    if leaf.kind == "int":
        return IntDistribution(*leaf.values)
    if leaf.kind == "choice":
        return CategoricalDistribution(leaf.examples)
    return FloatDistribution(*leaf.values, log=leaf.kind == "log_uniform")


def _among_methods(leaf: Open) -> bool:
    """Return whether the leaf is a choice between methods."""
    return any(isinstance(value, dict) for value in leaf.values)

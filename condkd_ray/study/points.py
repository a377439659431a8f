"""Points of a search space, from a user or an earlier study, and their validation before any trial."""

import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from condkd_ray.core.method import InputError, require, value_text
from condkd_ray.core.text import read_text
from condkd_ray.core.yaml_text import load_yaml
from condkd_ray.study.space import Open, leaves

Point = dict[str, Any]
"""Values by parameter name, such as `inversion/bn_weight`. The sampler chooses the parameters that are missing."""


def points_of(tree: Mapping[str, Any], path: Path) -> list[Point]:
    """Read the points in a YAML (or JSON) file.

    Raises `InputError` if the file cannot be read, or if `check_point` refuses a point.
    """
    try:
        points = load_yaml(read_text(path, "--points", "a YAML list"))
    except yaml.YAMLError as error:
        why = " ".join(str(error).split())
        raise InputError(f"--points is {str(path)!r}, which cannot be read ({why}); accepted: a YAML list") from None
    fine = isinstance(points, list) and all(isinstance(point, dict) and point for point in points)
    require(fine and bool(points), "--points", str(path), "a YAML list of mappings from parameters to values")
    return [check_point(tree, point, f"point {number} of {path}") for number, point in enumerate(points, 1)]


def check_point(tree: Mapping[str, Any], point: Mapping[Any, Any], what: str) -> Point:
    """Return the point with numbers converted and choices in the form that the space `tree` lists.

    Raises `InputError`, with a message that starts with `what`, for a name that is no open leaf, a leaf of a method
    that the point does not choose, and a value that has a wrong type, is out of bounds or is not listed.
    """
    opened: dict[str, Open] = {}
    closed: dict[str, list[str]] = {}
    _open(tree, "", point, opened, closed)
    for name, value in point.items():
        if name in closed and name not in opened:
            path, *methods = closed[name]
            here = f"although {path} is {value_text(point[path])}" if path in point else f"without {path}"
            raise InputError(
                f"{what}: {name} is {value_text(value)} {here}; accepted: only with {path} {' or '.join(methods)}"
            )
        if name not in opened:
            names = [*opened, *(other for other in closed if other not in opened)]
            near = difflib.get_close_matches(str(name), names, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise InputError(f"{what}: {value_text(name)} names no open leaf{hint}; accepted: {', '.join(names)}")
    return {name: _value(opened[name], value, f"{what}: {name}") for name, value in point.items()}


def left_open(tree: Mapping[str, Any], point: Mapping[str, Any]) -> list[str]:
    """Return the names of the open leaves that a checked point does not set."""
    opened: dict[str, Open] = {}
    _open(tree, "", point, opened, {})
    return [name for name in opened if name not in point]


def _open(
    node: Any, path: str, point: Mapping[Any, Any], opened: dict[str, Open], closed: dict[str, list[str]]
) -> None:
    """Add the leaves that are open for a point to `opened`, and the leaves of methods to `closed`.

    An entry of `closed` has the name of the choice between the methods, and the methods that have the leaf.
    """
    if not isinstance(node, Open):
        parts = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
        for key, value in parts:
            _open(value, f"{path}/{key}".strip("/"), point, opened, closed)
        return
    methods = [value for value in node.values if isinstance(value, dict)]
    if not methods:
        opened[path] = node
        return
    name = f"{path}/name"
    opened[name] = Open("choice", tuple(node.examples))
    chosen = point.get(name)
    for method in methods:
        if method["name"] == chosen:
            _open(method, path, point, opened, closed)
        for leaf in leaves(method, path):
            closed.setdefault(leaf, [name]).append(method["name"])


def _value(leaf: Open, value: Any, what: str) -> Any:
    if leaf.kind == "choice":
        found = [one for one in leaf.values if _is(one, value)]
        require(bool(found), what, value, f"one of {', '.join(map(str, leaf.values))}")
        return found[0]
    low, high = leaf.values
    kind = "a whole number" if leaf.kind == "int" else "a number"
    accepted = f"{kind} from {low:g} to {high:g}"
    try:
        # YAML 1.1 parses 1e-3 as text.
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    whole = leaf.kind != "int" or number.is_integer()
    require(low <= number <= high and whole, what, value, accepted)
    return int(number) if leaf.kind == "int" else number


def _is(one: Any, other: Any) -> bool:
    """Return whether two values are equal and of the same kind: true is not 1."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)

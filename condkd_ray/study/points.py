"""Values that a user, or an earlier study, gives to the open leaves of a space: checked before anything is tried."""

import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from condkd_ray.core.method import InputError, require, shown
from condkd_ray.core.text import read_text
from condkd_ray.core.yaml_text import load_yaml
from condkd_ray.study.space import Open, leaves

Point = dict[str, Any]
"""Values by the names of their parameters, such as `inversion/bn_weight`; those not given are the sampler's to choose.
"""


def points_of(tree: Mapping[str, Any], path: Path) -> list[Point]:
    """The points in a YAML file, each as `check_point` gives it; JSON is YAML too. Raises `InputError`."""
    try:
        points = load_yaml(read_text(path, "--points", "a YAML list"))
    except yaml.YAMLError as error:
        told = " ".join(str(error).split())
        raise InputError(f"--points is {str(path)!r}, which cannot be read ({told}); accepted: a YAML list") from None
    fine = isinstance(points, list) and all(isinstance(point, dict) and point for point in points)
    require(fine and bool(points), "--points", str(path), "a YAML list of mappings from parameters to values")
    return [check_point(tree, point, f"point {number} of {path}") for number, point in enumerate(points, 1)]


def check_point(tree: Mapping[str, Any], point: Mapping[Any, Any], what: str) -> Point:
    """The point as the space `tree` has its values: numbers as numbers, choices as they are listed.

    Raises `InputError`, which begins with `what`: for a name that is no open leaf, a leaf of a method that the point
    does not choose, a value of another type, out of bounds, or not listed.
    """
    opened: dict[str, Open] = {}
    closed: dict[str, list[str]] = {}
    _open(tree, "", point, opened, closed)
    for name, value in point.items():
        if name in closed and name not in opened:
            path, *methods = closed[name]
            here = f"where {path} is {shown(point[path])}" if path in point else f"without {path}"
            raise InputError(
                f"{what}: {name} is {shown(value)} {here}; accepted: {path} {' or '.join(methods)} beside it"
            )
        if name not in opened:
            names = [*opened, *(other for other in closed if other not in opened)]
            near = difflib.get_close_matches(str(name), names, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise InputError(f"{what}: {shown(name)} names no open leaf{hint}; accepted: {', '.join(names)}")
    return {name: _value(opened[name], value, f"{what}: {name}") for name, value in point.items()}


def left_open(tree: Mapping[str, Any], point: Mapping[str, Any]) -> list[str]:
    """Names of the leaves that a checked point says nothing of."""
    opened: dict[str, Open] = {}
    _open(tree, "", point, opened, {})
    return [name for name in opened if name not in point]


def _open(
    node: Any, path: str, point: Mapping[Any, Any], opened: dict[str, Open], closed: dict[str, list[str]]
) -> None:
    """Enter the leaves that a point opens; and, of all that methods open, the name of that choice and the methods."""
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
        # YAML 1.1 reads 1e-3 as text.
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    whole = leaf.kind != "int" or number.is_integer()
    require(low <= number <= high and whole, what, value, accepted)
    return int(number) if leaf.kind == "int" else number


def _is(one: Any, other: Any) -> bool:
    """Whether two values are the same; true is not 1."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)

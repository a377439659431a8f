"""A config as a tree: from and to YAML, merged, and named by its hash. The only user of pydantic."""

import dataclasses
import difflib
import hashlib
import json
import re
import types
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import TypeAdapter, ValidationError

from condkd_ray.core.families import family_of, hints, origin_of
from condkd_ray.core.method import InputError, require, shown
from condkd_ray.core.text import read_text
from condkd_ray.core.yaml_text import load_yaml

Tree = dict[str, Any]
"""Plain values only: what a YAML or JSON file holds."""
PLUGIN = "plug-in"
"""Key of the version of a method's code in its identity; no field can have this name."""
T = TypeVar("T")


def to_tree(value: Any) -> Any:
    """The complete tree of a config: every leaf, defaults included."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_tree(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [to_tree(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def build(kind: type[T], tree: Any, path: str) -> T:
    """A frozen dataclass from its tree; leaves not given keep their defaults.

    Raises `InputError` with the first bad key, its value and what is accepted; messages begin with `path`.
    """
    require(isinstance(tree, dict), path, tree, f"a mapping with {', '.join(hints(kind))}")
    for key in tree:
        if key not in hints(kind):
            near = difflib.get_close_matches(str(key), hints(kind), 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise InputError(f"{path}: {shown(key)} names no field{hint}; accepted: {', '.join(hints(kind))}")
    for f in dataclasses.fields(kind):  # type: ignore[arg-type]
        if f.name not in tree and not _known(f.default) and not _known(f.default_factory):
            raise InputError(f"{path}: {f.name} is not given; accepted: a value of your own, it has no default")
    values = {key: _value(hints(kind)[key], value, f"{path}: {key}", kind, key) for key, value in tree.items()}
    try:
        return kind(**values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _value(hint: Any, value: Any, path: str, owner: type, key: str) -> Any:
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    members: list[Any] = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
    if not members or (value is None and type(None) in get_args(hint)):
        return _leaf(hint, value, path)
    family = family_of(members[0])
    if family is None:
        return build(members[0], value, path)
    by_name = family.members()
    tree: Any = {"name": value} if isinstance(value, str) else value
    require(isinstance(tree, dict), path, value, ", ".join(by_name))
    # A tree that gives leaves but no name means the default method.
    default = next(f.default for f in dataclasses.fields(owner) if f.name == key)
    name = tree.get("name", getattr(default, "name", None))
    if not isinstance(name, str) or name not in by_name:
        what = f"{path}: name is not given" if name is None else f"{path} is {shown(name)}"
        raise InputError(f"{what}; accepted: {', '.join(by_name)}{family.more}")
    return build(by_name[name], tree, path)


def _leaf(hint: Any, value: Any, path: str) -> Any:
    if value is False and "off" in get_args(hint):
        value = "off"  # as YAML reads that word where it has no quotes
    if isinstance(value, (list, tuple)) and tuple[str, ...] in (hint, *get_args(hint)):
        # Names that are whole numbers, as YAML reads them where they have no quotes.
        value = [str(item) if type(item) is int else item for item in value]
    try:
        return _adapter(hint).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        message = "a path" if first["type"] == "path_type" else first["msg"].removeprefix("Input should be ")
        raise InputError(f"{path} is {shown(value)}; accepted: {message}") from None


_adapter = cache(TypeAdapter)


def read_tree(path: Path) -> Tree:
    """The tree in a YAML file. Raises `InputError` where there is none."""
    try:
        tree = load_yaml(read_text(path, "config file", "a YAML file"))
    except yaml.YAMLError as error:
        if leaf := re.search(r"tag '(!(?:uniform|log_uniform|int|choice))'.* line (\d+)", str(error), re.DOTALL):
            accepted = "single values; open leaves are those of a search space, for condkd search"
            raise InputError(f"{path} has an open leaf, {leaf[1]} in line {leaf[2]}; accepted: {accepted}") from None
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if tree is not None and not isinstance(tree, dict):
        raise InputError(f"{path} holds a {type(tree).__name__}; accepted: a mapping of config fields")
    return tree or {}


def merge(base: Tree, over: Tree) -> Tree:
    """`base` with the leaves of `over`. A method given by another `name` replaces the old one whole.

    A method given by its name alone is that method, on either side: of the same name as the old one, it changes
    nothing; leaves over it are those of that method.
    """
    merged = dict(base)
    for key, given in over.items():
        old = base.get(key)
        if isinstance(given, dict) and isinstance(old, str):
            old = {"name": old}
        named = isinstance(given, str) and isinstance(old, dict) and "name" in old
        value = {"name": given} if named else given
        if isinstance(value, dict) and isinstance(old, dict) and value.get("name", old.get("name")) == old.get("name"):
            value = merge(old, value)
        merged[key] = value
    return merged


def flattened(tree: Mapping[str, Any], separator: str = "/") -> Tree:
    """The leaves of a tree by their paths; a list is one leaf."""
    found: Tree = {}
    for key, value in tree.items():
        below = flattened(value, separator) if isinstance(value, Mapping) else {"": value}
        found |= {f"{key}{separator}{path}" if path else key: leaf for path, leaf in below.items()}
    return found


def identity(value: Any, *, complete: bool = False) -> Any:
    """The tree of all that shapes numbers, not where files lie: equal for two configs just if they are the same run.

    A field at its default is left out, so that a config keeps its identity when its class gets a new field. The `name`
    of a method always stays, as it tells which class the other fields are of. A default must therefore never change
    within one version of the numbers: see `condkd_ray.trial.plan.NUMBERS`. `complete` keeps fields at their
    defaults too. A method from outside this package has the version of its code beside its fields.

    Fields marked `identity: False` are left out, for they stand elsewhere by content; a path in a field marked
    `identity: "content"` is read, and its file's digest put there. Raises `InputError` where it cannot be read.
    """
    if dataclasses.is_dataclass(value):
        parts = {f.name: _part(f, getattr(value, f.name), complete) for f in _kept(value)}
        origin = origin_of(type(value))  # type: ignore[arg-type]
        outside = {} if origin is None else {PLUGIN: str(origin)}
        if complete:
            return parts | outside
        defaults = default_identities(type(value))  # type: ignore[arg-type]
        changed = {k: part for k, part in parts.items() if k == "name" or k not in defaults or part != defaults[k]}
        return changed | outside
    if isinstance(value, (list, tuple)):
        return [identity(item, complete=complete) for item in value]
    return str(value) if isinstance(value, Path) else value


def _part(field: dataclasses.Field[Any], value: Any, complete: bool) -> Any:
    by_content = field.metadata.get("identity") == "content" and isinstance(value, Path)
    return file_digest(value) if by_content else identity(value, complete=complete)


def _kept(kind: Any) -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(kind) if f.metadata.get("identity", True)]


@cache
def default_identities(kind: type) -> dict[str, Any]:
    """Identities of the defaults of a dataclass, by field; a field without a default is not in it."""
    made = {f: f.default_factory() for f in _kept(kind) if _known(f.default_factory)}  # type: ignore[operator]
    given = {f: f.default for f in _kept(kind) if _known(f.default)}
    return {f.name: _part(f, default, False) for f, default in {**given, **made}.items()}


def _known(default: Any) -> bool:
    # Not by identity: a class that came from another process by value, as a notebook's, has a sentinel of its own.
    return not isinstance(default, type(dataclasses.MISSING))


def content_hash(value: Any, digests: dict[str, str] | None = None, *, complete: bool = False) -> str:
    """16 hex digits of SHA-256 over the `identity` tree and the contents that the left-out paths stand for."""
    text = json.dumps([identity(value, complete=complete), digests or {}], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """16 hex digits of the SHA-256 of a file. Raises `InputError` where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise InputError(f"file is {str(path)!r}, which cannot be read ({error.strerror})") from None

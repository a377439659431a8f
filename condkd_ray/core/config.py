"""Configs as trees: reads and writes YAML, merges trees, and hashes configs. Only this module uses pydantic."""

import dataclasses
import difflib
import hashlib
import json
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import Field, Strict, TypeAdapter, ValidationError

from condkd_ray.core.families import family_of, hints, is_plugin, origin_of, plugin_kinds
from condkd_ray.core.method import InputError, require, value_text
from condkd_ray.core.text import read_text
from condkd_ray.core.yaml_text import load_yaml

Tree = dict[str, Any]
"""A tree of plain values, as a YAML or JSON file holds it."""
PLUGIN = "plug-in"
"""Key of a plug-in's code version in the identity of a method; no field can have this name."""
T = TypeVar("T")
Flag = Annotated[bool, Strict()]
"""True or False, and no number or text."""
Natural = Annotated[int, Field(strict=True, ge=0)]
"""An integer >= 0, such as a seed; neither a text nor a truth value."""
Positive = Annotated[int, Field(strict=True, ge=1)]
"""An integer >= 1, likewise."""
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""A number that is neither infinite nor NaN."""


def to_tree(value: Any) -> Any:
    """Return the complete tree of a config: every leaf, defaults included."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_tree(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [to_tree(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def build(kind: type[T], tree: Any, path: str) -> T:
    """Build a frozen dataclass from its tree; missing leaves keep their defaults.

    Raises `InputError` for the first bad key, with its value and the accepted values; messages begin with `path`.
    """
    require(isinstance(tree, dict), path, tree, f"a mapping with {', '.join(hints(kind))}")
    for key in tree:
        if key not in hints(kind):
            near = difflib.get_close_matches(str(key), hints(kind), 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise InputError(f"{path}: {value_text(key)} names no field{hint}; accepted: {', '.join(hints(kind))}")
    for f in dataclasses.fields(kind):  # type: ignore[arg-type]
        if f.name not in tree and not _known(f.default) and not _known(f.default_factory):
            raise InputError(f"{path}: {f.name} is not given; accepted: a value, because the field has no default")
    values = {key: _value(hints(kind)[key], value, f"{path}: {key}", kind, key) for key, value in tree.items()}
    try:
        return kind(**values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def checked(hint: Any, value: Any, what: str, accepted: str | None = None) -> Any:
    """Return an argument converted to the type `hint`; arrays and scalars of numpy and PyTorch count as plain values.

    `hint` contains no dataclass. Raises `InputError` with `what`, the value, and `accepted` or the type's own words.
    """
    try:
        return _leaf(hint, _unwrapped(value), what)
    except InputError:
        require(accepted is None, what, value, accepted or "")
        raise


def checked_fields(config: T, what: str) -> T:
    """Return a config whose fields, and those of its methods, have values of their declared types.

    A dataclass does not check what Python code passes to it. Values that YAML can express stay as they are, so that the
    identity of the config does not change; numpy numbers become plain ones, lists tuples, texts paths. Raises
    `InputError` for the first field with a value of another type; messages begin with `what`.
    """
    kinds, changed = hints(type(config)), {}
    for f in dataclasses.fields(config):  # type: ignore[arg-type]
        value, path = getattr(config, f.name), f"{what}: {f.name}"
        fresh = _checked_field(kinds[f.name], value, path)
        if fresh is not value:
            changed[f.name] = fresh
    try:
        return dataclasses.replace(config, **changed) if changed else config  # type: ignore[type-var]
    except InputError as error:
        raise InputError(f"{what}: {error}") from None


def _checked_field(hint: Any, value: Any, path: str) -> Any:
    members: list[Any] = [kind for kind in _alternatives(hint) if dataclasses.is_dataclass(kind)]
    if not members or (value is None and type(None) in get_args(hint)):
        fresh = checked(hint, value, path)
        return value if _is_plain(value) and fresh == value else fresh
    family = family_of(members[0])
    fits = isinstance(value, tuple(members)) or (family is not None and family_of(type(value)) is family)
    names = (member.__name__ for member in members) if family is None else family.members()
    require(fits, path, value, f"an object of the method {', '.join(names)}")
    return checked_fields(value, path)


def _is_plain(value: Any) -> bool:
    """Return whether a value is of the types that configs read from YAML have."""
    if type(value) is tuple:
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str) or isinstance(value, Path)


def _unwrapped(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_unwrapped(item) for item in value] if isinstance(value, (list, tuple)) else value


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def plugins_of_tree(kind: type, tree: Any, path: str, values: Callable[[Any], Iterable[Any]]) -> Iterator[type]:
    """Yield the classes of the plug-ins in the trees of `kind` that a tree stands for, those in defaults included.

    `values(part)`: the values for which a part of the tree stands; several for an open leaf. Raises `InputError` for a
    name that no method has; messages begin with `path`.
    """
    require(isinstance(tree, dict), path, tree, f"a mapping with {', '.join(hints(kind))}")
    if is_plugin(kind):
        yield kind
    for f in dataclasses.fields(kind):  # type: ignore[arg-type]
        if f.name not in tree:
            yield from plugin_kinds(f.default_factory() if _known(f.default_factory) else f.default)  # type: ignore
            continue
        for value in values(tree[f.name]):
            named = isinstance(value, dict) and "name" in value
            for one in ({**value, "name": name} for name in values(value["name"])) if named else (value,):
                method = _method(hints(kind)[f.name], one, f"{path}: {f.name}", kind, f.name)
                if method is not None:
                    yield from plugins_of_tree(*method, f"{path}: {f.name}", values)


def _value(hint: Any, value: Any, path: str, owner: type, key: str) -> Any:
    method = _method(hint, value, path, owner, key)
    return _leaf(hint, value, path) if method is None else build(*method, path)


def _method(hint: Any, value: Any, path: str, owner: type, key: str) -> tuple[Any, Any] | None:
    """Return the dataclass of a value in a tree, and the tree of its fields; None if it is a value without fields."""
    members: list[Any] = [kind for kind in _alternatives(hint) if dataclasses.is_dataclass(kind)]
    if not members or (value is None and type(None) in get_args(hint)):
        return None
    family = family_of(members[0])
    if family is None:
        return members[0], value
    by_name = family.members()
    tree: Any = {"name": value} if isinstance(value, str) else value
    require(isinstance(tree, dict), path, value, ", ".join(by_name))
    # A tree without a name belongs to the default method.
    default = next(f.default for f in dataclasses.fields(owner) if f.name == key)
    name = tree.get("name", getattr(default, "name", None))
    if not isinstance(name, str) or name not in by_name:
        what = f"{path}: name is not given" if name is None else f"{path} is {value_text(name)}"
        raise InputError(f"{what}; accepted: {', '.join(by_name)}{family.more}")
    return by_name[name], tree


def _leaf(hint: Any, value: Any, path: str) -> Any:
    if value is False and "off" in get_args(hint):
        value = "off"  # YAML reads an unquoted off as False
    if isinstance(value, (list, tuple)) and tuple[str, ...] in (hint, *get_args(hint)):
        # YAML reads an unquoted name such as 3 as an integer.
        value = [str(item) if type(item) is int else item for item in value]
    try:
        return _adapter(hint).validate_python(value)
    except ValidationError as error:
        texts = [
            "a path" if one["type"] == "path_type" else one["msg"].removeprefix("Input should be ")
            for one in error.errors()
        ]
        # The first error of a plain type; of a union, those of all its members.
        kinds = [kind for kind in _alternatives(hint) if kind is not type(None)]
        message = ", or ".join(dict.fromkeys(texts if len(kinds) > 1 else texts[:1]))
        raise InputError(f"{path} is {value_text(value)}; accepted: {message}") from None


_adapter = cache(TypeAdapter)


def read_tree(path: Path) -> Tree:
    """Return the tree in a YAML file. Raises `InputError` if the file is missing or is not a YAML mapping."""
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
    """Return `base` with the leaves of `over`. A method with another `name` in `over` replaces the old one whole.

    Either side may give a method by its name alone. The same name changes nothing; leaves in `over` then belong to the
    method named in `base`.
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
    """Return the leaves of a tree by their paths; a list is one leaf."""
    found: Tree = {}
    for key, value in tree.items():
        below = flattened(value, separator) if isinstance(value, Mapping) else {"": value}
        found |= {f"{key}{separator}{path}" if path else key: leaf for path, leaf in below.items()}
    return found


def identity(value: Any, *, complete: bool = False) -> Any:
    """Return the tree of all that affects numbers, without file locations; configs with equal trees give equal runs.

    A field at its default is left out, so that a config keeps its identity when its class gets a new field. The `name`
    of a method always stays, because it determines the class of the other fields. A default must therefore never change
    within one version of the numbers: see `condkd_ray.trial.plan.NUMBERS`. `complete` keeps fields at their defaults
    too. A method from another package has its code version in addition to its fields.

    Fields marked `identity: False` are left out, because their content is hashed elsewhere. A path in a field marked
    `identity: "content"` is replaced by the digest of its file. So is each path in a method from another package, in a
    folder of files too, unless its field is marked `identity: True`, which keeps the path itself. Raises `InputError`
    if a file cannot be read.
    """
    return _identity(value, complete, by_content=False)


def _identity(value: Any, complete: bool, *, by_content: bool) -> Any:
    if dataclasses.is_dataclass(value):
        by_content = by_content or is_plugin(type(value))  # type: ignore[arg-type]
        parts = {f.name: _part(f, getattr(value, f.name), complete, by_content) for f in _kept(value)}
        origin = origin_of(type(value))  # type: ignore[arg-type]
        outside = {} if origin is None else {PLUGIN: str(origin)}
        if complete:
            return parts | outside
        defaults = default_identities(type(value))  # type: ignore[arg-type]
        read = {f.name for f in _kept(value) if by_content and _holds_path(getattr(value, f.name))}
        always = {"name", *read, *(parts.keys() - defaults.keys())}
        return {k: part for k, part in parts.items() if k in always or part != defaults[k]} | outside
    if isinstance(value, (list, tuple)):
        return [_identity(item, complete, by_content=by_content) for item in value]
    if isinstance(value, Path):
        return (folder_digest(value) if value.is_dir() else file_digest(value)) if by_content else str(value)
    return value


def _part(field: dataclasses.Field[Any], value: Any, complete: bool, by_content: bool) -> Any:
    kind = field.metadata.get("identity")
    return _identity(value, complete, by_content=kind == "content" or (by_content and kind is None))


def _holds_path(value: Any) -> bool:
    """Return whether a value contains a path; the content of a file at a default path can change without notice."""
    if dataclasses.is_dataclass(value):
        return any(_holds_path(getattr(value, f.name)) for f in _kept(value))
    return any(map(_holds_path, value)) if isinstance(value, (list, tuple)) else isinstance(value, Path)


def _kept(kind: Any) -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(kind) if f.metadata.get("identity", True)]


@cache
def default_identities(kind: type) -> dict[str, Any]:
    """Return the identities of a dataclass's defaults, by field, without fields that have no default."""
    made = {f: f.default_factory() for f in _kept(kind) if _known(f.default_factory)}  # type: ignore[operator]
    given = {f: f.default for f in _kept(kind) if _known(f.default)}
    known = {f: default for f, default in {**given, **made}.items() if not _holds_path(default)}
    return {f.name: _part(f, default, False, False) for f, default in known.items()}


def _known(default: Any) -> bool:
    # By type, not with `is`: a class unpickled by value, such as one from a notebook, has another MISSING object.
    return not isinstance(default, type(dataclasses.MISSING))


def content_hash(value: Any, digests: dict[str, str] | None = None, *, complete: bool = False) -> str:
    """Return 16 hex digits of the SHA-256 of the `identity` tree and of `digests`, the contents of left-out paths."""
    text = json.dumps([identity(value, complete=complete), digests or {}], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Return 16 hex digits of the SHA-256 of a file. Raises `InputError` if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise InputError(f"file is {str(path)!r}, which cannot be read ({error.strerror})") from None


def folder_digest(folder: Path) -> str:
    """Return 16 hex digits of the SHA-256 of the names and contents of all files in a folder and its subfolders."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return content_hash([[path.relative_to(folder).as_posix(), file_digest(path)] for path in files])

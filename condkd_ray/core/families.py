"""Families of interchangeable methods: the members defined in this package, and plug-ins from other packages.

A plug-in joins its family by an entry point of its distribution, in the group `condkd_ray.<family>`, or by a call of
`register`. It is a frozen dataclass that derives from the family's base class. Entry points are loaded when the members
of their family are first needed.
"""

import inspect
import logging
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from threading import RLock
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, overload

from condkd_ray.core.class_source import class_digest
from condkd_ray.core.method import InputError, require

log = logging.getLogger(__name__)

OWN = __name__.partition(".")[0]
"""This package, and the beginning of the names of its entry-point groups."""
ORIGIN = "__condkd_plugin__"
"""Name of the class attribute that holds a plug-in's `Origin`; pickling a class by value preserves it."""
LEAVES = (bool, int, float, str, Path, types.NoneType)
"""Types of fields that are single YAML values."""
M = TypeVar("M", bound=type)


@dataclass(frozen=True)
class Origin:
    """The distribution or module that a plug-in comes from, and its version."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


class Family:
    """The methods that a field of a config accepts: a base class, the members of this package, and plug-ins.

    Args:
        name: Last part of the name of the entry-point group, `condkd_ray.<name>`.
        base: Base class of all members.
        own: Members that this package defines.
        check: Additional check of a plug-in class for this family; raises `InputError`.
    """

    def __init__(
        self, name: str, base: type, own: Collection[type], check: Callable[[type], object] = lambda kind: None
    ) -> None:
        self.name, self.base, self.own, self._check = name, base, tuple(own), check
        self._registered: dict[str, type] = {}
        self._loaded: dict[str, type] | None = None
        self._failed: list[str] = []
        self._lock = RLock()
        _FAMILIES[name] = self

    def __repr__(self) -> str:
        return f"{OWN}.{self.name}"

    def members(self) -> dict[str, Any]:
        """Return all member classes by method name: those of this package first, then the plug-ins.

        Raises `InputError` if the class of an entry point breaks the contract or has the name of another member.
        """
        return {**self._own_names(), **self.plugins()}

    def plugins(self) -> dict[str, type]:
        """Return the plug-ins by method name; the first call loads the entry points. Raises as `members` does."""
        with self._lock:
            if self._loaded is None:
                self._loaded = {}
                try:
                    self._load(self._loaded)
                except BaseException:
                    self._loaded = None
                    raise
            return {**self._loaded, **self._registered}

    @property
    def failures(self) -> str:
        """Plug-ins whose import failed, with the reason, as text to append to a message; empty if there are none."""
        return "".join(f"; {text}" for text in self._failed)

    @property
    def more(self) -> str:
        """Text to append to a list of accepted names: it mentions plug-ins, and those whose import failed."""
        return f", or a plug-in once it is installed or registered{self.failures}"

    def register(self, kind: type, version: str | None) -> None:
        """Add a class to the family.

        A later definition of the same class replaces the earlier one, as when a notebook cell runs again. Raises
        `InputError` if the class breaks the contract or another class has its name.
        """
        self.check_contract(kind)
        origin = _origin(kind, version)
        with self._lock:
            taken = {**self._own_names(), **(self._loaded or {}), **self._registered}
            other = taken.get(name_of(kind))
            if other is not None and not _same_definition(other, kind):
                self._refuse_second(kind, origin, other)
            setattr(kind, ORIGIN, origin)
            self._registered[name_of(kind)] = kind

    def unregister(self, kind: type) -> None:
        """Remove a registered class; no effect if it is not registered."""
        with self._lock:
            self._registered = {name: one for name, one in self._registered.items() if one is not kind}

    def _own_names(self) -> dict[str, type]:
        return {name: kind for kind in self.own for name in _names(kind)}

    def _load(self, found: dict[str, type]) -> None:
        """Import the classes of the entry points and add them to `found`."""
        self._failed.clear()
        for point in metadata.entry_points(group=f"{OWN}.{self.name}"):
            assert point.dist is not None
            origin = Origin(point.dist.name, point.dist.version)
            try:
                kind = point.load()
            except InputError as error:
                raise InputError(f"plug-in {origin}: {error}") from None
            except (Exception, SystemExit) as error:
                reason = (str(error).splitlines() or [""])[0]
                text = f"plug-in {origin} failed to load {point.value} ({type(error).__name__}: {reason})"
                self._failed.append(text)
                log.warning(text)
                continue
            self.check_contract(kind, f"plug-in {origin}: {point.value}")
            other = {**self._own_names(), **self._registered, **found}.get(name_of(kind))
            if other is not None and other is not kind:
                self._refuse_second(kind, origin, other)
            setattr(kind, ORIGIN, origin)
            found[name_of(kind)] = kind

    def _refuse_second(self, kind: type, origin: Origin, other: type) -> None:
        first = f"{_place(other)} of {vars(other).get(ORIGIN, OWN)}"
        accepted = f"one class for each name: rename or uninstall one of {first} and {_place(kind)} of {origin}"
        raise InputError(f"{self.name} {name_of(kind)!r} is defined twice; accepted: {accepted}")

    def check_contract(self, kind: object, what: str = "") -> None:
        """Raise `InputError` unless `kind` satisfies the contract of the family: a concrete frozen dataclass.

        `what`: how the message names the class; by default its module and name.
        """
        what = what or _place(kind)
        base = f"a class that derives from {_place(self.base)}"
        require(isinstance(kind, type) and issubclass(kind, self.base), f"{self.name} plug-in", what, base)
        assert isinstance(kind, type)
        params = vars(kind).get("__dataclass_params__")
        frozen = "a class under @dataclass(frozen=True, kw_only=True)"
        require(params is not None and params.frozen, f"{self.name} plug-in", what, frozen)
        what = f"{self.name} plug-in {what}"
        _check_fields(kind, what)
        left = sorted(getattr(kind, "__abstractmethods__", ()))
        require(not left, f"{what}: abstract methods", left, "none left")
        self._check(kind)


def _check_fields(kind: type, what: str) -> None:
    """Raise `InputError` unless a dataclass has a fixed `name` and only fields that can be written to YAML."""
    try:
        types_of = hints(kind)
    except (NameError, TypeError) as error:
        raise InputError(f"{what}: types of the fields cannot be read ({error})") from None
    default, names = _default(kind, "name"), _names(kind)
    fits = names == (default,) and re.fullmatch("[a-z][a-z0-9_]*", default)
    named = 'a field name: Literal["mine"] = "mine", one name of lower-case letters, digits and _'
    require(bool(fits), f"{what}: field name of type {types_of.get('name')} with default", default, named)
    for name, hint in types_of.items():
        accepted = "what YAML holds: bool, int, float, str, Path, None, Literal, tuple of these, frozen dataclass"
        require(_is_plain(hint), f"{what}: type of field {name}", _shown(hint), accepted)


_FAMILIES: dict[str, Family] = {}
"""All families in the modules imported so far, by name."""


def family_of(kind: type) -> Family | None:
    """Return the family in which `kind` is an own member or from whose base `kind` derives; None if there is none."""
    found = (one for one in _FAMILIES.values() if kind in one.own or issubclass(kind, one.base))
    return next(found, None)


@overload
def register(kind: M, /) -> M: ...


@overload
def register(*, version: str) -> Callable[[M], M]: ...


def register(kind: Any = None, /, *, version: str | None = None) -> Any:
    """Add a class to the family whose base it derives from: `register(Mine)`, or as a decorator.

    Configs, YAML files, command lines, search spaces and sweeps of this process then accept it by its `name`.

    Args:
        kind: A frozen dataclass that derives from `Inversion`, `Guidance`, `Network` or the base of another family.
        version: Identifies the code in the hash of every config that uses the class. Default: the version of the
            installed distribution that contains the module, else a digest of the source of the class and of the code
            that it uses from its own package or script.

    Raises `InputError` if the class breaks the contract of its family, if its name is taken, or if neither a
    distribution nor the source is found.
    """
    if kind is None:
        return lambda decorated: register_class(decorated, version)
    return register_class(kind, version)


def register_class(kind: M, version: str | None = None) -> M:
    """Register a class and return it: see `register`."""
    family = family_of(kind) if isinstance(kind, type) else None
    bases = ", ".join(_place(one.base) for one in _FAMILIES.values())
    accepted = f"a class that derives from the base of a family, such as {bases}"
    require(family is not None, "registered class", _place(kind), accepted)
    assert family is not None
    family.register(kind, version)
    return kind


def unregister(kind: type) -> None:
    """Undo `register` in this process: configs no longer accept the class by its name."""
    family = family_of(kind)
    if family is not None:
        family.unregister(kind)


def origin_of(kind: type) -> Origin | None:
    """Return the origin of a plug-in class; None for classes of this package and for classes of no family.

    A class that was not registered has an origin too, because a config built in Python can contain it.
    """
    if kind.__module__.partition(".")[0] == OWN:
        return None
    family = family_of(kind)
    if family is None:
        return None
    if ORIGIN not in vars(kind):
        family.plugins()
    if ORIGIN not in vars(kind):
        setattr(kind, ORIGIN, _origin(kind, None))
    return vars(kind)[ORIGIN]


def plugins_in(value: Any) -> dict[str, str]:
    """Return the plug-ins in a config: keys are `family/name`, values the origins, such as "my-methods 1.2.0"."""
    found: dict[str, str] = {}
    for one in _methods(value):
        family, name = family_of(type(one)), getattr(one, "name", type(one).__name__)
        if family is not None:
            found[f"{family.name}/{name}"] = str(origin_of(type(one)))
    return found


def plugin_modules(value: Any) -> set[str]:
    """Return the names of the modules that define the plug-ins in a config."""
    return {type(one).__module__ for one in _methods(value)}


def _methods(value: Any) -> Iterator[Any]:
    """Yield the methods in a config that are plug-ins."""
    if is_dataclass(value):
        if origin_of(type(value)) is not None:  # type: ignore[arg-type]
            yield value
        for one in fields(value):
            yield from _methods(getattr(value, one.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from _methods(item)


def plugins_named(names: Collection[str]) -> dict[str, str]:
    """Return the plug-ins that have one of these method names, in the format of `plugins_in`."""
    found = [(family, kind) for family in _FAMILIES.values() for kind in family.plugins().values()]
    return {f"{family.name}/{name_of(kind)}": str(origin_of(kind)) for family, kind in found if name_of(kind) in names}


def check_plugins(made_with: dict[str, str], source: str) -> None:
    """Raise `InputError` if a plug-in that made a record is missing; log a warning if it has another version."""
    for place, origin in made_with.items():
        group, _, name = place.partition("/")
        family = _FAMILIES.get(group)
        here = None if family is None else family.plugins().get(name)
        if family is None or here is None:
            why = f", which is neither installed nor registered here{'' if family is None else family.failures}"
            raise InputError(
                f"{source}: {group} is {name!r} of plug-in {origin}{why}; accepted: a process that has this plug-in"
            )
        if str(origin_of(here)) != origin:
            log.warning(f"{source}: {group} {name} was made by plug-in {origin}; the plug-in here is {origin_of(here)}")


def name_of(kind: type) -> str:
    """Return the method name of a plug-in class."""
    return _names(kind)[0]


@cache
def hints(kind: type) -> dict[str, Any]:
    """Return the types of the fields of a dataclass, by field name."""
    found = typing.get_type_hints(kind)
    return {one.name: found[one.name] for one in fields(kind)}  # type: ignore[arg-type]


def _names(kind: type) -> tuple[str, ...]:
    """Return the method names of a class: the values that its `name` field accepts, usually one."""
    return tuple(filter(lambda name: isinstance(name, str), get_args(hints(kind).get("name"))))


def _default(kind: type, name: str) -> Any:
    return next((one.default for one in fields(kind) if one.name == name), None)  # type: ignore[arg-type]


def _is_plain(hint: Any) -> bool:
    """Return whether all values of a type can be written to YAML and hashed."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return all(isinstance(value, LEAVES) for value in args)
    if origin in (Union, types.UnionType) or origin is tuple:
        return all(_is_plain(one) for one in args if one is not Ellipsis)
    if isinstance(hint, type) and is_dataclass(hint):
        return vars(hint)["__dataclass_params__"].frozen
    return hint in LEAVES


def _shown(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)


def _place(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}" if isinstance(kind, type) else repr(kind)


def _same_definition(one: type, other: type) -> bool:
    return _place(one) == _place(other) and _place(one).partition(".")[0] != OWN


def _origin(kind: type, version: str | None) -> Origin:
    """Return the origin of a class: its distribution, or else its top-level module with `version` or a source digest.

    Raises `InputError` if there is neither a distribution nor a version nor source code.
    """
    top = kind.__module__.partition(".")[0]
    installed = None if top == "__main__" else _distribution(kind, top)
    if version is not None:
        require(bool(version.strip()), f"version of {_place(kind)}", version, "a text that identifies its code")
        return Origin(top if installed is None else installed.name, version)
    if installed is not None:
        return installed
    digest = class_digest(kind)
    accepted = "a class with source code, or register(..., version=...)"
    require(digest is not None, f"source of {_place(kind)}", None, accepted)
    return Origin(top, f"source {digest}")


def _distribution(kind: type, top: str) -> Origin | None:
    """Return the installed distribution that contains the module of a class; None if there is none."""
    try:
        file = Path(inspect.getfile(kind)).resolve()
    except (TypeError, OSError):
        return None
    for name in metadata.packages_distributions().get(top, ()):
        found = metadata.distribution(name)
        if any(file == Path(str(found.locate_file(one))).resolve() for one in found.files or ()):
            return Origin(found.name, found.version)
    return None

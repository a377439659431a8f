"""Families of interchangeable methods: the members defined in this package, and plug-ins from other packages.

A plug-in joins its family by an entry point of its distribution, in the group `condkd_ray.<family>`, or by a call of
`register`. It is a frozen dataclass that derives from the family's base class. Entry points are loaded when the members
of their family are first needed.
"""

import inspect
import json
import logging
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from threading import RLock
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, overload

from condkd_ray.core.code_digest import ORIGIN, OWN, CodeWalk, is_installed_file
from condkd_ray.core.errors import first_line
from condkd_ray.core.method import InputError, require
from condkd_ray.core.task import Task

log = logging.getLogger(__name__)

WORDS = {"networks": "network", "datasets": "dataset", "kd_loss": "distillation loss"}
"""Names of one member of a family, if they differ from the family's name."""
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
        self._loaded: dict[str, list[type]] | None = None
        """The classes of entry points by method name; several that have one name are all refused."""
        self._failed: list[str] = []
        self._lock = RLock()
        _FAMILIES[name] = self

    def __repr__(self) -> str:
        return f"{OWN}.{self.name}"

    def members(self) -> dict[str, Any]:
        """Return all member classes by method name: those of this package first, then the plug-ins."""
        return {**self._own_names(), **self.plugins()}

    def plugins(self) -> dict[str, type]:
        """Return the plug-ins by method name; the first call loads the entry points.

        A plug-in that cannot be loaded or that breaks the contract, and plug-ins that share a name, are left out: see
        `failures`.
        """
        return {name: kinds[-1] for name, kinds in self._definitions().items() if len(kinds) == 1}

    def _definitions(self) -> dict[str, list[type]]:
        """Return the different plug-in classes of each method name."""
        with self._lock:
            if self._loaded is None:
                loaded: dict[str, list[type]] = {}
                self._load(loaded)
                self._loaded = loaded
                for text in self._twice():
                    log.warning(text)
            found = {name: list(kinds) for name, kinds in self._loaded.items()}
            for name, kind in self._registered.items():
                others = [other for other in found.get(name, ()) if not _same_definition(other, kind)]
                found[name] = [*others, kind]
            return found

    def _twice(self) -> list[str]:
        """Return a text for each method name that several plug-ins have."""
        several = {name: kinds for name, kinds in self._definitions().items() if len(kinds) > 1}
        return [
            f"{self.word} {name!r} is defined twice, by {_listed(kinds)}; rename or uninstall one of them"
            for name, kinds in several.items()
        ]

    @property
    def word(self) -> str:
        """The word for one member of the family."""
        return WORDS.get(self.name, self.name)

    @property
    def failures(self) -> str:
        """Plug-ins that cannot be used, with the reason, as text to append to a message; empty if there are none."""
        return "".join(f"; {text}" for text in (*self._twice(), *self._failed))

    @property
    def more(self) -> str:
        """Text to append to a list of accepted names: it mentions plug-ins, also unusable ones."""
        return f", or a plug-in once it is installed or registered{self.failures}"

    def register(self, kind: type, version: str | None) -> None:
        """Add a class to the family.

        A later definition of the same class replaces the earlier one, as when a notebook cell runs again. Raises
        `InputError` if the class breaks the contract or another class has its name.
        """
        self.check_contract(kind)
        origin = _origin(kind, version)
        name = name_of(kind)
        with self._lock:
            taken = [self._own_names().get(name), *(self._loaded or {}).get(name, ()), self._registered.get(name)]
            other = next((one for one in taken if one is not None and not _same_definition(one, kind)), None)
            if other is not None:
                first = f"{_place(other)} of {_origin_text(other)}"
                accepted = f"one class for each name: rename or uninstall one of {first} and {_place(kind)} of {origin}"
                raise InputError(f"{self.word} {name!r} is defined twice; accepted: {accepted}")
            if version is not None:
                setattr(kind, ORIGIN, origin)
            elif ORIGIN in vars(kind):
                delattr(kind, ORIGIN)
            self._registered[name] = kind

    def unregister(self, kind: type) -> None:
        """Remove a registered class; no effect if it is not registered."""
        with self._lock:
            self._registered = {name: one for name, one in self._registered.items() if one is not kind}

    def _own_names(self) -> dict[str, type]:
        return {name: kind for kind in self.own for name in _names(kind)}

    def _load(self, found: dict[str, list[type]]) -> None:
        """Import the classes of the entry points and add them to `found`; log a warning for each that is not usable."""
        self._failed.clear()
        for point in metadata.entry_points(group=f"{OWN}.{self.name}"):
            assert point.dist is not None
            plugin = f"plug-in {point.dist.name} {point.dist.version}"
            try:
                kind = point.load()
                self.check_contract(kind)
                name = name_of(kind)
                accepted = f"a name that no {self.word} of {OWN} has"
                require(name not in self._own_names(), f"{self.word} plug-in {_place(kind)}: name", name, accepted)
            except (Exception, SystemExit) as error:
                reason = first_line(error) if str(error).strip() else ""
                text = f"{plugin} failed to load {point.value} ({type(error).__name__}: {reason})"
                self._failed.append(text)
                log.warning(text)
                continue
            if kind not in found.setdefault(name, []):
                found[name].append(kind)

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
        known, tasks = get_args(Task), getattr(kind, "tasks", ())
        claimed = isinstance(tasks, tuple) and set(tasks) <= {*known}
        require(claimed, f"{what}: tasks", tasks, f"a tuple of {' and '.join(map(repr, known))}")
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
            installed distribution that contains the module, else a digest of the code of the class and of all that
            it uses and that is not installed. An editable install has both.

    Raises `InputError` if the class breaks the contract of its family, if its name is taken, or if its code reads a
    value whose content cannot be digested.
    """
    if kind is None:
        return lambda decorated: register_class(decorated, version)
    return register_class(kind, version)


def register_class(kind: M, version: str | None = None) -> M:
    """Register a class and return it. Raises `InputError` as `register` does."""
    family = family_of(kind) if isinstance(kind, type) else None
    bases = ", ".join(_place(one.base) for one in _FAMILIES.values())
    accepted = f"a class that derives from the base of a family, such as {bases}"
    require(family is not None, "registered class", _place(kind), accepted)
    assert family is not None
    family.register(kind, version)
    return kind


def unregister(kind: type) -> None:
    """Undo `register` in this process: configs no longer accept the class by its name.

    A class that is also an entry point stays accepted.
    """
    family = family_of(kind)
    if family is not None:
        family.unregister(kind)


def is_plugin(kind: type) -> bool:
    """Return whether a class is a method of another package, notebook or script; it need not be registered."""
    return kind.__module__.partition(".")[0] != OWN and family_of(kind) is not None


def origin_of(kind: type) -> Origin | None:
    """Return the origin of a plug-in class; None for classes of this package and for classes of no family.

    A class that was not registered has an origin too, because a config built in Python can contain it. A digest of code
    is computed at each call, because functions and constants that the class uses can be redefined. Raises `InputError`
    if the code reads a value whose content cannot be digested.
    """
    if not is_plugin(kind):
        return None
    return vars(kind).get(ORIGIN) or _origin(kind, None)


@contextmanager
def origins_stored(value: Any) -> Iterator[None]:
    """Store the origins of a config's plug-ins in their classes during the block, so that pickles by value have them.

    The workers that unpickle the classes have no source files to compute an origin from.
    """
    kinds = [kind for kind in plugin_kinds(value) if ORIGIN not in vars(kind)]
    origins = {kind: origin_of(kind) for kind in kinds}
    try:
        for kind, origin in origins.items():
            setattr(kind, ORIGIN, origin)
        yield
    finally:
        for kind in filter(lambda kind: ORIGIN in vars(kind), kinds):
            delattr(kind, ORIGIN)


def plugins_in(value: Any) -> dict[str, str]:
    """Return the plug-ins in a config: keys are `family/name`, values the origins, such as "my-methods 1.2.0"."""
    found: dict[str, str] = {}
    for one in _methods(value):
        family, name = family_of(type(one)), getattr(one, "name", type(one).__name__)
        if family is not None:
            found[f"{family.name}/{name}"] = str(origin_of(type(one)))
    return found


def plugin_kinds(value: Any) -> list[type]:
    """Return the classes of the plug-ins in a config, or in a tuple of configs and of classes of methods."""
    parts = value if isinstance(value, tuple) else (value,)
    given = [one for one in parts if isinstance(one, type) and is_plugin(one)]
    configs = tuple(one for one in parts if not isinstance(one, type))
    return list(dict.fromkeys([*given, *(type(one) for one in _methods(configs))]))


def plugin_modules(value: Any) -> set[str]:
    """Return the names of the modules that define the plug-ins in a config, and of the modules that they use.

    Installed modules that the plug-ins use are left out.
    """
    found: set[str] = set()
    for kind in plugin_kinds(value):
        found.add(kind.__module__)
        walk = _walk(kind)
        with suppress(InputError):  # a class with a version of its own may use values that cannot be digested
            walk.value(kind)
        found |= walk.modules
    return found


def _methods(value: Any) -> Iterator[Any]:
    """Yield the methods in a config that are plug-ins."""
    if is_dataclass(value):
        if is_plugin(type(value)):
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


def check_plugins(made_with: dict[str, str], source: str, config: Mapping[str, Any] | None = None) -> None:
    """Raise `InputError` if a plug-in that made a record is missing; log a warning if it has another version.

    Args:
        made_with: The plug-ins of the record, in the format of `plugins_in`.
        source: Beginning of the messages.
        config: Tree of the record's config, in which messages find the field of the plug-in.
    """
    for method, origin in made_with.items():
        group, _, name = method.partition("/")
        family = _FAMILIES.get(group)
        here = None if family is None else family.plugins().get(name)
        paths = ", ".join(_paths(config or {}, name))
        what = f"{source}: {f'{paths}: ' if paths else ''}{group if family is None else family.word} {name!r}"
        if family is None or here is None:
            why = "" if family is None else family.failures
            missing = f"{what} is from plug-in {origin}, which is neither installed nor registered here{why}"
            raise InputError(f"{missing}; accepted: {_how_to_get(origin)}")
        if str(origin_of(here)) != origin:
            log.warning(f"{what} is from plug-in {origin}; the plug-in here is {origin_of(here)}")


def _paths(tree: Mapping[str, Any], name: str) -> Iterator[str]:
    """Yield the config fields whose method is `name`, such as `teacher.network`."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            if value.get("name") == name:
                yield key
            yield from (f"{key}.{path}" for path in _paths(value, name))


def _how_to_get(origin: str) -> str:
    """Return which process accepts a plug-in, from the text of its origin."""
    name, _, version = origin.partition(" ")
    if "source " in version or not name[0].isalnum():  # no distribution has such a name, but `__main__` does
        return f"a process that imports or defines the class in {name}, and registers it or has it as an entry point"
    # The text does not show whether the name is of a distribution or of a module outside of any.
    module = f", or that imports the module {name} and registers the class" if name.isidentifier() else ""
    return f"a process that has this plug-in, for example after pip install {name}=={version}{module}"


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
        # A subclass of a dataclass has parameters of its own only if it is decorated too.
        params = vars(hint).get("__dataclass_params__")
        return params is not None and params.frozen
    return hint in LEAVES


def _shown(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)


def _place(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}" if isinstance(kind, type) else repr(kind)


def _same_definition(one: type, other: type) -> bool:
    return _place(one) == _place(other) and _place(one).partition(".")[0] != OWN


def _origin_text(kind: type) -> str:
    """Return the origin of a class for messages, also if its code cannot be digested."""
    try:
        return str(origin_of(kind) or OWN)
    except InputError:
        return f"{kind.__module__.partition('.')[0]}, whose code cannot be digested"


def _listed(kinds: Collection[type]) -> str:
    return " and ".join(f"{_place(kind)} of {_origin_text(kind)}" for kind in kinds)


def _origin(kind: type, version: str | None) -> Origin:
    """Return the origin of a class: its distribution, or else its top-level module with `version` or a code digest.

    The files of an editable install can change without a new version, so its origin contains a digest too. Raises
    `InputError` if the code reads a value whose content cannot be digested.
    """
    top = kind.__module__.partition(".")[0]
    installed = None if top == "__main__" else _distribution(kind, top)
    name = top if installed is None else installed.name
    if version is not None:
        require(bool(version.strip()), f"version of {_place(kind)}", version, "a text that identifies its code")
        return Origin(name, version)
    if installed is not None and not installed.editable:
        return Origin(name, installed.version)
    walk = _walk(kind)
    walk.value(kind)
    digest = f"source {walk.digest.hexdigest()[:12]}"
    return Origin(name, digest if installed is None else f"{installed.version} {digest}")


def _walk(kind: type) -> CodeWalk:
    accepted = "values that can be pickled, or register(version=...), which identifies the code in place of a digest"
    return CodeWalk(f"plug-in {_place(kind)}", accepted, kind.__module__.partition(".")[0])


@dataclass(frozen=True)
class _Distribution:
    name: str
    version: str
    editable: bool
    """The code is in another folder than the distribution, or the distribution is marked as editable."""


def _distribution(kind: type, top: str) -> _Distribution | None:
    """Return the installed distribution that contains the module of a class; None if there is none."""
    try:
        file = Path(inspect.getfile(kind)).resolve()
    except (TypeError, OSError):
        return None
    return _distribution_of(file, top)


@cache
def _distribution_of(file: Path, top: str) -> _Distribution | None:
    """Return the distribution with the file of a module in the package `top`, or one that declares `top` as its own.

    Entry points declare a package too: an editable install may list neither its files nor its packages.
    """
    declared = [one for one in metadata.distributions() if top in _entry_packages(one)]
    named = [metadata.distribution(name) for name in metadata.packages_distributions().get(top, ())]
    outside: _Distribution | None = None
    for found in (*named, *declared):
        folder = Path(str(found.locate_file(""))).resolve()
        listed = any(file == Path(str(found.locate_file(one))).resolve() for one in found.files or ())
        # Only metadata in a source folder from which the code is imported has this file.
        in_sources = found.read_text("SOURCES.txt") is not None and not is_installed_file(file)
        editable = (
            _is_editable(found)
            or in_sources
            or not (listed or file == folder / f"{top}.py" or file.is_relative_to(folder / top))
        )
        one = _Distribution(found.name, found.version, editable)
        if listed:
            return one
        outside = outside or one
    return outside


def _entry_packages(found: metadata.Distribution) -> set[str]:
    """Return the top-level packages of a distribution's plug-ins."""
    return {one.module.partition(".")[0] for one in found.entry_points if one.group.startswith(f"{OWN}.")}


def _is_editable(found: metadata.Distribution) -> bool:
    """Return whether a distribution is marked as an editable install in `direct_url.json` (PEP 610)."""
    text = found.read_text("direct_url.json")
    try:
        return bool(text and json.loads(text).get("dir_info", {}).get("editable"))
    except (ValueError, AttributeError):
        return False

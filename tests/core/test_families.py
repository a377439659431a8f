"""Tests of plug-ins: methods from other packages, added by an entry point or by `register`, and their contract."""

import importlib
import linecache
import os
import re
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass
from fractions import Fraction
from functools import partial
from itertools import count
from operator import itemgetter
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch

from condkd_ray import register
from condkd_ray.core.code_digest import ORIGIN
from condkd_ray.core.config import build, content_hash, identity, to_tree
from condkd_ray.core.families import (
    Family,
    check_plugins,
    origin_of,
    origins_stored,
    plugin_modules,
    plugins_in,
    plugins_named,
    unregister,
)
from condkd_ray.core.method import InputError, Method

_numbers = count()


@dataclass(frozen=True, kw_only=True)
class Thing(Method, ABC):
    name: str

    @abstractmethod
    def act(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Plain(Thing):
    name: Literal["plain"] = "plain"

    def act(self) -> int:
        return 0


Plain.__module__ = "condkd_ray.own"  # as if it were defined in this package
THINGS = Family("things", Thing, (Plain,))


@dataclass(frozen=True, kw_only=True)
class Holder:
    thing: Plain = Plain()
    seed: int = 0


FACTOR = 2


def helper() -> int:
    return FACTOR


def definition(name: str = "mine", **defaults) -> type:
    """Return a new definition of the same member class."""

    @dataclass(frozen=True, kw_only=True)
    class Mine(Thing):
        name: Literal["mine"] = "mine"
        size: int = 3

        def act(self) -> int:
            return self.size * helper()

    return Mine


@pytest.fixture
def mine():
    kind = register(definition())
    yield kind
    unregister(kind)


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Family]:
    """A function that makes a family and distributions with members, each a (name, version, attribute, module text)."""

    def make(*distributions: tuple[str, str, str, str]) -> Family:
        group = f"tests{next(_numbers)}"
        base = make_dataclass("Base", [("name", str)], bases=(Method,), frozen=True, kw_only=True)
        for name, version, place, text in distributions:
            module = name.replace("-", "_")
            info = tmp_path / f"{module}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8"
            )
            (info / "entry_points.txt").write_text(f"[condkd_ray.{group}]\nit = {module}:{place}\n", encoding="utf-8")
            (tmp_path / f"{module}.py").write_text(text, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()
        sys.modules["tests_base"] = type(sys)("tests_base")
        sys.modules["tests_base"].Base = base
        return Family(group, base, ())

    yield make
    for module in [name for name in sys.modules if name.startswith(("tests_base", "some_"))]:
        del sys.modules[module]


CELL = """
@dataclass(frozen=True, kw_only=True)
class It(Thing):
    name: Literal["it"] = "it"
    def act(self):
        return 1
"""
IMPORTS = """
from dataclasses import dataclass
from typing import Literal
from tests_base import Base
"""
MODULE = IMPORTS + CELL.replace("Thing", "Base")


def test_a_registered_class_is_a_member_and_configs_build_it_by_name(mine):
    assert THINGS.members() == {"plain": Plain, "mine": mine}
    for tree in ({"thing": "mine"}, {"thing": {"name": "mine"}}, {"thing": {"name": "mine", "size": 3}}):
        assert build(Holder, tree, "file").thing == mine()
    assert build(Holder, to_tree(Holder(thing=mine(size=5))), "file") == Holder(thing=mine(size=5))
    with pytest.raises(InputError, match=r"thing: 'sizes' names no field \(did you mean size\?\); accepted: name"):
        build(Holder, {"thing": {"name": "mine", "sizes": 3}}, "file")
    with pytest.raises(
        InputError,
        match=r"file: thing is 'yours'; accepted: plain, mine, or a plug-in once it is installed or reg",
    ):
        build(Holder, {"thing": "yours"}, "file")
    unregister(mine)
    with pytest.raises(InputError, match=r"file: thing is 'mine'; accepted: plain, or a plug-in once"):
        build(Holder, {"thing": "mine"}, "file")


def test_the_version_of_a_plug_in_is_part_of_the_hash(mine):
    own, other = Holder(), Holder(thing=mine())
    assert identity(own) == {}
    assert identity(other) == {"thing": {"name": "mine", "plug-in": str(origin_of(mine))}}
    assert identity(other, complete=True)["thing"]["plug-in"] == str(origin_of(mine))
    assert re.fullmatch(r"(tests|core)\S* source [0-9a-f]{12}", str(origin_of(mine)))
    first = content_hash(other)
    register(mine, version="2")
    assert str(origin_of(mine)).endswith(" 2")
    assert content_hash(other) != first
    assert plugins_in(other) == plugins_named({"mine"}) == {"things/mine": str(origin_of(mine))}
    assert plugins_in(own) == plugins_named({"plain"}) == {}


def test_the_digest_covers_the_class_and_what_it_uses_from_its_package(monkeypatch):
    def origin() -> str:
        return str(origin_of(definition()))

    first = origin()
    assert origin() == first
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 3)
    assert origin() != first


def test_an_unregistered_class_has_an_identity_too():
    """A config built in Python can contain it."""
    assert "plug-in" in identity(Holder(thing=definition()()))["thing"]


def in_cell(text: str, **names) -> type:
    """Return the class of a notebook's cell, which has no source file."""
    space = {"Thing": Thing, "Plain": Plain, "dataclass": dataclass, "Literal": Literal, "__name__": "nowhere", **names}
    exec(text, space)
    return space["It"]


def test_a_class_that_reads_a_value_without_content_needs_a_version():
    kind = in_cell(CELL.replace("return 1", "return LOCK"), LOCK=threading.Lock())
    message = r"plug-in nowhere.It: LOCK is a _thread.lock, whose content cannot be read .*; accepted: .*version="
    with pytest.raises(InputError, match=message):
        register(kind)
    register(version="1")(kind)
    assert str(origin_of(kind)) == "nowhere 1"
    unregister(kind)


CHANGES = [
    ('"it"\n    def', '"it"\n    size: int = 2\n    def'),
    ('"it"\n    def', '"it"\n    table = {"a": 1}\n    def'),
    ('"it"\n    def', '"it"\n    table = {"a": 2}\n    def'),
    ('"it"\n    def', '"it"\n    loss = staticmethod(lambda x: x)\n    def'),
    ('"it"\n    def', '"it"\n    loss = staticmethod(lambda x: 2 * x)\n    def'),
    ('"it"\n    def', '"it"\n    loss = partial(pow, 2)\n    def'),
    ('"it"\n    def', '"it"\n    loss = partial(pow, 3)\n    def'),
    ('"it"\n    def', '"it"\n    inner: Holder = Holder(seed=1)\n    def'),
    ('"it"\n    def', '"it"\n    inner: Holder = Holder(seed=2)\n    def'),
    (
        '(Thing):\n    name: Literal["it"] = "it"\n    def act(self):\n        return 1',
        '(Plain):\n    name: Literal["it"] = "it"',
    ),
    (
        '(Thing):\n    name: Literal["it"] = "it"\n    def act(self):\n        return 1',
        '(Plain):\n    name: Literal["it"] = "it"\n    size: int = 3',
    ),
]


@pytest.mark.parametrize(("old", "new"), CHANGES)
def test_the_digest_covers_defaults_attributes_and_classes_without_functions(old, new):
    assert old in CELL
    names = {"Holder": Holder, "partial": partial}
    changed = CELL.replace(old, new)
    assert str(origin_of(in_cell(changed, **names))) == str(origin_of(in_cell(changed, **names)))
    others = {str(origin_of(in_cell(CELL.replace(*pair), **names))) for pair in CHANGES if pair != (old, new)}
    assert str(origin_of(in_cell(changed, **names))) not in others


@pytest.mark.parametrize(
    "values",
    [
        (1, 2),
        ({"w": 1.0}, {"w": 2.0}),
        ([1], [2]),
        ({1, "a"}, {2, "a"}),
        (torch.tensor(1.0), torch.tensor(2.0)),
        (torch.zeros(2), torch.zeros(2, 1)),
        (np.zeros(2), np.zeros(2, np.float32)),
        (np.float32(1), np.float32(2)),
        (torch.float16, torch.float32),
        (Fraction(1, 2), Fraction(1, 3)),
        (itemgetter(1), itemgetter(2)),
        (partial(pow, 2), partial(pow, 3)),
        (torch.sin, torch.cos),
        (lambda x: x, lambda x: 2 * x),
    ],
    ids=lambda values: type(values[0]).__name__,
)
def test_the_digest_follows_the_globals_of_a_class_that_is_not_defined_again(values):
    kind = in_cell(CELL.replace("return 1", "return VALUE"), VALUE=values[0])
    register(kind)
    first = content_hash(Holder(thing=kind()))
    assert content_hash(Holder(thing=kind())) == first
    kind.act.__globals__["VALUE"] = values[1]
    assert content_hash(Holder(thing=kind())) != first
    kind.act.__globals__["VALUE"] = values[0]
    assert content_hash(Holder(thing=kind())) == first
    unregister(kind)


def test_pickling_a_plug_in_does_not_change_its_digest():
    @dataclass(frozen=True, kw_only=True)
    class Pickled(Thing):
        name: Literal["pickled"] = "pickled"

        def act(self) -> int:
            return 1

    Pickled.__module__ = "__main__"
    before = str(origin_of(Pickled))
    Pickled().__reduce_ex__(2)  # pickling stores the names of slots on the class
    assert str(origin_of(Pickled)) == before


def test_the_digest_covers_closures():
    def made(scale: float) -> type:
        @dataclass(frozen=True, kw_only=True)
        class Scaled(Plain):
            name: Literal["scaled"] = "scaled"

            def act(self) -> float:
                return scale

        return Scaled

    hashes = [content_hash(Holder(thing=made(scale)())) for scale in (1.0, 1.0, 50.0)]
    assert hashes[0] == hashes[1] != hashes[2]


PACKAGE = {
    "own_pk/__init__.py": "",
    "own_pk/inv.py": """
from dataclasses import dataclass
from typing import Literal
from condkd_ray.core.families import Family
from condkd_ray.core.method import Method
from own_pk import helper
import own_beside

@dataclass(frozen=True, kw_only=True)
class Thing(Method):
    name: str

THINGS = Family("own_things", Thing, ())

WORDS = {"a", "b", "c", "d", ("e", 1)}

@dataclass(frozen=True, kw_only=True)
class It(Thing):
    name: Literal["it"] = "it"
    def act(self):
        from own_pk.late import g
        return helper.f(own_beside.LEVEL), g(), "x" in {"x", "y", "z"}, WORDS
""",
    "own_pk/helper.py": "from own_pk import deeper\nUNUSED = 1\ndef f(x): return deeper.f(x)\n",
    "own_pk/deeper.py": "def f(x): return x\n",
    "own_pk/late.py": "def g(): return 1\n",
    "own_beside.py": "LEVEL = 1\n",
}
PRINT = "import sys; sys.path[:0] = sys.argv[1:]; from own_pk.inv import It; "
PRINT += "from condkd_ray.core.families import origin_of; print(origin_of(It))"


def test_the_digest_covers_own_modules_and_is_equal_in_all_processes(tmp_path: Path):
    def origin(seed: int, **changes: str) -> str:
        for name, text in {**PACKAGE, **changes}.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text, encoding="utf-8")
        command = [sys.executable, "-B", "-c", PRINT, str(tmp_path)]
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    first = origin(0)
    assert re.fullmatch("own_pk source [0-9a-f]{12}", first)
    assert origin(1) == first
    assert origin(2, **{"own_pk/helper.py": PACKAGE["own_pk/helper.py"].replace("UNUSED = 1", "UNUSED = 2")}) == first
    changed = {
        "own_pk/deeper.py": "def f(x): return 7 * x\n",
        "own_pk/late.py": "def g(): return 2\n",
        "own_beside.py": "LEVEL = 2\n",
    }
    assert len({first, *(origin(0, **{name: text}) for name, text in changed.items())}) == 4


def test_plugin_modules_names_the_own_modules_that_a_plug_in_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, text in PACKAGE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text.replace("LEVEL = 1", "def LEVEL(): return 1"), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    kind = importlib.import_module("own_pk.inv").It
    assert plugin_modules((kind(),)) >= {"own_pk.inv", "own_pk.helper", "own_pk.deeper", "own_beside"}
    for module in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[module]


def test_a_class_holds_its_origin_only_while_configs_are_pickled(mine):
    config = Holder(thing=mine())
    assert ORIGIN not in vars(mine)
    with origins_stored(config):
        assert vars(mine)[ORIGIN] == origin_of(mine)
    assert ORIGIN not in vars(mine)


def test_the_digest_of_a_class_in_a_notebook_cell_covers_its_functions():
    """In a cell Python finds the source of functions but not of classes."""
    found = []
    for cell, body in enumerate((CELL, CELL, CELL.replace("return 1", "return 2"))):
        file = f"ipykernel_1/{cell}.py"
        linecache.cache[file] = len(body), None, body.splitlines(keepends=True), file
        space = {"Thing": Thing, "dataclass": dataclass, "Literal": Literal, "__name__": "a_notebook"}
        exec(compile(body, file, "exec"), space)
        found.append(str(origin_of(space["It"])))
    assert found[0] == found[1] != found[2]


def test_a_new_definition_replaces_a_class_and_another_class_with_its_name_is_rejected(mine):
    again = register(definition())
    assert THINGS.members()["mine"] is again

    @dataclass(frozen=True, kw_only=True)
    class Other(Plain):
        name: Literal["mine"] = "mine"

    with pytest.raises(InputError, match=r"things 'mine' is defined twice; .*definition.*Mine of .* and .*Other of "):
        register(Other)
    assert THINGS.members()["mine"] is again
    unregister(again)


def test_the_name_of_a_method_of_this_package_is_rejected():
    @dataclass(frozen=True, kw_only=True)
    class Other(Plain):
        size: int = 1

    with pytest.raises(InputError, match=r"'plain' is defined twice; .* condkd_ray.own.Plain of condkd_ray and "):
        register(Other)


def unfrozen():
    @dataclass(kw_only=True)
    class Loose:
        name: Literal["loose"] = "loose"

    return Loose


def undecorated():
    class Bare(Plain):
        pass

    return Bare


def nameless():
    @dataclass(frozen=True, kw_only=True)
    class Nameless(Thing):
        name: str = "nameless"

        def act(self) -> int:
            return 0

    return Nameless


def misnamed():
    @dataclass(frozen=True, kw_only=True)
    class Misnamed(Plain):
        name: Literal["Mis-named"] = "Mis-named"

    return Misnamed


def abstract():
    @dataclass(frozen=True, kw_only=True)
    class Abstract(Thing):
        name: Literal["abstract"] = "abstract"

    return Abstract


def misspelt_task():
    @dataclass(frozen=True, kw_only=True)
    class Misspelt(Plain):
        tasks = ("segmentations",)
        name: Literal["misspelt"] = "misspelt"

    return Misspelt


def one_task():
    @dataclass(frozen=True, kw_only=True)
    class One(Plain):
        tasks = "segmentation"
        name: Literal["one"] = "one"

    return One


def unwritable():
    @dataclass(frozen=True, kw_only=True)
    class Unwritable(Plain):
        name: Literal["unwritable"] = "unwritable"
        make: Callable[[], int] = helper

    return Unwritable


def listed():
    @dataclass(frozen=True, kw_only=True)
    class Listed(Plain):
        name: Literal["listed"] = "listed"
        sizes: list[int] = field(default_factory=list)

    return Listed


def half_decorated():
    class Inner(Holder):
        """A subclass of a dataclass, without a decorator of its own."""

    @dataclass(frozen=True, kw_only=True)
    class Nested(Plain):
        name: Literal["nested"] = "nested"
        inner: Inner = Inner()

    return Nested


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (unfrozen, "registered class is '.*Loose'; accepted: a class that derives from the base of a family, such as "),
        (lambda: 3, "registered class is '3'; accepted: a class that derives from"),
        (undecorated, r"things plug-in is '.*Bare'; accepted: a class under @dataclass\(frozen=True, kw_only=True\)"),
        (nameless, "field name of type <class 'str'> with default is 'nameless'; accepted: a field name: Literal"),
        (misnamed, "is 'Mis-named'; accepted: a field name: Literal"),
        (abstract, r"Abstract: abstract methods is \['act'\]; accepted: none left"),
        (misspelt_task, r"Misspelt: tasks is \('segmentations',\); accepted: a tuple of 'classification' and 'segmen"),
        (one_task, "One: tasks is 'segmentation'; accepted: a tuple of"),
        (unwritable, "Unwritable: type of field make is .*Callable.*; accepted: what YAML holds: bool, int, float"),
        (listed, r"Listed: type of field sizes is 'list\[int\]'; accepted: what YAML holds: bool, int, float"),
        (half_decorated, "Nested: type of field inner is 'Inner'; accepted: what YAML holds: .*, frozen dataclass"),
    ],
)
def test_a_class_that_breaks_the_contract_is_rejected(make, message):
    with pytest.raises(InputError, match=message):
        register(make())


def test_fields_may_have_all_types_of_yaml():
    @dataclass(frozen=True, kw_only=True)
    class Rich(Plain):
        kept: ClassVar[list[int]] = []
        name: Literal["rich"] = "rich"
        path: Path | None = None
        sizes: tuple[int, ...] = ()
        kind: Literal["a", "b"] | None = None
        inner: Holder = Holder()

    register(Rich)
    given = Holder(thing=Rich(path=Path("x"), sizes=(1, 2), kind="a", inner=Holder(seed=3)))
    assert build(Holder, to_tree(given), "file") == given
    unregister(Rich)


def test_an_entry_point_is_loaded_when_members_are_first_needed(family, monkeypatch):
    things = family(("some-things", "1.4", "It", MODULE))
    assert "some_things" not in sys.modules
    (kind,) = things.members().values()
    assert kind.__module__ == "some_things"
    assert str(origin_of(kind)) == "some-things 1.4"
    monkeypatch.setattr(sys, "path", [])
    assert things.members() == {"it": kind}


def test_the_class_of_an_entry_point_may_also_register_itself(family):
    text = MODULE.replace("@dataclass", "from condkd_ray import register\n\n@register\n@dataclass")
    things = family(("some-things", "1.4", "It", text))
    assert [str(origin_of(kind)) for kind in things.members().values()] == ["some-things 1.4"]


def test_a_failed_import_is_logged_once_and_named_in_errors_about_names(family, logged):
    things = family(("some-things", "1.4", "It", MODULE), ("some-broken", "2.0", "It", "import nothing_of_that_name"))
    assert list(things.members()) == ["it"]
    assert list(things.members()) == ["it"]
    reason = "some_broken:It (ModuleNotFoundError: No module named 'nothing_of_that_name')"
    assert logged == [f"plug-in some-broken 2.0 failed to load {reason}"]
    holder = dataclass(frozen=True)(type("Holder", (), {"__annotations__": {"it": things.base}, "it": None}))
    message = "it is 'that'; accepted: it, or a plug-in once it is installed or registered; plug-in some-broken 2.0 "
    with pytest.raises(InputError, match=re.escape(f"{message}failed to load {reason}")):
        build(holder, {"it": "that"}, "file")


def holder_of(family: Family) -> type:
    return dataclass(frozen=True)(type("Holder", (), {"__annotations__": {"it": family.base}, "it": None}))


def test_the_name_of_two_entry_points_is_refused_and_others_stay(family, logged):
    that = MODULE.replace('"it"', '"that"')
    things = family(
        ("some-things", "1.4", "It", MODULE), ("some-others", "2.0", "It", MODULE), ("some-third", "3.0", "It", that)
    )
    for _ in range(2):
        assert list(things.members()) == ["that"]
        message = (
            r"file: it is 'it'; accepted: that, .*'it' is defined twice, by some_\w+.It of some-\w+ \S+ and some_\w+.It"
        )
        with pytest.raises(InputError, match=message):
            build(holder_of(things), {"it": "it"}, "file")
    assert len(logged) == 1
    assert "defined twice" in logged[0]


def test_a_name_defined_twice_is_reported_even_if_one_code_cannot_be_digested(family, logged, tmp_path: Path):
    locked = f"from threading import Lock\nLOCK = Lock()\n{MODULE.replace('return 1', 'return LOCK')}"
    things = family(("some-things", "1.4", "It", MODULE), ("some-locked", "2.0", "It", locked))
    (tmp_path / "some_locked-2.0.dist-info" / "direct_url.json").write_text(
        '{"dir_info": {"editable": true}}', encoding="utf-8"
    )
    assert things.members() == {}
    places = ("some_things.It of some-things 1.4", "some_locked.It of some_locked, whose code cannot be digested")
    (text,) = logged
    assert all(place in text for place in places)


def test_a_bad_entry_point_is_logged_with_its_distribution_and_others_stay(family, logged):
    things = family(("some-things", "1.4", "Literal", MODULE), ("some-others", "2.0", "It", MODULE))
    assert list(things.members()) == ["it"]
    (text,) = logged
    assert text.startswith("plug-in some-things 1.4 failed to load some_things:Literal (InputError: ")
    assert "accepted: a class that derives from" in text
    with pytest.raises(InputError, match=r"it is 'other'; accepted: it, .*; plug-in some-things 1.4 failed to load "):
        build(holder_of(things), {"it": "other"}, "file")


@pytest.mark.parametrize("registers", [False, True])
def test_an_editable_plug_in_has_a_version_and_a_digest(family, tmp_path: Path, registers: bool):
    text = (
        MODULE.replace("@dataclass", "from condkd_ray import register\n\n@register\n@dataclass")
        if registers
        else MODULE
    )
    things = family(("some-things", "1.4", "It", text))
    (tmp_path / "some_things-1.4.dist-info" / "direct_url.json").write_text(
        '{"dir_info": {"editable": true}}', encoding="utf-8"
    )
    kind = importlib.import_module("some_things").It
    first = str(origin_of(kind))
    assert re.fullmatch("some-things 1.4 source [0-9a-f]{12}", first)
    assert things.members() == {"it": kind}
    assert str(origin_of(kind)) == first
    kind.act.__code__ = (lambda self: 2).__code__
    assert str(origin_of(kind)) != first


def test_a_module_outside_the_folder_of_its_distribution_is_editable(family, tmp_path: Path, monkeypatch):
    things = family(("some-things", "1.4", "It", MODULE))
    (tmp_path / "sources").mkdir()
    (tmp_path / "some_things.py").rename(tmp_path / "sources" / "some_things.py")
    monkeypatch.syspath_prepend(tmp_path / "sources")
    (kind,) = things.members().values()
    assert re.fullmatch("some-things 1.4 source [0-9a-f]{12}", str(origin_of(kind)))


def test_the_content_of_a_path_of_a_plug_in_is_part_of_the_hash(tmp_path: Path):
    @dataclass(frozen=True, kw_only=True)
    class Filed(Plain):
        name: Literal["filed"] = "filed"
        table: Path = tmp_path / "table"
        log: Path | None = field(default=None, metadata={"identity": True})
        place: Path | None = field(default=None, metadata={"identity": False})

    def digest(**given) -> str:
        return content_hash(Holder(thing=Filed(**given)))

    with pytest.raises(InputError, match="table', which cannot be read"):
        digest()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x").write_text("1", encoding="utf-8")
    (tmp_path / "table").write_text("1", encoding="utf-8")
    first = digest()
    assert first == digest(table=tmp_path / "a" / "x") == digest(place=Path("nowhere"))
    assert first != digest(log=Path("nowhere"))
    assert digest(table=tmp_path / "a") == digest(table=tmp_path / "b")
    (tmp_path / "a" / "x").write_text("2", encoding="utf-8")
    assert digest(table=tmp_path / "a") != digest(table=tmp_path / "b")
    (tmp_path / "table").write_text("2", encoding="utf-8")
    assert digest() != first


def test_check_plugins_reports_missing_plug_ins_and_other_versions(mine, logged):
    check_plugins(plugins_in(Holder(thing=mine())), "record abc")
    assert not logged
    check_plugins({"things/mine": "my-things 0.1"}, "record abc")
    assert logged == [f"record abc: things 'mine' is from plug-in my-things 0.1; the plug-in here is {origin_of(mine)}"]
    message = (
        "record abc: inner.thing: things 'yours' is from plug-in your-things 0.2, which is neither installed nor "
        "registered here; accepted: a process that has this plug-in, for example after pip install your-things==0.2"
    )
    with pytest.raises(InputError, match=f"^{message}$"):
        check_plugins({"things/yours": "your-things 0.2"}, "record abc", {"inner": {"thing": {"name": "yours"}}})
    with pytest.raises(InputError, match="no_such 'yours' is from plug-in your-things"):
        check_plugins({"no_such/yours": "your-things 0.2"}, "record abc")
    with pytest.raises(
        InputError, match="accepted: a process that imports or defines the class in __main__, and regis"
    ):
        check_plugins({"things/yours": "__main__ source 0123456789ab"}, "record abc")
    with pytest.raises(
        InputError, match="accepted: a process that imports or defines the class in __main__, and registers it"
    ):
        check_plugins({"things/yours": "__main__ 2"}, "record abc")
    either = "pip install helpers==2, or that imports the module helpers and registers the class$"
    with pytest.raises(InputError, match=f"accepted: a process that has this plug-in, for example after {either}"):
        check_plugins({"things/yours": "helpers 2"}, "record abc")


def test_check_plugins_reports_a_plug_in_whose_import_failed(family):
    things = family(("some-broken", "2.0", "It", "raise RuntimeError('too old')"))
    with pytest.raises(InputError, match=r"some-broken 2.0 failed to load some_broken:It \(RuntimeError: too old"):
        check_plugins({f"{things.name}/it": "some-broken 2.0"}, "record abc")

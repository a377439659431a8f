"""Tests of plug-ins: methods from other packages, added by an entry point or by `register`, and their contract."""

import importlib
import linecache
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass
from itertools import count
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from condkd_ray import register
from condkd_ray.core.config import build, content_hash, identity, to_tree
from condkd_ray.core.families import Family, check_plugins, origin_of, plugins_in, plugins_named, unregister
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
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            (info / "entry_points.txt").write_text(f"[condkd_ray.{group}]\nit = {module}:{place}\n")
            (tmp_path / f"{module}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()
        sys.modules["tests_base"] = type(sys)("tests_base")
        sys.modules["tests_base"].Base = base
        return Family(group, base, ())

    yield make
    for module in [name for name in sys.modules if name.startswith(("tests_base", "some_"))]:
        del sys.modules[module]


MODULE = """
from dataclasses import dataclass
from typing import Literal
from tests_base import Base

@dataclass(frozen=True, kw_only=True)
class It(Base):
    name: Literal["it"] = "it"
    def act(self):
        return 1
"""


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


def test_a_class_without_source_needs_a_version():
    space = {"Thing": Thing, "dataclass": dataclass, "Literal": Literal, "__name__": "nowhere"}
    text = MODULE.split("Base\n", 1)[1].replace("Base", "Thing")
    exec(text, space)
    with pytest.raises(InputError, match=r"source of nowhere.It is None; accepted: .*version="):
        register(space["It"])
    register(version="1")(space["It"])
    assert str(origin_of(space["It"])) == "nowhere 1"
    unregister(space["It"])


def test_the_digest_of_a_class_in_a_notebook_cell_covers_its_functions():
    """In a cell Python finds the source of functions but not of classes."""
    text, found = MODULE.split("Base\n", 1)[1].replace("Base", "Thing"), []
    for cell, body in enumerate((text, text, text.replace("return 1", "return 2"))):
        file = f"/tmp/ipykernel_1/{cell}.py"
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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (unfrozen, "registered class is '.*Loose'; accepted: a class that derives from the base of a family, such as "),
        (lambda: 3, "registered class is '3'; accepted: a class that derives from"),
        (undecorated, r"things plug-in is '.*Bare'; accepted: a class under @dataclass\(frozen=True, kw_only=True\)"),
        (nameless, "field name of type <class 'str'> with default is 'nameless'; accepted: a field name: Literal"),
        (misnamed, "is 'Mis-named'; accepted: a field name: Literal"),
        (abstract, r"Abstract: abstract methods is \['act'\]; accepted: none left"),
        (unwritable, "Unwritable: type of field make is .*Callable.*; accepted: what YAML holds: bool, int, float"),
        (listed, r"Listed: type of field sizes is 'list\[int\]'; accepted: what YAML holds: bool, int, float"),
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


def test_two_entry_points_with_one_name_are_rejected_each_time(family):
    things = family(("some-things", "1.4", "It", MODULE), ("some-others", "2.0", "It", MODULE))
    for _ in range(2):
        with pytest.raises(InputError, match=r"'it' is defined twice; .*some_\w+.It of some-\w+ .* and some_\w+.It"):
            things.members()


def test_the_error_of_a_bad_entry_point_names_its_distribution(family):
    things = family(("some-things", "1.4", "Literal", MODULE))
    with pytest.raises(InputError, match=r"is 'plug-in some-things 1.4: some_things:Literal'; accepted: a class"):
        things.members()


def test_check_plugins_reports_missing_plug_ins_and_other_versions(mine, logged):
    check_plugins(plugins_in(Holder(thing=mine())), "record abc")
    assert not logged
    check_plugins({"things/mine": "my-things 0.1"}, "record abc")
    assert logged == [
        f"record abc: things mine was made by plug-in my-things 0.1; the plug-in here is {origin_of(mine)}"
    ]
    message = "record abc: things is 'yours' of plug-in your-things 0.2, which is neither installed nor registered here"
    with pytest.raises(InputError, match=f"^{message}; accepted: "):
        check_plugins({"things/yours": "your-things 0.2"}, "record abc")
    with pytest.raises(InputError, match="no_such is 'yours' of plug-in your-things"):
        check_plugins({"no_such/yours": "your-things 0.2"}, "record abc")


def test_check_plugins_reports_a_plug_in_whose_import_failed(family):
    things = family(("some-broken", "2.0", "It", "raise RuntimeError('too old')"))
    with pytest.raises(InputError, match=r"some-broken 2.0 failed to load some_broken:It \(RuntimeError: too old"):
        check_plugins({f"{things.name}/it": "some-broken 2.0"}, "record abc")

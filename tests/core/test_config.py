import dataclasses
import hashlib
import json
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from condkd_ray.core.config import checked_fields, content_hash, flattened, identity, merge, to_tree
from condkd_ray.core.method import InputError, Method
from condkd_ray.data.datasets import DataConfig
from condkd_ray.methods.condensation import Imported
from condkd_ray.methods.inversion import Dafl, DeepInversion, Fast, Nayer
from condkd_ray.methods.losses.kd import Attention, LogitL1
from condkd_ray.methods.memory import Growing
from condkd_ray.methods.supervised import Supervised, TeacherConfig
from condkd_ray.models import ResNet18, Torchvision, Wrn
from condkd_ray.trial.config import Pipeline, TrialConfig, dump, from_tree, read

PLAIN: dict[Any, Any] = {
    bool: st.booleans(),
    int: st.integers(0, 40),
    float: st.floats(0, 3),
    str: st.text("ab-*.01", min_size=1),
    Path: st.sampled_from([Path("w.pt"), Path("/a/b"), Path("../c d")]),
    type(None): st.none(),
}
NEEDED: dict[Any, dict[str, Any]] = {
    Imported: {"path": Path("set.pt")},
    Attention: {"teacher_layers": ("stages.0",), "student_layers": ("stages.0",)},
}
"""Values for fields without a default."""


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for values of a type, which may be a config dataclass."""
    if dataclasses.is_dataclass(hint):
        return configs(hint)
    if hint in PLAIN:
        return PLAIN[hint]
    parts = get_args(hint)
    if get_origin(hint) is Literal:
        return st.sampled_from(parts)
    if get_origin(hint) in (Union, types.UnionType):
        return st.one_of(*map(values, parts))
    assert get_origin(hint) is tuple
    if Ellipsis not in parts:
        return st.tuples(*map(values, parts))
    return st.lists(values(parts[0]), min_size=1, max_size=3).map(tuple)


@st.composite
def configs(draw: st.DrawFn, kind: Any) -> Any:
    """Draw each field of a frozen dataclass; fields whose value it rejects keep their defaults."""
    config = kind(**NEEDED.get(kind, {}))
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        value = draw(values(hints[field.name]))
        try:
            config = dataclasses.replace(config, **{field.name: value})
        except InputError:
            continue
    return config


@given(config=configs(TrialConfig))
def test_every_config_is_equal_after_conversion_to_a_tree_and_to_yaml(config):
    assert from_tree(to_tree(config)) == config
    assert from_tree(yaml.safe_load(dump(config))) == config


def test_omitted_leaves_have_their_defaults():
    assert from_tree({}) == TrialConfig()
    assert from_tree({"distiller": {"steps": 3}}).distiller == dataclasses.replace(TrialConfig().distiller, steps=3)


@pytest.mark.parametrize("tree", [{"inversion": {"steps": 3}}, {"inversion": {"name": "fast", "steps": 3}}])
def test_leaves_without_a_name_belong_to_the_default_method(tree):
    assert from_tree(tree).inversion == Fast(steps=3)


@pytest.mark.parametrize("tree", [{"inversion": "dafl"}, {"inversion": {"name": "dafl"}}])
def test_a_method_may_be_given_by_its_name_alone(tree):
    assert from_tree(tree).inversion == Dafl()


@pytest.mark.parametrize(
    ("tree", "network"),
    [
        ({"name": "wrn", "depth": 16, "width": 1}, Wrn(depth=16, width=1)),
        ("resnet18", ResNet18()),
        ({"name": "torchvision", "model": "resnet50"}, Torchvision(model="resnet50")),
    ],
)
def test_a_network_is_given_by_its_name_and_fields(tree, network):
    assert from_tree({"student": tree}).student == network
    assert from_tree({"teacher": {"network": tree}}).teacher.network == network


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10", "svhn", "parquet", "image_folder"])
def test_a_data_set_is_selected_by_its_name(name):
    assert from_tree({"data": {"name": name}}).data.name == name


def test_a_number_that_yaml_reads_as_text_is_a_number():
    # YAML 1.1 reads 1e-3 as text.
    assert from_tree(yaml.safe_load("distiller: {lr: 1e-3}")).distiller.lr == 1e-3


def error_of(tree: Any) -> str:
    with pytest.raises(InputError) as caught:
        from_tree(tree, "trial.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"inversions": {}}, "trial.yaml: 'inversions' names no field (did you mean inversion?); accepted: seed, data"),
        (
            {"distiller": {"stepz": 1}},
            "trial.yaml: distiller: 'stepz' names no field (did you mean steps?); accepted: ",
        ),
        ({1: 2}, "trial.yaml: 1 names no field; accepted: seed, "),
        ({"inversion": "gan"}, "trial.yaml: inversion is 'gan'; accepted: fast, "),
        ({"inversion": {"name": "gan"}}, "trial.yaml: inversion is 'gan'; accepted: fast, "),
        ({"inversion": ["fast"]}, "trial.yaml: inversion is ['fast']; accepted: fast, "),
        ({"inversion": {"name": ["fast"]}}, "trial.yaml: inversion is ['fast']; accepted: fast, "),
        ({"inversion": {"name": "fast", "tv_weight": 1}}, "trial.yaml: inversion: 'tv_weight' names no field"),
        ({"data": "imagenet"}, "trial.yaml: data is 'imagenet'; accepted: digits, mnist, fashion_mnist, cifar10"),
        ({"condensation": {"ipc": 3}}, "trial.yaml: condensation: name is not given; accepted: random_real, "),
        ({"condensation": "imported"}, "trial.yaml: condensation: path is not given; accepted: "),
        ({"distiller": 3}, "trial.yaml: distiller is 3; accepted: a mapping with loss, steps, "),
        ({"rounds": 2.5}, "trial.yaml: rounds is 2.5; accepted: a valid integer"),
        ({"rounds": None}, "trial.yaml: rounds is None; accepted: a valid integer"),
        ({"rounds": 0}, "trial.yaml: rounds is 0; accepted: an integer >= 1"),
        ({"precision": "half"}, "trial.yaml: precision is 'half'; accepted: 'float32' or 'bfloat16'"),
        ({"teacher": {"weights": 3}}, "trial.yaml: teacher: weights is 3; accepted: a path"),
        ({"student": {"name": "resnet", "depth": 9}}, "trial.yaml: student: resnet depth is 9; accepted: 6n + 2"),
        ({"distiller": {"lr": float("nan")}}, "trial.yaml: distiller: student lr is nan; accepted: > 0"),
        ([], "trial.yaml is []; accepted: a mapping with seed, data"),
    ],
)
def test_the_error_of_a_bad_tree_has_key_value_and_accepted_values(tree, message):
    assert error_of(tree).startswith(message)


def test_merge_replaces_leaves():
    base = {"inversion": {"name": "fast", "steps": 3}, "rounds": 12, "condensation": None}
    merged = merge(base, {"inversion": {"batch": 8}, "condensation": {"name": "random_real"}})
    assert merged == {
        "inversion": {"name": "fast", "steps": 3, "batch": 8},
        "rounds": 12,
        "condensation": {"name": "random_real"},
    }
    assert base["inversion"] == {"name": "fast", "steps": 3}


def test_merge_replaces_another_method_completely():
    base = {"inversion": {"name": "fast", "bn_momentum": 0.5}, "rounds": 12}
    assert merge(base, {"inversion": {"name": "dafl"}})["inversion"] == {"name": "dafl"}
    assert merge(base, {"inversion": None})["inversion"] is None


def leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not dataclasses.is_dataclass(value):
        return [path]
    return [leaf for f in dataclasses.fields(value) for leaf in leaves(getattr(value, f.name), (*path, f.name))]


def changed(value: Any, path: tuple[str, ...], new: Any) -> Any:
    """Return a copy with one leaf replaced, without the checks of the dataclasses."""
    twin = object.__new__(type(value))
    for f in dataclasses.fields(value):
        object.__setattr__(twin, f.name, getattr(value, f.name))
    inner = changed(getattr(value, path[0]), path[1:], new) if len(path) > 1 else new
    object.__setattr__(twin, path[0], inner)
    return twin


BASE = TrialConfig(
    data=DataConfig(root=Path("/a")),
    teacher=TeacherConfig(weights=Path("/b.pt")),
    condensation=Imported(path=Path("/c.pt")),
    inversion=DeepInversion(),
)
PLACES = {("data", "root"), ("teacher", "weights"), ("teacher", "card"), ("condensation", "path")}
NOT_HASHED = PLACES | {("teacher", "force")}
"""Leaves that are not part of the hash: paths of files, and `force` of the teacher."""


def test_the_hash_changes_with_every_leaf_except_paths_and_force():
    assert set(leaves(BASE)) >= NOT_HASHED
    hashes = {path: content_hash(changed(BASE, path, Path("/elsewhere"))) for path in leaves(BASE)}
    assert {path for path, found in hashes.items() if found == content_hash(BASE)} == NOT_HASHED
    others = [found for path, found in hashes.items() if path not in NOT_HASHED]
    assert len(set(others)) == len(others)


def test_different_methods_and_contents_have_different_hashes():
    assert content_hash(BASE, {"data": "1"}) != content_hash(BASE, {"data": "2"}) != content_hash(BASE)
    assert content_hash(TrialConfig(inversion=Fast())) != content_hash(TrialConfig(inversion=Dafl()))
    assert content_hash(TrialConfig(seed=1)) == content_hash(from_tree({"seed": 1}))


def test_identity_omits_defaults_but_not_the_names_of_methods():
    assert identity(TrialConfig()) == {}
    assert identity(TrialConfig(inversion=Fast(width=64))) == {"inversion": {"name": "fast", "width": 64}}
    assert identity(TrialConfig(inversion=Dafl())) == {"inversion": {"name": "dafl"}}
    # The default of the parent differs from the defaults of the class.
    assert identity(TeacherConfig(training=Supervised())) == {"training": {}}
    assert identity(TeacherConfig(training=Supervised(epochs=40, lr=0.1))) == {"training": {"epochs": 40, "lr": 0.1}}
    assert identity(TrialConfig(pipeline=Pipeline())) == {"pipeline": {}}
    assert identity(TrialConfig(data=DataConfig(root=Path("/a")))) == {}
    assert identity([Fast(), Growing()]) == [{"name": "fast"}, {"name": "growing"}]
    assert identity(TrialConfig(), complete=True).keys() == to_tree(TrialConfig()).keys()


def test_hashes_have_not_changed():
    assert content_hash(TrialConfig()) == hashed("[{},{}]")
    assert content_hash(TrialConfig(seed=1, inversion=Dafl())) == hashed('[{"inversion":{"name":"dafl"},"seed":1},{}]')


def hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_every_method_with_its_defaults_has_a_different_hash():
    hints = get_type_hints(TrialConfig)
    others = [
        changed(TrialConfig(), (field,), kind(**NEEDED.get(kind, {})))
        for field, hint in hints.items()
        for kind in get_args(hint)
        if dataclasses.is_dataclass(kind)
    ]
    others.append(TrialConfig(distiller=dataclasses.replace(TrialConfig().distiller, loss=LogitL1())))
    default = {identity(one, complete=True) == identity(TrialConfig(), complete=True) for one in others}
    assert default == {True, False}
    assert len({content_hash(one) for one in others}) == len({str(identity(one, complete=True)) for one in others})


@cache
def newer(kind: type, default: int) -> type:
    """Return the class with one more field, as in a later version."""
    more, place = dataclasses.field(default=default), {"__module__": kind.__module__}
    given = {"bases": (kind,), "namespace": place, "frozen": True, "kw_only": True}
    return dataclasses.make_dataclass(kind.__name__, [("newer", int, more)], **given)


def grown(value: Any, given: int = 7) -> Any:
    """Return the value with one more field, whose default is 7, in each of its dataclasses."""
    if not dataclasses.is_dataclass(value):
        return value
    twin = object.__new__(newer(type(value), 7))
    for f in dataclasses.fields(value):
        object.__setattr__(twin, f.name, grown(getattr(value, f.name), given))
    object.__setattr__(twin, "newer", given)
    return twin


def without_files(config: TrialConfig) -> TrialConfig:
    """Return the config without the path whose file content would be hashed."""
    if not isinstance(config.inversion, Nayer):
        return config
    return dataclasses.replace(config, inversion=dataclasses.replace(config.inversion, embeddings=None))


@given(config=configs(TrialConfig).map(without_files))
def test_a_new_field_at_its_default_changes_no_hash(config):
    assert content_hash(grown(config)) == content_hash(config)
    assert content_hash(grown(config, given=8)) != content_hash(config)


def mixes(one: Any, other: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield path and value of each leaf and method of `other` that can replace that of `one`."""
    for f in dataclasses.fields(one):
        own, new = getattr(one, f.name), getattr(other, f.name)
        yield (*path, f.name), new
        if dataclasses.is_dataclass(own) and type(own) is type(new):
            yield from mixes(own, new, (*path, f.name))


@settings(max_examples=20)
@given(one=configs(TrialConfig).map(without_files), other=configs(TrialConfig).map(without_files))
def test_hashes_are_equal_if_and_only_if_the_complete_identities_are(one, other):
    for start in (one, TrialConfig()):
        twins = [start, *(changed(start, path, value) for path, value in mixes(start, other))]
        found = {json.dumps(identity(twin, complete=True), sort_keys=True): content_hash(twin) for twin in twins}
        assert len(set(found.values())) == len(found)
        assert {content_hash(twin) for twin in twins} == set(found.values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"rounds: [1, 2", "is not YAML"),
        (b"- rounds", "holds a list; accepted: a mapping"),
        (b"rounds", "holds a str; accepted: a mapping"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"a: !!python/object/apply:os.getcwd []", "is not YAML"),
        (b"rounds: 3\nlr: !log_uniform [1, 2]", "has an open leaf, !log_uniform in line 2; accepted: single values"),
    ],
)
def test_a_file_that_is_not_a_config_is_rejected(tmp_path, content, message):
    path = tmp_path / "trial.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"trial.yaml.*{message}"):
        read(path)


def test_a_missing_file_is_rejected_and_an_empty_one_is_the_default(tmp_path):
    with pytest.raises(InputError, match=r"none.yaml', which cannot be read .*accepted: a YAML file"):
        read(tmp_path / "none.yaml")
    (tmp_path / "empty.yaml").touch()
    assert read(tmp_path / "empty.yaml") == TrialConfig()


def test_flattened_has_one_leaf_per_path_and_per_list():
    tree = {"a": {"b": 1, "c": {"d": [1, {"e": 2}]}, "empty": {}}, "f": None}
    assert flattened(tree) == {"a/b": 1, "a/c/d": [1, {"e": 2}], "f": None}
    assert list(flattened(tree, ".")) == ["a.b", "a.c.d", "f"]


def test_merge_adds_leaves_to_a_method_given_by_its_name_alone():
    assert merge({"data": "mnist"}, {"data": {"mean": [0.5]}}) == {"data": {"name": "mnist", "mean": [0.5]}}
    assert merge({"data": "mnist"}, {"data": {"name": "svhn"}}) == {"data": {"name": "svhn"}}
    assert from_tree(merge({"inversion": "dafl"}, {"inversion": {"batch": 8}})).inversion == Dafl(batch=8)


def test_names_may_be_integers_without_quotes():
    of = {"module": "nets:make"}
    assert from_tree({"teacher": of | {"class_order": [1, 0, 2]}}).teacher.class_order == ("1", "0", "2")
    for wrong in ([True, 0], [1.5, 0], 3):
        with pytest.raises(InputError, match="class_order"):
            from_tree({"teacher": of | {"class_order": wrong}})


@dataclass(frozen=True, kw_only=True)
class _Inner(Method):
    sizes: tuple[int, ...] = (1, 2)
    rate: float = 0.5


@dataclass(frozen=True, kw_only=True)
class _Outer(Method):
    inner: _Inner = _Inner()
    optional: _Inner | None = None
    file: Path | None = None
    steps: int = 3


def test_fields_of_a_config_made_in_python_get_their_types_and_keep_their_identity():
    whole = _Outer(inner=_Inner(rate=1), optional=_Inner())
    assert checked_fields(whole, "config") is whole
    loose = _Outer(inner=_Inner(sizes=np.array([1, 3])), file="a.bin", steps=np.int64(3))  # type: ignore[arg-type]
    fixed = checked_fields(loose, "config")
    assert fixed == _Outer(inner=_Inner(sizes=(1, 3)), file=Path("a.bin"))
    assert [type(fixed.steps), type(fixed.inner.sizes[0])] == [int, int]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (_Outer(steps=1.5), "config: steps is 1.5; accepted: a valid integer"),  # type: ignore[arg-type]
        (_Outer(inner=None), "config: inner is None; accepted: an object of the method _Inner"),  # type: ignore[arg-type]
        (_Outer(inner=_Inner(sizes=3)), "config: inner: sizes is 3; accepted: a valid tuple"),  # type: ignore[arg-type]
    ],
)
def test_a_field_of_another_type_is_refused(config, expected):
    with pytest.raises(InputError, match=re.escape(expected)):
        checked_fields(config, "config")

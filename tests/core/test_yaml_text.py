"""Tests that every fault of a YAML text is reported as a YAML error in configs, search spaces and points."""

import pytest
import yaml

from condkd_ray.core.method import InputError
from condkd_ray.core.yaml_text import load_yaml
from condkd_ray.study import space
from condkd_ray.study.points import points_of
from condkd_ray.trial.config import read

LAUGHS = "a0: &a0 [x]\n" + "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12))
MERGED = "a0: &a0 {x: 1}\n" + "\n".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 12))
CHAIN = "a0: &a0 [x]\n" + "\n".join(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 400))
NO_VALUE = "a value is not valid for its type"
DEEP = "are nested more than 50 deep"
BAD = {
    "a date that does not exist": ("rounds: 2001-02-30", NO_VALUE),
    "a number of 5000 digits": (f"rounds: {'1' * 5000}", NO_VALUE),
    "an invalid integer": ("rounds: !!int x", NO_VALUE),
    "an empty number": ("rounds: !!float ''", NO_VALUE),
    "an invalid boolean": ("rounds: !!bool x", NO_VALUE),
    "an invalid time": ("rounds: !!timestamp x", NO_VALUE),
    "deeply nested lists": ("[" * 3000, DEEP),
    "deeply nested mappings": ("{a: " * 3000, DEEP),
    "a recursive value": ("&a {rounds: *a}", DEEP),
    "a recursive choice": ("rounds: &a !choice [1, *a]", DEEP),
    "a chain of aliases": (CHAIN, DEEP),
    "exponential aliases": (LAUGHS, "its aliases expand to .* more than 1000000"),
    "exponential merges": (MERGED, "its aliases expand to .* more than 1000000"),
    "a key twice": ("rounds: 3\nseed: 1\nrounds: 4", "the key 'rounds' occurs twice, in lines 1 and 3"),
    "a key twice in two spellings": ("yes: 1\ntrue: 2", "the key 'true' occurs twice, in lines 1 and 2"),
    "a number twice in two spellings": ("1: a\n01: b", "the key '01' occurs twice, in lines 1 and 2"),
    "an unknown tag": ("rounds: !!python/object:os.system {}", "could not determine a constructor"),
    "an unhashable key": ("? [a]\n: 1", "unhashable key"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_faulty_yaml_has_the_same_message_in_all_files(tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    if "!choice" not in text:
        with pytest.raises(yaml.YAMLError, match=message):
            load_yaml(text)
        with pytest.raises(InputError, match=rf"x\.yaml is not YAML: .*{message}"):
            read(tmp_path / "x.yaml")
        with pytest.raises(InputError, match=rf"--points is .*x\.yaml', which cannot be read \(.*{message}"):
            points_of(space.parse("seed: !int [0, 3]"), tmp_path / "x.yaml")
    with pytest.raises(InputError, match=f"the search space is not YAML: .*{message}"):
        space.read(tmp_path / "x.yaml")


def test_anchors_and_merges_are_read():
    text = "base: &b {lr: 1}\na: {<<: *b, momentum: 2}\nb: {<<: *b, lr: 3}\nc: *b"
    assert load_yaml(text) == {"base": {"lr": 1}, "a": {"lr": 1, "momentum": 2}, "b": {"lr": 3}, "c": {"lr": 1}}
    assert load_yaml("") is None
    assert load_yaml("- {a: 1}\n- {a: 1}") == [{"a": 1}, {"a": 1}]
    assert len(load_yaml("&a [" + "1, " * 20000 + "]")) == 20000


def test_the_limit_of_aliases_grows_with_the_text():
    many = "base: &b [1, 2, 3]\nothers:\n" + "- *b\n" * 5000
    assert len(load_yaml(many)["others"]) == 5000

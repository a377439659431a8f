"""Compares the defaults of all fields with those at the last increase of the version of the numbers.

Hashes omit fields at their defaults, so a changed default would give an old hash a new meaning. `pytest --update-golden
tests/golden` rewrites `defaults.json`, unless a version has to be raised first.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from condkd_ray.core.config import default_identities
from condkd_ray.trial.artifacts import RECIPE
from condkd_ray.trial.config import TrialConfig
from condkd_ray.trial.plan import NUMBERS

PATH = Path(__file__).with_name("defaults.json")
WRITE = "rewrite defaults.json: pytest --update-golden tests/golden/test_defaults.py"
CACHED = ("teacher", "condensation")
"""Config fields that determine the names of artifacts in the cache."""


def defaults(kind: type, path: str = "") -> dict[str, Any]:
    """Return the defaults of all fields that are part of a hash, by path, including those of all members of unions."""
    found: dict[str, Any] = {}
    hints, known = get_type_hints(kind), default_identities(kind)
    for field in dataclasses.fields(kind):
        if not field.metadata.get("identity", True):
            continue
        found[place := f"{path}{field.name}"] = known.get(field.name, "(required)")
        hint = hints[field.name]
        for member in filter(dataclasses.is_dataclass, get_args(hint) or (hint,)):
            found |= defaults(member, f"{place}{_label(member)}.")
    return found


def _label(member: type) -> str:
    """Return the name of a member of a union in brackets; empty if the class has no unique name."""
    names = get_args(get_type_hints(member).get("name"))
    return f"[{names[0]}]" if len(names) == 1 else ""


def current() -> dict[str, Any]:
    return json.loads(json.dumps({"numbers": NUMBERS, "recipe": RECIPE, "defaults": defaults(TrialConfig)}))


def changed_paths(frozen: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the paths whose default changed or that were removed; new paths are not included."""
    old, new = frozen["defaults"], now["defaults"]
    return [path for path, default in old.items() if path not in new or new[path] != default]


def to_raise(frozen: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return messages that name the versions to raise before the defaults can be stored again."""
    paths = changed_paths(frozen, now)
    cached = [path for path in paths if path.startswith(CACHED)]
    texts = []
    if paths and now["numbers"] <= frozen["numbers"]:
        texts.append(f"raise NUMBERS in condkd_ray/trial/plan.py: defaults changed or fields were removed: {paths}")
    if cached and now["recipe"] == frozen["recipe"]:
        texts.append(f"raise RECIPE in condkd_ray/trial/artifacts.py: defaults of cached artifacts changed: {cached}")
    return texts


def test_no_default_has_changed_unless_the_numbers_were_raised(request):
    now, update = current(), request.config.getoption("update_golden")
    frozen = json.loads(PATH.read_text()) if PATH.is_file() or not update else now
    messages = to_raise(frozen, now)
    assert not messages, "; ".join(messages)
    if update:
        PATH.write_text(json.dumps(now, indent=1) + "\n")
        return
    added = [path for path in now["defaults"] if path not in frozen["defaults"]]
    assert not added, f"new fields, which change no existing hash: {added}; {WRITE}"
    assert now == frozen, f"numbers or recipe were raised; {WRITE}"


FROZEN = {"numbers": 2, "recipe": "1", "defaults": {"rounds": 12, "teacher.seed": 0, "memory[bank].size": 4}}


@pytest.mark.parametrize(
    ("change", "raised", "expected"),
    [
        ({}, {}, []),
        ({"new": 3}, {}, []),
        ({"rounds": 13}, {}, ["NUMBERS"]),
        ({"rounds": 13}, {"numbers": 3}, []),
        ({"memory[bank].size": None}, {"recipe": "2"}, ["NUMBERS"]),
        ({"teacher.seed": 1}, {}, ["NUMBERS", "RECIPE"]),
        ({"teacher.seed": 1}, {"numbers": 3}, ["RECIPE"]),
        ({"teacher.seed": 1}, {"numbers": 3, "recipe": "2"}, []),
    ],
)
def test_a_changed_default_needs_a_new_version_and_a_new_field_does_not(change, raised, expected):
    changed = {path: default for path, default in (FROZEN["defaults"] | change).items() if default is not None}
    found = to_raise(FROZEN, FROZEN | raised | {"defaults": changed})
    assert [text.split()[1] for text in found] == expected


def test_defaults_include_every_member_of_every_union():
    found = defaults(TrialConfig)
    assert found["inversion"] == {"name": "fast"}
    assert found["teacher"] == {}
    assert found["teacher.training"] == {"epochs": 40}
    assert found["teacher.training.epochs"] == 10
    assert found["distiller.loss[hinton].name"] == "hinton"
    assert found["condensation[imported].name"] == "imported"
    assert "condensation[imported].path" not in found
    assert found["distiller.loss[attention].teacher_layers"] == "(required)"

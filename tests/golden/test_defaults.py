"""The default of every field of every method, as it was when the version of the numbers was last raised.

Hashes leave defaults out, so a default that changes would give an old hash a new meaning. `pytest --update-golden
tests/golden` writes `defaults.json`, but not where a version has to be raised first.
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
WRITE = "write defaults.json anew: pytest --update-golden tests/golden/test_defaults.py"
CACHED = ("teacher", "condensation")
"""Fields that artifacts in the cache are named by."""


def defaults(kind: type, path: str = "") -> dict[str, Any]:
    """Defaults of all fields that are part of a hash, by path; those of each member of a union."""
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
    """The name that tells a member of a union from the others."""
    names = get_args(get_type_hints(member).get("name"))
    return f"[{names[0]}]" if len(names) == 1 else ""


def current() -> dict[str, Any]:
    return json.loads(json.dumps({"numbers": NUMBERS, "recipe": RECIPE, "defaults": defaults(TrialConfig)}))


def moved(frozen: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Paths whose default is another one now, or that are gone; not those that are new."""
    old, new = frozen["defaults"], now["defaults"]
    return [path for path, default in old.items() if path not in new or new[path] != default]


def to_raise(frozen: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What has to be raised before the defaults may be frozen anew."""
    paths = moved(frozen, now)
    cached = [path for path in paths if path.startswith(CACHED)]
    told = []
    if paths and now["numbers"] <= frozen["numbers"]:
        told.append(f"raise NUMBERS in condkd_ray/trial/plan.py: defaults changed or fields vanished: {paths}")
    if cached and now["recipe"] == frozen["recipe"]:
        told.append(f"raise RECIPE in condkd_ray/trial/artifacts.py: defaults of cached artifacts changed: {cached}")
    return told


def test_no_default_has_changed_unless_the_numbers_were_raised(request):
    now, update = current(), request.config.getoption("update_golden")
    frozen = json.loads(PATH.read_text()) if PATH.is_file() or not update else now
    told = to_raise(frozen, now)
    assert not told, "; ".join(told)
    if update:
        PATH.write_text(json.dumps(now, indent=1) + "\n")
        return
    added = [path for path in now["defaults"] if path not in frozen["defaults"]]
    assert not added, f"new fields, which change no hash of today: {added}; {WRITE}"
    assert now == frozen, f"numbers or recipe were raised; {WRITE}"


FROZEN = {"numbers": 2, "recipe": "1", "defaults": {"rounds": 12, "teacher.seed": 0, "memory[bank].size": 4}}


@pytest.mark.parametrize(
    ("change", "raised", "told"),
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
def test_a_changed_default_needs_a_new_version_and_a_new_field_does_not(change, raised, told):
    changed = {path: default for path, default in (FROZEN["defaults"] | change).items() if default is not None}
    found = to_raise(FROZEN, FROZEN | raised | {"defaults": changed})
    assert [text.split()[1] for text in found] == told


def test_every_member_of_every_union_is_there():
    found = defaults(TrialConfig)
    assert found["inversion"] == {"name": "fast"}
    assert found["teacher"] == {}
    assert found["teacher.training"] == {"epochs": 40}
    assert found["teacher.training.epochs"] == 10
    assert found["distiller.loss[hinton].name"] == "hinton"
    assert found["condensation[imported].name"] == "imported"
    assert "condensation[imported].path" not in found
    assert found["distiller.loss[attention].teacher_layers"] == "(required)"

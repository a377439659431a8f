"""The table of methods: complete, honest about whose choice a field is, and the README's."""

import dataclasses
from pathlib import Path
from typing import get_args

import pytest

from condkd_ray import catalogue
from condkd_ray.inversion import AnyInversion

KINDS = [kind for union in catalogue.FAMILIES.values() for kind in catalogue.methods(union)]
README = Path(__file__).parents[1] / "README.md"


def test_it_names_every_member_once():
    lines = catalogue.table().splitlines()[2:]
    assert len(lines) == len(KINDS)
    for kind in get_args(AnyInversion):
        assert sum(line.startswith(f"| inversion | `{kind().name}` |") for line in lines) == 1


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_hyper_parameter_is_told_and_what_is_ours_is_a_field(kind):
    names = {field.name for field in dataclasses.fields(kind)} - {"name"}
    assert set(kind.ours) <= names
    (row,) = [line for line in catalogue.table().splitlines() if any(line == r for r in rows_of(kind))]
    for name in names:
        assert name in row
        assert (f"*{name}" in row) == (name in kind.ours)


def rows_of(kind):
    families = catalogue.FAMILIES.items()
    return [catalogue._row(family, kind) for family, union in families if kind in catalogue.methods(union)]


def test_the_readme_has_this_very_table():
    told = README.read_text().split("<!-- condkd methods -->\n")[1].split("<!-- end -->")[0]
    assert told == catalogue.table(), "the README's table of methods is old: put in what `condkd methods` prints"

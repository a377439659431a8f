"""The table of methods is complete, marks the fields that are our choice, and equals the one in docs/methods.md."""

import dataclasses
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import pytest
from places import DOCS

import condkd_ray
from condkd_ray.commands import methods_table
from condkd_ray.core.families import unregister
from condkd_ray.methods.inversion import AnyInversion
from condkd_ray.methods.losses.kd import KdLoss
from condkd_ray.models import AnyNetwork, parse
from condkd_ray.models.cost import short
from condkd_ray.models.network import label

KINDS = [kind for union in methods_table.FAMILIES.values() for kind in methods_table.methods(union)]


def test_the_table_names_every_method_once():
    lines = methods_table.table().splitlines()[2:]
    assert len(lines) == len(KINDS)
    for kind in get_args(AnyInversion):
        assert sum(line.startswith(f"| inversion | `{kind().name}` |") for line in lines) == 1


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_hyper_parameter_is_in_the_row_and_our_choices_are_marked(kind):
    names = {field.name for field in dataclasses.fields(kind)} - {"name"}
    assert set(kind.ours) <= names
    row = row_of(kind)
    for name in names:
        assert re.search(rf"\b{name}\b", row)
        assert bool(re.search(rf"\*{name}\b", row)) == (name in kind.ours)


def test_the_students_recipe_has_a_row():
    (row,) = [line for line in methods_table.table().splitlines() if line.startswith("| distiller |")]
    assert row.startswith("| distiller | - | both | Fang et al., ")
    for field in ("optimizer sgd", "nesterov off", "lr_schedule cosine", "milestones none", "clip 0", "*warm_up 0.1*"):
        assert field in row


def row_of(kind) -> str:
    """Return the row of the method `kind`, which begins with its family and name."""
    (family,) = [name for name, union in methods_table.FAMILIES.items() if kind in methods_table.methods(union)]
    name = next((f"`{field.default}`" for field in dataclasses.fields(kind) if field.name == "name"), "-")
    (row,) = [line for line in methods_table.table().splitlines() if line.startswith(f"| {family} | {name} |")]
    return row


def test_the_documentation_has_the_current_table():
    stored = (
        (DOCS / "methods.md").read_text(encoding="utf-8").split("<!-- condkd methods -->\n")[1].split("<!-- end -->")[0]
    )
    assert stored == methods_table.table(), "the table in docs/methods.md is old: put in what `condkd methods` prints"


def test_the_table_of_networks_names_every_architecture_as_in_flags():
    assert {type(parse(text)) for text in methods_table.NETWORKS} == set(get_args(AnyNetwork))
    assert all(label(parse(text)) == text for text in methods_table.NETWORKS)
    rows = methods_table.networks_table().splitlines()
    assert [row.split("`")[1] for row in rows[2 : 2 + len(methods_table.NETWORKS)]] == list(methods_table.NETWORKS)
    assert len({row.count("|") for row in rows[: 2 + len(methods_table.NETWORKS)]}) == 1
    assert "`resnet50`" in rows[-1]


def test_a_row_of_the_table_of_networks_has_sizes_and_operations():
    rows = methods_table.networks_table().splitlines()
    assert "| `wrn-40-2` | Zagoruyko & Komodakis, BMVC 2016 | 2.24 M | 328 M | 128 | yes | 8 |" in rows
    (lenet,) = [row for row in rows if row.startswith("| `lenet5` |")]
    assert lenet.endswith("| 62.0 k | 652 k | 84 | no | 16 |")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        *((7, "7"), (999, "999"), (1000, "1.00 k"), (15_888, "15.9 k"), (651_720, "652 k"), (999_999, "1.00 M")),
        *((1_159_402_496, "1.16 G"), (1.27e17, "127 P")),
    ],
)
def test_counts_have_three_digits(count, text):
    assert short(count) == text


READ = 1


@dataclass(frozen=True, kw_only=True)
class Reading(KdLoss):
    """A distillation loss whose value depends on a value of its module."""

    name: Literal["reading"] = "reading"

    def __call__(self, student, teacher, labels):
        return student.logits.mean() * READ


@dataclass(frozen=True, kw_only=True)
class Other(KdLoss):
    name: Literal["other"] = "other"

    def __call__(self, student, teacher, labels):
        return student.logits.mean()


@pytest.fixture
def undigested(monkeypatch) -> Iterator[None]:
    """Register two plug-ins; the code of one then reads a value whose content cannot be digested."""
    condkd_ray.register(Reading)
    condkd_ray.register(version="3")(Other)
    monkeypatch.setattr(f"{__name__}.READ", threading.Lock())
    yield
    unregister(Reading)
    unregister(Other)


def test_a_plug_in_whose_code_cannot_be_digested_has_a_row_with_the_reason(undigested, capsys):
    assert methods_table.list_methods(methods_table.Methods()) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(methods_table.table())
    reading, other = [line for line in printed.splitlines() if "`reading`" in line or "`other`" in line]
    reason = "READ is a _thread.lock, whose content cannot be read (TypeError: cannot pickle '_thread.lock' object)"
    assert reading.startswith("| distiller.loss | `reading` | classification | - | - | refused: plug-in ")
    assert f"{reason}; accepted: values that can be pickled, or register(version=...)" in reading
    assert other == f"| distiller.loss | `other` | classification | - | - | {__name__.partition('.')[0]} 3 |"


def test_the_table_of_published_systems_does_not_depend_on_plug_ins(undigested, capsys):
    assert methods_table.list_methods(methods_table.Methods(published=True)) == 0
    assert "| `fast` |" in capsys.readouterr().out

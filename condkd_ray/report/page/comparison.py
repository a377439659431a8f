"""The page on two folders: arms of equal name side by side, and all in which the two runs differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from condkd_ray.core.method import require
from condkd_ray.core.records import Manifest, Record, check_same_numbers
from condkd_ray.report import planned
from condkd_ray.report.figures import accuracy
from condkd_ray.report.figures.style import name
from condkd_ray.report.page import search as search_page
from condkd_ray.report.page import sections
from condkd_ray.report.page.elements import Code, Element, Page, Rows, Section, Text
from condkd_ray.report.page.images import vector
from condkd_ray.report.page.pairing import A, B, Pairing, differences, paired
from condkd_ray.report.page.summary import caution, facts, forest, judged, judgement
from condkd_ray.report.statistics import ACCURACY, Difference, groups, spread
from condkd_ray.report.tables import arms as tables
from condkd_ray.report.tables import search, teachers
from condkd_ray.report.tables.table import Table, count, over, shown

LEAVES = 10
"""Of the configs, on the first screen."""
_SIDES = (A, B)


@dataclass(frozen=True)
class _Side:
    letter: str
    out: Path
    manifest: Manifest
    records: Sequence[Record]


def page(out: Path, other: Path) -> Page:
    """B minus A.

    Raises `InputError` where the data sets, what was done with them, or the versions of the numbers differ.
    """
    sides = [_read(letter, folder) for letter, folder in zip(_SIDES, (out, other), strict=True)]
    _check(*sides)
    searching = bool(sides[0].manifest.search)
    pairing = Pairing([], [], {}) if searching else paired(sides[0].records, sides[1].records)
    found = differences(pairing, sides[0].manifest.test_labels)
    arms = [] if searching else _side_by_side(*sides)
    return Page(
        name=f"{A}: {out}   |   {B}: {other}",
        question=_question(*(side.manifest for side in sides)),
        verdict=_searched(sides) if searching else _verdict(found),
        facts=_facts(*sides),
        lead=[*([forest(judged(found), _teachers(sides))] if found else []), _differing(sides[0], sides[1], pairing)],
        sections=[
            Section("Arms side by side", arms),
            Section("Paired differences", _differences(found, pairing)),
            Section("What the configs differ in", _configs(pairing)),
            *(section for side in sides for section in _own(side)),
            Section("Commands", [element for side in sides for element in _command(side)]),
        ],
    )


def _read(letter: str, folder: Path) -> _Side:
    return _Side(letter, folder, *planned(folder))


def _check(first: _Side, second: _Side) -> None:
    ours, theirs = (f"{one.manifest.dataset.get('name')} {one.manifest.dataset.get('hash')}" for one in (first, second))
    same = f"{ours}, the data set of {first.out}"
    require(ours == theirs, f"the data set of {second.out}", theirs, same)
    kinds = ["a search" if one.manifest.search else "an experiment" for one in (first, second)]
    require(kinds[0] == kinds[1], str(second.out), kinds[1], f"{kinds[0]}, as {first.out} is")
    check_same_numbers({one.out: one.records for one in (first, second)})


def _facts(first: _Side, second: _Side) -> list[tuple[str, str]]:
    """Once where they are equal."""
    ours, theirs = (dict(facts(side.records, side.manifest)) for side in (first, second))
    keys = [*ours, *(key for key in theirs if key not in ours)]
    both = [(key, ours.get(key, "none"), theirs.get(key, "none")) for key in keys]
    return [(key, a if a == b else f"{A} {a}; {B} {b}") for key, a, b in both]


def _teachers(sides: Sequence[_Side]) -> str:
    """What the seeds' teachers mean for the intervals; once where both runs say the same."""
    told = {side.letter: sentence for side in sides if (sentence := teachers.sentence(side.records))}
    if len(told) == len(sides) and len(set(told.values())) == 1:
        return next(iter(told.values()))
    return " ".join(f"{letter}: {sentence}" for letter, sentence in told.items())


def _question(first: Manifest, second: Manifest) -> str:
    return first.question if first.question == second.question else f"{first.question} | {second.question}"


def _verdict(found: Sequence[Difference]) -> list[str]:
    if not found:
        return ["The two have no finished trial of equal arm, IPC and seed in common that may be compared."]
    if all(one.mean == 0 and one.std in (None, 0) for one in found):
        return ["Each trial has the same test accuracy in both."]
    pairs = [(replace(one, left=one.left.removesuffix(f": {B}")), p) for one, p in judged(found)]
    return [f"{B} against {A}, {judgement(pairs)}.", *caution(pairs)]


def _searched(sides: Sequence[_Side]) -> list[str]:
    return [f"{side.letter}: {line}" for side in sides for line in search_page.best(side.records, side.manifest)[:1]]


def _side_by_side(first: _Side, second: _Side) -> list[Element]:
    ours, theirs = (groups(one for one in side.records if one.status == "finished") for side in (first, second))
    keys = [*ours, *(key for key in theirs if key not in ours)]
    header = ["arm", "IPC", *(f"{what} {side}" for what in ("n", "test accuracy (%)", "CPU s") for side in _SIDES)]
    rows = []
    for arm, ipc in keys:
        both = [side.get((arm, ipc), []) for side in (ours, theirs)]
        numbers = [str(count(members)) for members in both]
        accuracies = [shown(over(members, ACCURACY), count(members), factor=100) for members in both]
        seconds = [
            shown(spread(one.outcome.cpu_seconds for one in members), len(members), digits=1) for members in both
        ]
        rows.append([name(arm), str(ipc or "-"), *numbers, *accuracies, *seconds])
    legend = "Mean ± standard deviation over n seeds; a dash where a run has no such arm."
    return [Rows(Table("Arms side by side", header, rows, legend, keys=2))]


def _differences(found: Sequence[Difference], pairing: Pairing) -> list[Element]:
    odd = [f"{a.arm} IPC {a.ipc or '-'} seed {a.seed}" for a, _ in pairing.odd]
    words = f"Not compared, as their configs differ in more than the runs do: {', '.join(odd)}."
    table = [Rows(tables.difference_table(found))] if found else []
    return [*table, *([Text(words, small=True)] if odd else [])]


def _configs(pairing: Pairing) -> list[Element]:
    total = len(pairing.pairs) + len(pairing.odd)
    rows = [[path, *change, f"{times} of {total}"] for path, (change, times) in pairing.changes.items()]
    if not total:
        return []
    if not rows:
        return [Text("Nothing: trials of equal name have equal configs.")]
    legend = "The change that most pairs have in common, and in how many pairs of trials of equal name it is made."
    return [Rows(Table("Configs", ["field", A, B, "pairs"], rows, legend, keys=1))]


def _differing(first: _Side, second: _Side, pairing: Pairing) -> Element:
    """Versions, places, what was made beforehand, and the first leaves of the configs: what differs."""
    ours, theirs = (_about(side) for side in (first, second))
    keys = [*ours, *(key for key in theirs if key not in ours)]
    rows = [[key, ours.get(key, "-"), theirs.get(key, "-")] for key in keys if ours.get(key) != theirs.get(key)]
    rows += [[path, *change] for path, (change, _) in list(pairing.changes.items())[:LEAVES]]
    if not rows:
        return Text("Both ran the same experiment with equal configs, versions and teachers in the same places.")
    return Rows(
        Table("What differs", ["differs", A, B], rows, "Of environments and configs; the commands stand below.", keys=1)
    )


def _about(side: _Side) -> dict[str, str]:
    manifest, known = side.manifest, teachers.listed(side.manifest)
    told = {"experiment": manifest.experiment, "begun": manifest.created}
    told |= {"teacher": ", ".join(str(one.get("label", "")) for one in known)}
    told |= {"teacher hash": ", ".join(str(one.get("hash", "")) for one in known)}
    accuracies = [f"{100 * one['test_accuracy']:.2f}" for one in known if one.get("test_accuracy") is not None]
    told |= {"teacher's test accuracy (%)": ", ".join(accuracies)} if accuracies else {}
    return told | sections.environment(side.records)


def _own(side: _Side) -> list[Section]:
    """What a run has that cannot be laid over the other's."""
    if side.manifest.search:
        return [Section(f"Trials of {side.letter}", [Rows(search.search_table(side.records, side.manifest), most=5)])]
    drawn = accuracy.draw(side.records, side.manifest)
    pictures = vector(drawn["figure"], f"test accuracy in {side.letter}")
    return [Section(f"Accuracy in {side.letter}", [*pictures, *vector(drawn["curves"], f"rounds in {side.letter}")])]


def _command(side: _Side) -> list[Element]:
    return [Text(f"{side.letter}, {side.out}"), Code(side.manifest.command)]

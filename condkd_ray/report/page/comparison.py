"""The page that compares two folders: arms of equal name side by side, and the differences between the two runs."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from condkd_ray.core.config import Tree, flattened
from condkd_ray.core.method import require
from condkd_ray.core.records import Record, check_same_numbers
from condkd_ray.core.task import Score
from condkd_ray.report.figures import accuracy
from condkd_ray.report.figures.style import name
from condkd_ray.report.page import sections
from condkd_ray.report.page.elements import Code, Element, Page, Rows, Section, Text
from condkd_ray.report.page.images import vector
from condkd_ray.report.page.search import best
from condkd_ray.report.page.summary import caution, facts, forest, outcome_clause
from condkd_ray.report.results import Results, read
from condkd_ray.report.statistics import Difference, difference, with_p_values
from condkd_ray.report.tables import arms as tables
from condkd_ray.report.tables import search, teachers
from condkd_ray.report.tables.table import CPU, Table, arm_cells, count, mean_of, mean_text

LEAVES = 10
"""Largest number of changed config fields at the head of the page."""
A, B = "A", "B"
"""Letters of the first and the second run."""
Pair = tuple[Record, Record]
Change = tuple[str, str]
"""The values of a config field in A and in B."""
Sides = Mapping[str, Results]
"""The results of each run, by its letter."""


@dataclass(frozen=True)
class Pairing:
    """Trials of two runs, paired by arm, IPC and seed."""

    pairs: Sequence[Pair]
    """Pairs whose configs differ only by `changes`. No other pairs are compared."""
    excluded: Sequence[Pair]
    """Pairs whose configs differ in other ways."""
    changes: Mapping[str, tuple[Change, int]]
    """The most frequent change of each config field, and the number of pairs that have it, by the field's path."""


def paired(first: Sequence[Record], second: Sequence[Record]) -> Pairing:
    """Pair the trials of two runs, and find the changes of config fields that are common to the runs.

    The common change of a field is the most frequent one among the pairs in which the field changes. Pairs with
    another change of a field are `excluded`.
    """
    theirs = {_key(record): record for record in second}
    pairs = [(record, theirs[_key(record)]) for record in first if _key(record) in theirs]
    found = [_changes(a.config, b.config) for a, b in pairs]
    counts: dict[str, Counter[Change]] = defaultdict(Counter)
    for changes in found:
        for path, change in changes.items():
            counts[path][change] += 1
    common = {path: counter.most_common(1)[0] for path, counter in sorted(counts.items())}
    alike, excluded = [], []
    for pair, changes in zip(pairs, found, strict=True):
        common_only = all(common[path][0] == change for path, change in changes.items())
        (alike if common_only else excluded).append(pair)
    return Pairing(alike, excluded, common)


def differences(pairing: Pairing, labels: Sequence[int]) -> list[Difference]:
    """Return B minus A in the test score for each arm and IPC, paired by seed."""
    groups: dict[tuple[str, int], list[Record]] = defaultdict(list)
    for a, b in pairing.pairs:
        groups[a.arm, a.ipc] += [replace(a, arm=A), replace(b, arm=B)]
    found = [(arm, difference(members, B, A, ipc, labels)) for (arm, ipc), members in groups.items()]
    return [replace(one, left=f"{arm}: {B}", right=A) for arm, one in found if one is not None]


def page(out: Path, other: Path) -> Page:
    """Return the page that compares the folders `out` (A) and `other` (B), with differences as B minus A.

    Raises `InputError` if one is not a folder of results, or if the tasks, data sets, kinds of run or versions of the
    numbers differ.
    """
    first, second = read(out), read(other)
    sides = {A: first, B: second}
    _check(first, second)
    pairing = Pairing([], [], {}) if first.searching else paired(first.records, second.records)
    found = with_p_values(differences(pairing, first.manifest.test_labels))
    searched = [f"{letter}: {best(side)[0]}" for letter, side in sides.items() if side.searching]
    return Page(
        name=f"{A}: {out}   |   {B}: {other}",
        interim="; ".join(f"{letter} {side.interim}" for letter, side in sides.items() if side.interim),
        question=" | ".join(dict.fromkeys(side.manifest.question for side in sides.values())),
        verdict=searched or _verdict(found, first.score),
        facts=_facts(first, second),
        lead=[*([forest(found, first.score, _teachers(sides))] if found else []), _differing(first, second, pairing)],
        sections=[
            Section("Arms side by side", [] if first.searching else _side_by_side(first, second)),
            Section("Paired differences", _differences(found, pairing, first.score)),
            Section("What the configs differ in", _configs(pairing)),
            *(section for letter, side in sides.items() for section in _own(letter, side)),
            Section("Commands", [element for letter, side in sides.items() for element in _command(letter, side)]),
        ],
    )


def _check(first: Results, second: Results) -> None:
    task = first.score.task
    require(second.score.task == task, f"task of {second.out}", second.score.task, f"{task}, as in {first.out}")
    ours, theirs = (f"{one.manifest.dataset.get('name')} {one.manifest.dataset.get('hash')}" for one in (first, second))
    same = f"{ours}, the data set of {first.out}"
    require(ours == theirs, f"the data set of {second.out}", theirs, same)
    kinds = ["a search" if one.searching else "an experiment" for one in (first, second)]
    require(kinds[0] == kinds[1], str(second.out), kinds[1], f"{kinds[0]}, like {first.out}")
    check_same_numbers({one.out: one.records for one in (first, second)})


def _unequal(ours: Mapping[str, str], theirs: Mapping[str, str], absent: str) -> dict[str, Change]:
    return {key: change for key, change in _both(ours, theirs, absent).items() if change[0] != change[1]}


def _both(ours: Mapping[str, str], theirs: Mapping[str, str], absent: str) -> dict[str, Change]:
    """Return the values of each key in A and in B; `absent` for a run without the key."""
    return {key: (ours.get(key, absent), theirs.get(key, absent)) for key in {**ours, **theirs}}


def _facts(first: Results, second: Results) -> list[tuple[str, str]]:
    """Return the facts of both runs; facts with equal values in both appear once."""
    both = _both(dict(facts(first)), dict(facts(second)), "none")
    return [(key, a if a == b else f"{A} {a}; {B} {b}") for key, (a, b) in both.items()]


def _teachers(sides: Sides) -> str:
    """Return the sentences of both runs on sharing teachers, or one sentence if they are equal."""
    found = {letter: sentence for letter, side in sides.items() if (sentence := teachers.sentence(side))}
    if len(found) == len(sides) and len(set(found.values())) == 1:
        return next(iter(found.values()))
    return " ".join(f"{letter}: {sentence}" for letter, sentence in found.items())


def _verdict(found: Sequence[Difference], score: Score) -> list[str]:
    if not found:
        return ["The two runs have no finished trials of equal arm, IPC and seed that may be compared."]
    if all(one.mean == 0 and one.std in (None, 0) for one in found):
        return [f"Each trial that is in both runs has the same test {score.name} in both."]
    arms = [replace(one, left=one.left.removesuffix(f": {B}")) for one in found]
    return [f"{B} against {A}, {outcome_clause(arms)}.", *caution(arms, score)]


def _side_by_side(first: Results, second: Results) -> list[Element]:
    sides, columns = (first, second), ("n", f"test {first.score.name} (%)", "CPU s")
    header = ["arm", "IPC", *(f"{column} {letter}" for column in columns for letter in (A, B))]
    rows = []
    for arm, ipc in {**first.groups, **second.groups}:
        both = [side.groups.get((arm, ipc), []) for side in sides]
        numbers = [str(count(members)) for members in both]
        scores = [mean_text(mean_of(members, first.score.test), count(members), factor=100) for members in both]
        seconds = [mean_text(mean_of(members, CPU), len(members), digits=1) for members in both]
        rows.append([*arm_cells(name(arm), ipc), *numbers, *scores, *seconds])
    legend = "Mean ± standard deviation over n seeds; a dash: the run does not have this arm."
    return [Rows(Table("Arms side by side", header, rows, legend, keys=2))]


def _differences(found: Sequence[Difference], pairing: Pairing, score: Score) -> list[Element]:
    excluded = [f"{a.arm} IPC {a.ipc or '-'} seed {a.seed}" for a, _ in pairing.excluded]
    listed = ", ".join(excluded)
    words = f"Not compared, because their configs differ by more than the changes common to the runs: {listed}."
    table = [Rows(tables.difference_table(found, score))] if found else []
    return [*table, *([Text(words, small=True)] if excluded else [])]


def _configs(pairing: Pairing) -> list[Element]:
    total = len(pairing.pairs) + len(pairing.excluded)
    rows = [[path, *change, f"{times} of {total}"] for path, (change, times) in pairing.changes.items()]
    if not total:
        return []
    if not rows:
        return [Text("None: trials of equal arm, IPC and seed have equal configs.")]
    legend = "The most frequent change of each field, and the number of pairs of trials that have it."
    return [Rows(Table("Configs", ["field", A, B, "pairs"], rows, legend, keys=1))]


def _differing(first: Results, second: Results, pairing: Pairing) -> Element:
    """Return a table of differences: environments, teachers, and the first `LEAVES` fields of the configs."""
    rows = [[key, *change] for key, change in _unequal(_about(first), _about(second), "-").items()]
    rows += [[path, *change] for path, (change, _) in list(pairing.changes.items())[:LEAVES]]
    if not rows:
        return Text("Both ran the same experiment with equal configs, versions and teachers in the same places.")
    return Rows(
        Table("What differs", ["differs", A, B], rows, "Environments and configs; for the commands see below.", keys=1)
    )


def _about(side: Results) -> dict[str, str]:
    manifest, known = side.manifest, teachers.listed(side.manifest)
    about = {
        "experiment": manifest.experiment,
        "started": manifest.created,
        "teacher": ", ".join(str(one.get("label", "")) for one in known),
        "teacher hash": ", ".join(str(one.get("hash", "")) for one in known),
    }
    key, name = side.score.key("test"), side.score.name
    scores = [f"{100 * one[key]:.2f}" for one in known if one.get(key) is not None]
    about |= {f"teacher's test {name} (%)": ", ".join(scores)} if scores else {}
    return about | sections.environment(side.records)


def _own(letter: str, side: Results) -> list[Section]:
    """Return the sections that show one run alone: its figures, or the trials of a search."""
    if side.searching:
        return [Section(f"Trials of {letter}", [Rows(search.search_table(side), most=5)])]
    drawn = accuracy.draw(side.records, side.manifest)
    pictures = vector(drawn["figure"], f"test {side.score.name} in {letter}")
    return [Section(f"{side.score.title} in {letter}", [*pictures, *vector(drawn["curves"], f"rounds in {letter}")])]


def _command(letter: str, side: Results) -> list[Element]:
    return [Text(f"{letter}, {side.out}"), Code(side.manifest.command)]


def _key(record: Record) -> tuple[str, int, int]:
    return record.arm, record.ipc, record.seed


def _changes(first: Tree, second: Tree) -> dict[str, Change]:
    """Return the fields in which two configs differ, by their paths, with their values in both as JSON."""
    ours, theirs = (
        {path: json.dumps(leaf, sort_keys=True) for path, leaf in flattened(tree).items()} for tree in (first, second)
    )
    return _unequal(ours, theirs, "absent")

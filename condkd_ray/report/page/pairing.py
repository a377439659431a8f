"""Two runs trial by trial: which trials of equal name may be compared, and in what their configs differ."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from condkd_ray.core.records import Record
from condkd_ray.report.statistics import Difference, difference

ABSENT = "absent"
A, B = "A", "B"
Pair = tuple[Record, Record]
Change = tuple[str, str]
"""A leaf's value in A and in B."""


@dataclass(frozen=True)
class Pairing:
    """Trials of equal arm, IPC and seed whose configs differ only in what the two runs differ in; the others apart.

    `changes`: by the path of a leaf, its value in A and in B and in how many of all pairs it is so.
    """

    pairs: Sequence[Pair]
    odd: Sequence[Pair]
    changes: Mapping[str, tuple[Change, int]]


def paired(first: Sequence[Record], second: Sequence[Record]) -> Pairing:
    """What two runs differ in is, leaf by leaf, the change that most of the pairs in which it changes have in common.

    A pair in which a leaf changes otherwise differs in more than that and is not compared.
    """
    theirs = {_key(record): record for record in second}
    pairs = [(record, theirs[_key(record)]) for record in first if _key(record) in theirs]
    found = [_changes(a.config, b.config) for a, b in pairs]
    counts: dict[str, Counter[Change]] = {}
    for changes in found:
        for path, change in changes.items():
            counts.setdefault(path, Counter())[change] += 1
    common = {path: seen.most_common(1)[0] for path, seen in sorted(counts.items())}
    alike = [all(common[path][0] == change for path, change in changes.items()) for changes in found]
    return Pairing(
        pairs=[pair for pair, fine in zip(pairs, alike, strict=True) if fine],
        odd=[pair for pair, fine in zip(pairs, alike, strict=True) if not fine],
        changes=common,
    )


def differences(pairing: Pairing, labels: Sequence[int]) -> list[Difference]:
    """B minus A in test accuracy of each arm and IPC, paired by seed."""
    groups: dict[tuple[str, int], list[Record]] = {}
    for pair in pairing.pairs:
        for side, record in zip((A, B), pair, strict=True):
            groups.setdefault((record.arm, record.ipc), []).append(dataclasses.replace(record, arm=side))
    found = [(arm, difference(members, B, A, ipc, labels)) for (arm, ipc), members in groups.items()]
    return [dataclasses.replace(one, left=f"{arm}: {B}", right=A) for arm, one in found if one is not None]


def _key(record: Record) -> tuple[str, int, int]:
    return record.arm, record.ipc, record.seed


def _changes(first: Any, second: Any) -> dict[str, Change]:
    ours, theirs = _leaves(first), _leaves(second)
    return {
        path: (ours.get(path, ABSENT), theirs.get(path, ABSENT))
        for path in [*ours, *(path for path in theirs if path not in ours)]
        if ours.get(path, ABSENT) != theirs.get(path, ABSENT)
    }


def _leaves(tree: Any, path: str = "") -> dict[str, str]:
    """Values as JSON, by their paths; lists are values."""
    if not isinstance(tree, Mapping):
        return {path: json.dumps(tree, sort_keys=True)}
    found: dict[str, str] = {}
    for key, value in tree.items():
        found |= _leaves(value, f"{path}/{key}" if path else str(key))
    return found

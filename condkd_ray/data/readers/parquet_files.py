"""Finds the Parquet files of the train and the test set in a folder, in the layouts of the Hugging Face Hub.

A set is one file, a group of shards (`test-00000-of-00002.parquet`, with an optional hash from `push_to_hub`), or a
folder named after the split with all of its files (`plain_text/train/0000.parquet`, from the Hub's conversion).
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from glob import escape, glob
from pathlib import Path

from condkd_ray.core.method import require

VALIDATION = re.compile(r"(validation|valid|val|dev)([-_.\d].*)?")
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(-[0-9a-f]{16})?")
PARTIAL = "partial-"
"""Prefix of a split if the Hub has converted only its first part."""


@dataclass(frozen=True)
class FileSet:
    """Files of one set: their common stem or split in `name`, and a `label` for messages."""

    name: str
    files: list[Path]
    label: str
    fault: tuple[str, object, str] | None = None
    """Arguments of `require` for a missing file: the thing, its value, and what is accepted; None if complete."""


@dataclass(frozen=True)
class ParquetFiles:
    """The train set, all candidates for the test set, and notes for the user."""

    train: FileSet
    tests: list[FileSet]
    notes: tuple[str, ...] = ()


def find_parquet(root: Path, train: str | None, test: str | None) -> ParquetFiles | None:
    """Return the Parquet files of a data set; None if `root` contains no train set and none is named.

    `root` is a folder, a folder with a single sub-folder that contains a train set, or a train file. Without a test set
    the validation set is used instead; the notes report this, and the files that are not read. `train`, `test`: names
    in `root`, paths or patterns; a named file is the only candidate. Raises `InputError` if there are several train
    sets and none is named, or if a shard is missing.
    """
    folder, train = (root.parent, train or root.name) if os.path.isfile(root) else (root, train)
    if os.path.isdir(root) and train is None:
        folder = _inner(root)
    there = _sets(folder)
    trains = _named(folder, train) if train else [one for one in there if one.name.startswith("train")]
    if not trains:
        accepted = f"train*.parquet in {folder}, or a named train file"
        require(test is None, "test file without a train file", test, accepted)
        return None
    accepted = "one set, or name it with --train-file (a pattern will do)"
    require(len(trains) == 1, f"train files in {folder}", [one.label for one in trains], accepted)
    tests, notes = (_named(folder, test), []) if test else _tests(there)
    for one in [*trains, *(tests if len(tests) == 1 else [])]:
        if one.fault is not None:
            require(False, *one.fault)
    files = {path.resolve() for path in trains[0].files}
    shared = [path.name for one in tests for path in one.files if path.resolve() in files]
    require(not shared, "files read as train and as test", shared, "different files")
    notes += [
        f"{one.label} is only a part of the split: the Hub has not converted the rest"
        for one in (*trains, *tests)
        if one.label.startswith(PARTIAL)
    ]
    if train is None and test is None:
        notes += _unread(there, [*trains, *tests])
    return ParquetFiles(trains[0], tests, tuple(notes))


def _inner(root: Path) -> Path:
    """Return `root`, or the only sub-folder of it that contains a train set."""
    if list(root.glob("*.parquet")) or any(_split(path.parent) for path in root.glob("*train/*.parquet")):
        return root
    found = [path.parent for path in root.glob("*/train*.parquet")]
    found += [path.parent.parent for path in root.glob("*/*train/*.parquet") if _split(path.parent)]
    inner = sorted({path for path in found if not path.name.startswith(".")})
    named = [path.name for path in inner]
    require(len(inner) <= 1, f"folders of Parquet files in {root}", named, "one; give it as root")
    return inner[0] if inner else root


def _split(folder: Path) -> str:
    """Return the split that a folder contains according to its name, or an empty string."""
    name = folder.name.removeprefix(PARTIAL)
    return name if name in ("train", "test") or VALIDATION.fullmatch(name) else ""


def _tests(there: Iterable[FileSet]) -> tuple[list[FileSet], list[str]]:
    tests = [one for one in there if one.name.startswith("test")]
    others = [one for one in there if VALIDATION.fullmatch(one.name)]
    if tests or not others:
        return tests, []
    note = "is used as the test set, because there is no test file"
    return others, [f"{one.label} {note}" for one in others[:1] if len(others) == 1]


def _unread(there: Iterable[FileSet], read: Iterable[FileSet]) -> list[str]:
    names = {one.name for one in read}
    left = [one.label for one in there if one.name not in names]
    return [f"Parquet files that are not read: {', '.join(left)}"] if left else []


def _named(folder: Path, name: str) -> list[FileSet]:
    path = folder / Path(name).expanduser()
    found = [path] if os.path.isfile(path) else []
    if not found and os.path.isdir(path.parent):
        # Only the last part of the path is a pattern: a folder may be called "run[1]".
        found = [Path(match) for match in sorted(glob(f"{escape(str(path.parent))}/{path.name}"))]
    if not found:
        found = [folder / match for match in sorted(glob(str(Path(name).expanduser()), root_dir=folder))]
    require(bool(found), "Parquet file", name, f"a file or pattern in {folder}, or a path")
    return [FileSet(name, found, found[0].name)]


def _sets(folder: Path) -> list[FileSet]:
    """Group the files of a folder into sets of shards, sorted."""
    found = _shards(folder.glob("*.parquet"))
    for inner in sorted(child for child in folder.glob("*") if child.is_dir() and _split(child)):
        shards = _shards(inner.glob("*.parquet"))
        files = [path for one in shards for path in one.files]
        if all(path.stem.isdecimal() for path in files):
            files.sort(key=lambda path: int(path.stem))
        numbers = [int(path.stem) for path in files if path.stem.isdecimal()]
        gap = (f"numbers of the Parquet files in {inner}", numbers, "0, 1, 2 ..., none missing")
        faults = [one.fault for one in shards if one.fault] + [gap] * (numbers != list(range(len(numbers))))
        found += [FileSet(_split(inner), files, f"{inner.name}/", (*faults, None)[0])] if files else []
    return found


def _shards(paths: Iterable[Path]) -> list[FileSet]:
    sets: dict[tuple[str, int], dict[int, list[Path]]] = {}
    for path in sorted(path for path in paths if not path.name.startswith(".")):
        shard = SHARD.fullmatch(path.stem)
        key, number = ((shard[1], int(shard[3])), int(shard[2])) if shard else ((path.stem, 1), 0)
        sets.setdefault(key, {}).setdefault(number, []).append(path)
    found = []
    for (name, count), shards in sets.items():
        files = [path for paths in shards.values() for path in paths]
        lacking = (f"number of shards of {name} in {files[0].parent}", len(files), f"{count}, each shard once")
        whole = len(shards) == count and len(files) == count
        found.append(FileSet(name, files, files[0].name, None if whole else lacking))
    return found

"""Which Parquet files of a folder are the train set, and which the test set."""

import re
from collections.abc import Iterable
from glob import glob
from pathlib import Path

from condkd_ray.core.method import require


def find_parquet(root: Path, train: str | None, test: str | None) -> tuple[list[Path], list[list[Path]]] | None:
    """The train files, and each set of test files there is; None where `root` holds neither them nor what is named.

    `root` is a folder, one with a single sub-folder of Parquet files, or a train file. Sharded files
    (`test-00000-of-00002.parquet`) are one set. `train`, `test`: names in `root`, paths or patterns; what is named is
    the only candidate. Raises `InputError` where several train sets are there and none is named.
    """
    folder, train = (root.parent, train or root.name) if root.is_file() else (root, train)
    if root.is_dir() and train is None and not list(folder.glob("*.parquet")):
        inner = sorted({path.parent for path in folder.glob("*/train*.parquet")})
        require(len(inner) <= 1, f"folders of Parquet files in {root}", [p.name for p in inner], "one; give it as root")
        folder = inner[0] if inner else folder
    trains = _sets(folder.glob("train*.parquet")) if train is None else [_named(folder, train)]
    tests = _sets(folder.glob("test*.parquet")) if test is None else [_named(folder, test)]
    if not trains:
        accepted = f"train*.parquet in {folder}, or a train file named"
        require(test is None, "test file without a train file", test, accepted)
        return None
    listed = [files[0].name for files in trains]
    accepted = "one set, or name it with --train-file (a pattern will do)"
    require(len(trains) == 1, f"train files in {folder}", listed, accepted)
    shared = [path.name for files in tests for path in files if path.resolve() in {p.resolve() for p in trains[0]}]
    require(not shared, "files read as train and as test", shared, "different files")
    return trains[0], tests


def _named(folder: Path, name: str) -> list[Path]:
    path = folder / Path(name).expanduser()
    found = [path] if path.is_file() else [Path(match) for match in sorted(glob(str(path)))]
    require(bool(found), "Parquet file", name, f"a file or pattern in {folder}, or a path")
    return found


def _sets(paths: Iterable[Path]) -> list[list[Path]]:
    """Files grouped by what they are shards of, all sorted. Raises `InputError` where a shard is missing."""
    sets: dict[tuple[str, int], list[Path]] = {}
    for path in sorted(paths):
        shard = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})", path.stem)
        sets.setdefault((shard[1], int(shard[2])) if shard else (path.stem, 1), []).append(path)
    for (name, count), files in sets.items():
        require(len(files) == count, f"number of shards of {name} in {files[0].parent}", len(files), f"{count}, all")
    return list(sets.values())

"""What a trial leaves behind: one atomic JSON file a trial, a manifest an experiment, and Parquet built from both.

The JSON files are the truth; whatever else lies in the folder can be rebuilt from them.

    OUT/experiment.json        the manifest, written before the first trial
    OUT/records/<hash>.json    one finished, failed or pruned trial
    OUT/grids/<hash>.png       its synthetic images, a row a class; `condensed-<hash>.png` the sets that guide
"""

import dataclasses
import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from torch import Tensor

from condkd_ray.core.method import InputError, Metrics, require
from condkd_ray.core.storage import atomic_write

FORMAT = 1
MANIFEST = "experiment.json"
ARM_ORDER = ("none", "condensed_only", "mixed", "mixed_prior", "guided", "guided_only", "real")
"""The order of arms in every table and figure; arms not named here follow in alphabetical order."""
ALL_REAL = "all_real"
"""`Record.condensation` of a trial whose condensed set is all real images."""

Status = Literal["finished", "failed", "pruned", "running"]
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a trial, or of one that runs, so far. Accuracies are fractions, times seconds."""

    status: Status
    reason: str = ""
    """Why it failed or was pruned; empty otherwise."""
    metrics: Metrics = field(default_factory=dict)
    """`family/term` to the value at the trial's end."""
    history: list[Metrics] = field(default_factory=list)
    """One dict of per-round metrics a round, each with its number under `round`."""
    predictions: list[int] = field(default_factory=list)
    """The student's class for each test image, in the order of the test set."""
    images: Tensor | None = None
    """(n, C, H, W) uint8 examples, class-major. No part of a stored record."""
    images_per_class: int = 0
    held: dict[str, list[int]] = field(default_factory=dict)
    """The memory's samples at the end, counted by the teacher's `class` and in equal bins of its `confidence`."""
    peak_bytes: int = 0
    threads: int = 1
    node: str = field(default_factory=platform.node)
    """Where it ran."""

    @property
    def wall_seconds(self) -> float:
        """Wall time of all rounds; NaN where it is not known, as of a trial that failed."""
        return self.metrics.get("time/wall_seconds", math.nan)

    @property
    def cpu_seconds(self) -> float:
        """CPU time, alike."""
        return self.metrics.get("time/cpu_seconds", math.nan)

    @property
    def rounds(self) -> int:
        """How many have ended."""
        return len(self.history)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One trial: what was asked and what came of it."""

    experiment: str
    arm: str
    ipc: int
    """Condensed images per class; 0 in arms that use none."""
    seed: int
    dataset: str
    teacher: str
    student: str
    condensation: str
    inversion: str
    guidance: str
    memory: str
    config: dict[str, Any]
    """The resolved configuration tree, of plain JSON values."""
    config_hash: str
    teacher_hash: str = ""
    data_hash: str = ""
    condensed_hash: str = ""
    proxy_hash: str = ""
    pool_key: str = ""
    scope: str = "trial"
    """Which trials it shared its synthetic images with; see `condkd_ray.trial.plan.Scope`."""
    versions: dict[str, str] = field(default_factory=dict)
    plugins: dict[str, str] = field(default_factory=dict)
    """Methods from outside this package: `family/name` to the plug-in and its version; see `core.families`."""
    git: str = ""
    numbers: int = 1
    """Version of the numbers: those of different versions are never compared. Records without one are of version 1."""
    study: str = ""
    """Name of the study by which a search has proposed it, `arm` having its number there; empty for planned trials."""
    outcome: Outcome

    @property
    def status(self) -> Status:
        """That of the outcome."""
        return self.outcome.status

    @property
    def metrics(self) -> Metrics:
        """Those of the outcome, at the trial's end."""
        return self.outcome.metrics

    @property
    def history(self) -> list[Metrics]:
        """That of the outcome: metrics round by round."""
        return self.outcome.history


_STORED = (
    *("experiment", "arm", "ipc", "seed", "dataset", "teacher", "student", "condensation", "inversion", "guidance"),
    *("memory", "status", "reason", "config", "config_hash", "teacher_hash", "data_hash", "condensed_hash"),
    *("proxy_hash", "pool_key", "scope", "versions", "git", "node", "threads", "wall_seconds", "cpu_seconds"),
    *("peak_bytes", "rounds", "metrics", "history", "predictions", "held", "numbers"),
)
"""Keys of a record's file, in their order: those of the record and of its outcome side by side."""
_IF_ANY = ("study", "plugins")
"""Keys that follow where their values are not empty."""
_DERIVED = ("wall_seconds", "cpu_seconds", "rounds")
"""Of these, what the others tell."""
_OF_OUTCOME = {one.name for one in dataclasses.fields(Outcome)} & set(_STORED)


def flat(record: Record) -> dict[str, Any]:
    """A record as it is stored: one level, without images."""
    derived = {key: getattr(record.outcome, key) for key in _DERIVED}
    tree = {**vars(record), **vars(record.outcome), **derived}
    return {key: tree[key] for key in _STORED} | {key: tree[key] for key in _IF_ANY if tree[key]}


def unflat(tree: Mapping[str, Any]) -> Record:
    """The record that is stored so. Raises `TypeError` where a key is missing or unknown, as a dataclass does."""
    told = {"node": "", **{key: value for key, value in tree.items() if key in _OF_OUTCOME}}
    told["metrics"] = _numbers(told.get("metrics", {}))
    told["history"] = [_numbers(row) for row in told.get("history", ())]
    own = {key: value for key, value in tree.items() if key not in _OF_OUTCOME and key not in _DERIVED}
    return Record(**own, outcome=Outcome(**told))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an experiment set out to do. `test_accuracy` and the like are fractions."""

    experiment: str
    question: str
    command: str
    format: int = FORMAT
    created: str
    """ISO 8601."""
    baseline: str | dict[str, str] = "none"
    """The arm that every other is compared with; or for each arm its own."""
    planned: list[dict[str, Any]] = field(default_factory=list)
    """`arm`, `ipc`, `seed` and `config_hash` of every trial; of one that a search has proposed its `study` too."""
    teacher: dict[str, Any] = field(default_factory=dict)
    """`label`, `hash`, `test_accuracy`, `val_accuracy`."""
    dataset: dict[str, Any] = field(default_factory=dict)
    """`name`, `hash`, `num_classes`, `image_shape`, `test_size`, `notes`."""
    test_labels: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a reader of the tables has to know, one sentence each."""
    search: dict[str, Any] = field(default_factory=dict)
    """Of a search: `objective`, `directions`, its `constraints`, and the paths of its open leaves as `parameters`."""
    cpu_seconds: float | None = None
    """Of the last run as a whole, driver and trials; None until it has ended."""
    teachers: list[dict[str, Any]] = field(default_factory=list)
    """Where trials have several: one dict like `teacher` for each."""


def arm_rank(arm: str) -> tuple[int, str]:
    """Sort key of an arm: the place of its first word in `ARM_ORDER`, unknown arms last by name."""
    first = arm.partition(" ")[0]
    return (ARM_ORDER.index(first) if first in ARM_ORDER else len(ARM_ORDER), arm)


def record_path(out: Path, config_hash: str) -> Path:
    """Where the record of the trial with this configuration lies."""
    return Path(out) / "records" / f"{config_hash}.json"


def grid_path(out: Path, config_hash: str) -> Path:
    """Where the image grid of that trial lies, if it made one."""
    return Path(out) / "grids" / f"{config_hash}.png"


def condensed_path(out: Path, condensed_hash: str) -> Path:
    """Where the image grid of the condensed set with this digest lies, of which several trials may be given some."""
    return Path(out) / "grids" / f"condensed-{condensed_hash}.png"


def write_record(out: Path, record: Record) -> None:
    """Store one trial, replacing an earlier record of the same configuration."""
    atomic_write(record_path(out, record.config_hash), _to_json(flat(record)))


def write_end(out: Path, record: Record) -> bool:
    """Store a trial that has just ended, unless it has a finished record and came to less now; whether it was stored.

    A record of older `numbers` is replaced in any case.
    """
    path = record_path(out, record.config_hash)
    if record.status != "finished" and path.is_file():
        before = _read(path)
        if before.status == "finished" and before.numbers >= record.numbers:
            return False
    write_record(out, record)
    return True


def read_records(out: Path) -> list[Record]:
    """The stored trials that may be compared, those of the newest `numbers`, by arm, IPC and seed.

    Raises `InputError` naming the first file that cannot be read.
    """
    return newest(read_all_records(out))[0]


def read_all_records(out: Path) -> list[Record]:
    """All stored trials, of whatever `numbers`, in the same order. Not to be compared as they are."""
    records = [_read(path) for path in sorted((Path(out) / "records").glob("*.json"))]
    return sorted(records, key=lambda r: (arm_rank(r.arm), r.ipc, r.seed, r.config_hash))


def newest(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """The records of the newest `numbers` among them, and those of older ones."""
    last = max((record.numbers for record in records), default=0)
    return [one for one in records if one.numbers == last], [one for one in records if one.numbers < last]


def check_same_numbers(folders: Mapping[Path, Sequence[Record]]) -> None:
    """Raise `InputError` where the records of one folder were made by another version of the numbers than another's."""
    found = {folder: records[0].numbers for folder, records in folders.items() if records}
    for folder, numbers in found.items():
        first = next(iter(found))
        accepted = f"{found[first]}, that of {first}: run the older of them again with this program"
        require(numbers == found[first], f"version of the numbers of {folder}", numbers, accepted)


def find_record(out: Path, beginning: str) -> Record:
    """The one trial whose hash begins so, finished or failed. Raises `InputError` where there is none, or several."""
    records = [record for record in read_all_records(out) if record.status in ("finished", "failed")]
    found = [record for record in records if record.config_hash.startswith(beginning)]
    there = ", ".join(f"{r.config_hash[:8]} ({r.arm} ipc {r.ipc} seed {r.seed})" for r in records[:20])
    accepted = f"the beginning of just one of {there or 'none, it holds no trial that has ended'}"
    require(len(found) == 1, f"trial of {out}", beginning, accepted)
    return found[0]


def finished(out: Path) -> set[str]:
    """Configuration hashes of the trials that need not run again."""
    return {record.config_hash for record in read_records(out) if record.status == "finished"}


def write_manifest(out: Path, manifest: Manifest) -> None:
    """Store the manifest."""
    atomic_write(Path(out) / MANIFEST, _to_json(vars(manifest)))


def read_manifest(out: Path) -> Manifest:
    """The manifest of a result folder. Raises `InputError` where there is none, or one of another format."""
    path = Path(out) / MANIFEST
    if not os.path.isfile(path):
        raise InputError(f"{out} holds no {MANIFEST}; accepted: a folder that an experiment has written with --out")

    def decoded(tree: dict[str, Any]) -> Manifest:
        require(tree.get("format") == FORMAT, f"{path}: format", tree.get("format"), f"{FORMAT}, or another --out")
        return Manifest(**tree)

    return _load(path, decoded)


def check_same_experiment(out: Path, name: str) -> None:
    """Raise `InputError` if `out` already holds results of another experiment or format; an unused `out` passes."""
    if os.path.exists(out) and not os.path.isdir(out):
        raise InputError(f"--out {out} is a file; accepted: a new folder, or one of experiment {name!r}")
    if not os.path.exists(Path(out) / MANIFEST):
        return
    found = read_manifest(out).experiment
    if found != name:
        raise InputError(f"--out {out} holds experiment {found!r}; accepted: a new folder, or one of {name!r}")


def _to_json(tree: Mapping[str, Any]) -> bytes:
    return (json.dumps(_finite(tree), allow_nan=False) + "\n").encode()


def _finite(tree: Any) -> Any:
    """The tree with non-finite numbers as None (JSON knows none) and numpy scalars as plain numbers."""
    if isinstance(tree, Mapping):
        return {str(key): _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    if tree is None or isinstance(tree, str | bool | int):
        return tree
    if hasattr(tree, "item"):
        return _finite(tree.item())
    return float(tree) if math.isfinite(tree) else None


def _load(path: Path, decoded: Callable[[dict[str, Any]], _T]) -> _T:
    try:
        tree = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not readable JSON ({error}); delete it to have it made again") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path} holds a {type(tree).__name__}; accepted: a JSON object")
    try:
        return decoded(tree)
    except InputError:
        raise
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise InputError(f"{path} does not fit this version ({error}); delete it to have it made again") from error


def _read(path: Path) -> Record:
    record = _load(path, unflat)
    require(record.status in get_args(Status), f"{path}: status", record.status, ", ".join(get_args(Status)))
    return record


def _numbers(row: Mapping[str, float | None]) -> Metrics:
    return {key: math.nan if value is None else float(value) for key, value in row.items()}

"""Results of an experiment: one JSON file per trial, one manifest per experiment. Parquet files are built from both.

Every JSON file is written atomically. Everything else in the folder can be rebuilt from these files.

    OUT/experiment.json        the manifest, written before the first trial
    OUT/records/<hash>.json    one finished, failed or pruned trial
    OUT/grids/<hash>.png       its synthetic images, one row per class; `condensed-<hash>.png`: a condensed set
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
ARM_ORDER = ("none", "condensed_only", "mixed", "mixed_prior", "layouts", "guided", "guided_only", "real")
"""Order of the arms in every table and figure. Arms that are not listed follow in alphabetical order."""
ALL_REAL = "all_real"
"""`Record.condensation` of a trial whose condensed set consists of all real images."""

Status = Literal["finished", "failed", "pruned", "running"]
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of a trial, or the state of a running one. Accuracies and IoU are fractions, times are seconds."""

    status: Status
    """`running` for a trial that has not ended."""
    reason: str = ""
    """Why the trial failed or was pruned; empty otherwise."""
    metrics: Metrics = field(default_factory=dict)
    """Values at the end of the trial, keyed by `family/term`."""
    history: list[Metrics] = field(default_factory=list)
    """Metrics of each round, with the number of the round under `round`."""
    predictions: list[int] = field(default_factory=list)
    """The student's predicted class for each test image, in the order of the test set; empty in segmentation."""
    images: Tensor | None = None
    """(n, C, H, W) uint8 example images, sorted by class. Not stored in the record."""
    images_per_class: int = 0
    """Number of `images` of each class or, in segmentation, in each row."""
    grid_rows: list[str] = field(default_factory=list)
    """Captions of the rows of `images`, such as `student` above its coloured masks; empty in classification, where each
    row is a class. Not stored in the record."""
    held: dict[str, list[int]] = field(default_factory=dict)
    """Numbers of samples in the memory at the end: per predicted `class` of the teacher, and per `confidence` bin."""
    peak_bytes: int = 0
    """Peak of allocated GPU memory, or of resident memory on a CPU."""
    threads: int = 1
    """Number of PyTorch threads."""
    node: str = field(default_factory=platform.node)
    """Host name of the machine that ran the trial."""

    @property
    def wall_seconds(self) -> float:
        """Wall time of all rounds; NaN if unknown, for example for a failed trial."""
        return self.metrics.get("time/wall_seconds", math.nan)

    @property
    def cpu_seconds(self) -> float:
        """CPU time of all rounds; NaN if unknown."""
        return self.metrics.get("time/cpu_seconds", math.nan)

    @property
    def rounds(self) -> int:
        """Number of finished rounds."""
        return len(self.history)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One trial: its configuration, its provenance and its outcome."""

    experiment: str
    """Name of the experiment or search."""
    arm: str
    """Name of the arm."""
    ipc: int
    """Condensed images per class; 0 in arms that use none."""
    seed: int
    """Seed of the trial."""
    dataset: str
    """Name of the data set."""
    teacher: str
    """Architecture of the teacher, or the function or digest that identifies a user's own module."""
    student: str
    """Architecture of the student."""
    condensation: str
    """Label of the condensation; `none` without one."""
    inversion: str
    """Name of the inversion."""
    guidance: str
    """Name of the guidance."""
    memory: str
    """Name of the memory."""
    config: dict[str, Any]
    """The resolved configuration as a tree of plain JSON values."""
    config_hash: str
    """Key of the trial, which names its record; see `condkd_ray.trial.plan.trial_hash`."""
    teacher_hash: str = ""
    """Hash of the teacher's weights and, for a user's own module, of its code."""
    data_hash: str = ""
    """Hash of all images and labels of the data set."""
    condensed_hash: str = ""
    """Hash of the condensed images and labels; empty without a condensed set."""
    proxy_hash: str = ""
    """Hash of the proxy set."""
    pool_key: str = ""
    """Key under which the pool holds the trial's samples; equal for trials that share them."""
    scope: str = "trial"
    """The trials that shared its synthetic images; see `condkd_ray.trial.plan.Scope`."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of the software that shapes numbers, by package."""
    plugins: dict[str, str] = field(default_factory=dict)
    """Methods from outside this package: `family/name` to the plug-in and its version; see `core.families`."""
    git: str = ""
    """Commit of the package's checkout, with `+` if it had changes; empty outside a checkout."""
    numbers: int = 1
    """`trial.plan.NUMBERS` at the time of the trial. Records of different versions are never compared. Records without
    this field are of version 1."""
    study: str = ""
    """Name of the study of a search, whose trial number is part of `arm`; empty for planned trials."""
    outcome: Outcome
    """Result of the trial."""

    @property
    def status(self) -> Status:
        """Status of the outcome."""
        return self.outcome.status

    @property
    def metrics(self) -> Metrics:
        """Metrics of the outcome, at the end of the trial."""
        return self.outcome.metrics

    @property
    def history(self) -> list[Metrics]:
        """Metrics of the outcome for each round."""
        return self.outcome.history


_STORED = (
    *("experiment", "arm", "ipc", "seed", "dataset", "teacher", "student", "condensation", "inversion", "guidance"),
    *("memory", "status", "reason", "config", "config_hash", "teacher_hash", "data_hash", "condensed_hash"),
    *("proxy_hash", "pool_key", "scope", "versions", "git", "node", "threads", "wall_seconds", "cpu_seconds"),
    *("peak_bytes", "rounds", "metrics", "history", "predictions", "held", "numbers"),
)
"""Keys in a record's file, in their order: fields of the record and of its outcome."""
_IF_ANY = ("study", "plugins")
"""Keys that follow if their values are not empty."""
_DERIVED = ("wall_seconds", "cpu_seconds", "rounds")
"""Stored keys that are computed from the other fields and ignored on reading."""
_OF_OUTCOME = {one.name for one in dataclasses.fields(Outcome)} & set(_STORED)


def flat(record: Record) -> dict[str, Any]:
    """Convert a record to its stored form: one level, without images."""
    derived = {key: getattr(record.outcome, key) for key in _DERIVED}
    tree = {**vars(record), **vars(record.outcome), **derived}
    return {key: tree[key] for key in _STORED} | {key: tree[key] for key in _IF_ANY if tree[key]}


def unflat(tree: Mapping[str, Any]) -> Record:
    """Build the record from its stored form. Raises `TypeError` for a missing or unknown key."""
    outcome = {"node": "", **{key: value for key, value in tree.items() if key in _OF_OUTCOME}}
    outcome["metrics"] = _numbers(outcome.get("metrics", {}))
    outcome["history"] = [_numbers(row) for row in outcome.get("history", ())]
    own = {key: value for key, value in tree.items() if key not in _OF_OUTCOME and key not in _DERIVED}
    return Record(**own, outcome=Outcome(**outcome))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Description of an experiment: question, planned trials, data and teacher. Accuracies and IoU are fractions."""

    experiment: str
    """Name of the experiment."""
    question: str
    """The question that the experiment answers."""
    command: str
    """Command line, or call of the Python API, that ran it."""
    format: int = FORMAT
    """Version of the format of this file."""
    created: str
    """Time of creation, ISO 8601."""
    baseline: str | dict[str, str] = "none"
    """The arm with which all others are compared, or a dict that names the baseline of each arm."""
    planned: list[dict[str, Any]] = field(default_factory=list)
    """`arm`, `ipc`, `seed` and `config_hash` of each trial, and `study` of trials that a search proposed."""
    teacher: dict[str, Any] = field(default_factory=dict)
    """`label`, `hash`, `test_accuracy`, `val_accuracy` of the teacher. In segmentation `test_miou` and `val_miou` in
    place of the accuracies, and `test_iou`: the IoU of each class by its name, None for a class without pixels."""
    dataset: dict[str, Any] = field(default_factory=dict)
    """`name`, `hash`, `num_classes`, `image_shape`, `test_size`, `notes`, `task` of the data set. In segmentation also
    `class_names`, and `pixel_shares`: each class's share of the labelled pixels of the test images, by its name."""
    test_labels: list[int] = field(default_factory=list)
    """Class of each test image, in the order of the test set; empty in segmentation."""
    notes: list[str] = field(default_factory=list)
    """Sentences that a reader of the tables must know."""
    search: dict[str, Any] = field(default_factory=dict)
    """For a search: `objective`, `directions`, `constraints`, and the paths of the open leaves as `parameters`."""
    cpu_seconds: float | None = None
    """CPU time of the last complete run, driver and trials; None until it has ended."""
    teachers: list[dict[str, Any]] = field(default_factory=list)
    """One dict like `teacher` for each teacher; only if trials use several."""


def arm_rank(arm: str) -> tuple[int, str]:
    """Return the sort key of an arm: the position of its first word in `ARM_ORDER`; unknown arms follow by name."""
    first = arm.partition(" ")[0]
    return (ARM_ORDER.index(first) if first in ARM_ORDER else len(ARM_ORDER), arm)


def record_path(out: Path, config_hash: str) -> Path:
    """Return the path of the record of the trial with this configuration."""
    return Path(out) / "records" / f"{config_hash}.json"


def grid_path(out: Path, config_hash: str) -> Path:
    """Return the path of that trial's image grid, which may not exist."""
    return Path(out) / "grids" / f"{config_hash}.png"


def condensed_path(out: Path, condensed_hash: str) -> Path:
    """Return the path of the image grid of the condensed set with this hash, which several trials may use."""
    return Path(out) / "grids" / f"condensed-{condensed_hash}.png"


def write_record(out: Path, record: Record) -> None:
    """Write the record of a trial; an earlier record of the same configuration is replaced."""
    atomic_write(record_path(out, record.config_hash), _to_json(flat(record)))


def write_end(out: Path, record: Record) -> bool:
    """Write the record of an ended trial, and return whether it was written.

    A trial that did not finish does not replace a finished record, unless that has older `numbers`.
    """
    path = record_path(out, record.config_hash)
    if record.status != "finished" and path.is_file():
        before = _read(path)
        if before.status == "finished" and before.numbers >= record.numbers:
            return False
    write_record(out, record)
    return True


def read_records(out: Path) -> list[Record]:
    """Read the comparable records of a folder, those of the newest `numbers`, sorted by arm, IPC and seed.

    Raises `InputError` for the first file that cannot be read.
    """
    return newest(read_all_records(out))[0]


def read_all_records(out: Path) -> list[Record]:
    """Read all records, of any `numbers`, in the same order. Records of different `numbers` must not be compared."""
    records = [_read(path) for path in sorted((Path(out) / "records").glob("*.json"))]
    return sorted(records, key=lambda r: (arm_rank(r.arm), r.ipc, r.seed, r.config_hash))


def planned(records: Sequence[Record], manifest: Manifest) -> list[Record]:
    """Return the records of trials that the manifest plans; all records if it plans none."""
    wanted = {trial["config_hash"] for trial in manifest.planned}
    return [record for record in records if not wanted or record.config_hash in wanted]


def newest(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """Split records into those of their newest `numbers` and those of older ones."""
    last = max((record.numbers for record in records), default=0)
    return [one for one in records if one.numbers == last], [one for one in records if one.numbers < last]


def check_same_numbers(folders: Mapping[Path, Sequence[Record]]) -> None:
    """Raise `InputError` if the records of the given folders have different `numbers`."""
    found = {folder: records[0].numbers for folder, records in folders.items() if records}
    for folder, numbers in found.items():
        first = next(iter(found))
        accepted = f"{found[first]}, as in {first}: run the older one again with this version"
        require(numbers == found[first], f"version of the numbers of {folder}", numbers, accepted)


def find_record(out: Path, beginning: str) -> Record:
    """Return the ended trial whose hash starts with `beginning`. Raises `InputError` unless there is exactly one."""
    records = [record for record in read_all_records(out) if record.status in ("finished", "failed")]
    found = [record for record in records if record.config_hash.startswith(beginning)]
    there = ", ".join(f"{r.config_hash[:8]} ({r.arm} ipc {r.ipc} seed {r.seed})" for r in records[:20])
    accepted = f"the beginning of just one of {there or 'none, it holds no trial that has ended'}"
    require(len(found) == 1, f"trial of {out}", beginning, accepted)
    return found[0]


def finished(out: Path) -> set[str]:
    """Return the configuration hashes of the finished trials, which need not run again."""
    return {record.config_hash for record in read_records(out) if record.status == "finished"}


def write_manifest(out: Path, manifest: Manifest) -> None:
    """Write the manifest."""
    atomic_write(Path(out) / MANIFEST, _to_json(vars(manifest)))


def read_manifest(out: Path) -> Manifest:
    """Read the manifest of a result folder. Raises `InputError` if it is missing or of another format."""
    path = Path(out) / MANIFEST
    if not os.path.isfile(path):
        raise InputError(f"{out} holds no {MANIFEST}; accepted: a folder that an experiment has written with --out")

    def decoded(tree: dict[str, Any]) -> Manifest:
        require(tree.get("format") == FORMAT, f"{path}: format", tree.get("format"), f"{FORMAT}, or another --out")
        return Manifest(**tree)

    return _load(path, decoded)


def check_same_experiment(out: Path, name: str) -> None:
    """Raise `InputError` if `out` is a file, or holds results of another experiment or format."""
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
    """Replace non-finite numbers by None, because JSON has none, and numpy scalars by plain numbers."""
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

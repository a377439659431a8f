"""Reads claims from YAML files, checks them before any work, and builds the config of each of their cells.

A claim file names no folder of this machine: data and condensed sets are below one root folder, given by `--data-root`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from condkd_ray.commands.experiment import Flags
from condkd_ray.core.config import Tree, build, merge, read_tree, to_tree
from condkd_ray.core.method import InputError, require
from condkd_ray.core.task import Score
from condkd_ray.data.datasets import DataConfig, task_of
from condkd_ray.methods.condensation import Imported
from condkd_ray.runs.arms import Arm, Prior
from condkd_ray.runs.presets import check_parts
from condkd_ray.trial.config import TrialConfig, from_tree

FOLDERS = {
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "fashion_mnist": "FashionMNIST",
    "mnist": "MNIST",
    "svhn": "SVHN",
    "camvid": "camvid",
}
"""Folder of each data set below the data root. The claim itself gives the folders of condensed sets below it."""
WITHOUT_FILES = ("digits", "scenes")
"""Data sets that need no files."""
OWN_VALIDATION = (*WITHOUT_FILES, "camvid")
"""Data sets with validation images of their own."""
CHOOSING_SEEDS = 100
"""Smallest seed for choosing on validation images; smaller seeds measure on test images (our choice)."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Settings of a claim, which hold for all its cells, or of one cell, which override the claim's."""

    teacher: str | None = None
    """Teacher's architecture, in the spelling of `condkd methods --networks`."""
    student: str | None = None
    host: str | None = None
    """A published system; `scale` is the share of its optimiser steps that is run."""
    scale: float | None = None
    inversion: str | None = None
    """An inversion in this project's own recipe, instead of `host`."""
    prior: Prior | None = None
    """Class prior of `mixed_prior` and the guided arms: `weight` and `temperature`. None keeps the host's own."""
    condensation: Tree | None = None
    """The condensed set with its `ipc`; the `path` of an imported set is relative to the data root."""
    config: Tree = field(default_factory=dict)
    """Any other field of a trial's config."""


@dataclass(frozen=True, kw_only=True)
class Candidate(Setting):
    """A setting that a choosing claim compares with others."""

    arm: Arm
    group: str = ""
    """Candidates compete only within their group."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A step of successive halving: the number of seeds of each candidate so far, and how many of a group continue."""

    seeds: int
    keep: int | None = None
    """None in the last rung, after which the best candidate of each group is chosen."""


@dataclass(frozen=True, kw_only=True)
class Claim(Setting):
    """The content of a claim file. `read_claim` fills in `name` and `cells`."""

    name: str = ""
    order: float
    """Claims run in ascending order."""
    kind: Literal["measuring", "choosing"] = "measuring"
    """`measuring` compares arms on test images; `choosing` ranks candidates on validation images."""
    question: str
    hypothesis: str
    chosen: str
    """Settings that were chosen on validation images, with the claim and seeds of the choice."""
    data: DataConfig
    teachers: int = 1
    """Number of teachers over which the seeds are spread."""
    cells: dict[str, Any] = field(default_factory=dict)
    """Settings by name; a choosing claim has `candidates` instead."""
    candidates: dict[str, Any] = field(default_factory=dict)
    arms: tuple[Arm, ...] = ()
    controls: tuple[Arm, ...] = ("mixed", "mixed_prior")
    """Arms that `guided` has to beat, each by itself; those that the claim has count."""
    seeds: tuple[int, ...]
    rungs: tuple[Any, ...] = ()
    cpu_seconds: float
    """Expected CPU seconds per trial; `--list` uses the median of stored rows if there are any."""
    needs_gpu: bool = False
    """If True, the claim runs only with --gpus-per-trial; otherwise it is only listed."""

    @property
    def choosing(self) -> bool:
        """True for a choosing claim, which must not store or show any result on test images."""
        return self.kind == "choosing"

    @property
    def score(self) -> Score:
        """The score of students on the claim's data."""
        return Score(task_of(self.data.name))

    def setting(self, cell: str) -> Setting:
        """Return the settings of a cell: the claim's, overridden by the cell's; `config` is merged leaf by leaf."""
        own = self.cells[cell]
        names = ("teacher", "student", "host", "scale", "inversion", "prior", "condensation")
        given = {name: getattr(own, name) for name in names if getattr(own, name) is not None}
        # A cell's host replaces the claim's inversion, and the reverse.
        if "host" in given:
            given = {"inversion": None} | given
        elif "inversion" in given:
            given = {"host": None, "scale": None} | given
        stated = {name: getattr(self, name) for name in names} | given
        return Setting(**stated, config=merge(self.config, own.config))

    def arms_of(self, cell: str) -> tuple[Arm, ...]:
        """Return the arms that run in a cell."""
        return (self.cells[cell].arm,) if self.choosing else self.arms

    def base(self, cell: str) -> TrialConfig:
        """Return the config from which all arms of a cell start, with relative paths. Raises `InputError`."""
        where, stated = f"claim {self.name}, {cell}", self.setting(cell)
        try:
            tree = self._tree(stated, where)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        return from_tree(tree, where)

    def _tree(self, stated: Setting, where: str) -> Tree:
        data = replace(self.data, root=Path(FOLDERS[self.data.name])) if self.data.name in FOLDERS else self.data
        names = ("teacher", "student", "host", "scale", "inversion")
        given = {name: getattr(stated, name) for name in names if getattr(stated, name) is not None}
        tree = to_tree(Flags(dataset=data.name, data_root=data.root, **given).base())
        if stated.host is not None:
            check_parts(stated.host, stated.config, where)
        return merge(tree, stated.config) | {"data": to_tree(data), "condensation": stated.condensation}


def read_claims(folder: Path, names: Sequence[str] = ()) -> list[Claim]:
    """Return the claims in a folder, all or those named, by `order`. Raises `InputError` for the first bad one."""
    paths = {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder.is_dir() else {}
    require(bool(paths), "--claims", str(folder), "a folder of claims, one YAML file each")
    for name in names:
        require(name in paths, "claim", name, ", ".join(paths) or f"the name of a YAML file in {folder}")
    claims = [read_claim(paths[name]) for name in dict.fromkeys(names or paths)]
    return sorted(claims, key=lambda claim: (claim.order, claim.name))


def read_claim(path: Path) -> Claim:
    """Return the claim in a file, fully checked. Raises `InputError` with the field, its value and what is accepted."""
    tree = read_tree(path)
    require("name" not in tree, f"{path}: name", tree.get("name"), "none: the file name is the claim's name")
    claim = build(Claim, tree, str(path))
    accepted = f"{', '.join(WITHOUT_FILES)}, or a data set below the data root: {', '.join(FOLDERS)}"
    require(claim.data.name in (*WITHOUT_FILES, *FOLDERS), f"{path}: data: name", claim.data.name, accepted)
    require(claim.data.root is None, f"{path}: data: root", str(claim.data.root), "none: --data-root gives the folder")
    field_name, other = ("candidates", "cells") if claim.choosing else ("cells", "candidates")
    require(
        not getattr(claim, other), f"{path}: {other}", [*getattr(claim, other)], f"{field_name} of a {claim.kind} claim"
    )
    given: Mapping[str, Any] = getattr(claim, field_name)
    require(bool(given), f"{path}: {field_name}", given, "one or more settings by name")
    kind = Candidate if claim.choosing else Setting
    cells = {name: build(kind, one or {}, f"{path}: {field_name}: {name}") for name, one in given.items()}
    rungs = tuple(build(Rung, one, f"{path}: rungs") for one in claim.rungs)
    claim = replace(claim, name=path.stem, cells=cells, candidates={}, rungs=rungs)
    _check_seeds(claim, path)
    (_check_choosing if claim.choosing else _check_measuring)(claim, path)
    for cell in claim.cells:
        _check_cell(claim, cell, path)
    return claim


def located(config: TrialConfig, root: Path | None) -> TrialConfig:
    """Return a config with its paths below the data root. Raises `InputError` if it needs a root and has none."""
    relative = config.data.root
    if relative is None:
        return config if not isinstance(config.condensation, Imported) else _set_located(config, _required(root))
    moved = replace(config, data=replace(config.data, root=_required(root) / relative))
    return _set_located(moved, _required(root))


def set_path(config: TrialConfig) -> str:
    """Return the relative path of an imported condensed set, which config hashes leave out; "" for other sets."""
    return config.condensation.path.as_posix() if isinstance(config.condensation, Imported) else ""


def _set_located(config: TrialConfig, root: Path) -> TrialConfig:
    if not isinstance(config.condensation, Imported):
        return config
    return replace(config, condensation=replace(config.condensation, path=root / config.condensation.path))


def _required(root: Path | None) -> Path:
    require(root is not None, "--data-root", None, "the folder that holds cifar10, FashionMNIST, camvid and condensed")
    assert root is not None
    return root.expanduser()


def _check_seeds(claim: Claim, path: Path) -> None:
    least, most = (CHOOSING_SEEDS, 2**31 - 1) if claim.choosing else (0, CHOOSING_SEEDS - 1)
    fits = bool(claim.seeds) and all(least <= seed <= most for seed in claim.seeds)
    fits = fits and len(set(claim.seeds)) == len(claim.seeds)
    accepted = f"different integers from {least} to {most} for a {claim.kind} claim"
    require(fits, f"{path}: seeds", claim.seeds, accepted)
    require(1 <= claim.teachers <= len(claim.seeds), f"{path}: teachers", claim.teachers, "1 to the number of seeds")
    require(claim.cpu_seconds > 0, f"{path}: cpu_seconds", claim.cpu_seconds, "seconds above 0")


def _check_measuring(claim: Claim, path: Path) -> None:
    require(not claim.rungs, f"{path}: rungs", len(claim.rungs), "none, or kind: choosing")
    fits = bool(claim.arms) and len(set(claim.arms)) == len(claim.arms)
    require(fits, f"{path}: arms", claim.arms, f"one or more of {', '.join(get_args(Arm))}, each once")


def _check_choosing(claim: Claim, path: Path) -> None:
    require(not claim.arms, f"{path}: arms", claim.arms, "none: each candidate has its own arm")
    held_out = claim.data.val_fraction > 0 or claim.data.name in OWN_VALIDATION
    accepted = f"a part above 0 of the train images, for choosing ({', '.join(OWN_VALIDATION)} have validation images)"
    require(held_out, f"{path}: data: val_fraction", claim.data.val_fraction, accepted)
    counts, kept = [rung.seeds for rung in claim.rungs], [rung.keep for rung in claim.rungs]
    grows = bool(counts) and counts == sorted(set(counts)) and counts[0] >= 1 and counts[-1] <= len(claim.seeds)
    require(
        grows,
        f"{path}: rungs: seeds",
        counts,
        f"one or more growing numbers, up to the number of seeds, {len(claim.seeds)}",
    )
    falls = kept[-1] is None and all(keep is not None and keep >= 1 for keep in kept[:-1])
    require(falls, f"{path}: rungs: keep", kept, "an integer >= 1 in each rung but the last, which has none")


def _check_cell(claim: Claim, cell: str, path: Path) -> None:
    where, stated = f"{path}: {cell}", claim.setting(cell)
    require(stated.condensation is not None, f"{where}: condensation", None, "a method with its ipc")
    elsewhere = {"seed", "data", "condensation"} & stated.config.keys()
    require(not elsewhere, f"{where}: config", sorted(elsewhere), "other fields: the claim gives these directly")
    config = claim.base(cell)
    require(config.ipc >= 1, f"{where}: condensation: ipc", config.ipc, "an integer >= 1")
    needs = "mixed_prior" in claim.arms_of(cell)
    require(stated.prior is not None or not needs, f"{where}: prior", None, "{weight, temperature}, for mixed_prior")
    if isinstance(config.condensation, Imported):
        own = config.condensation.path
        inside = not own.is_absolute() and ".." not in own.parts
        require(inside, f"{where}: condensation: path", str(own), "a path below the data root, such as condensed/NAME")
    own_teacher = config.teacher.weights or config.teacher.module
    require(
        own_teacher is None,
        f"{where}: teacher weights or module",
        str(own_teacher),
        "none: a claim trains its teachers",
    )

"""A claim as its YAML file states it, checked before any work, and the config of each of its cells.

The file names no folder of this machine: data and condensed sets lie below one root, which the command line gives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from condkd_ray.commands.experiment import Flags
from condkd_ray.core.config import Tree, build, merge, read_tree, to_tree
from condkd_ray.core.method import InputError, require
from condkd_ray.data.datasets import DataConfig
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
}
"""Where each data set lies below the data root; condensed sets lie where the claim says, below it too."""
CHOOSING_SEEDS = 100
"""Seeds from here on choose on validation images; those below measure on test images (our choice)."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a claim states for all its cells, and a cell for itself; what a cell does not state is the claim's."""

    teacher: str | None = None
    """As `condkd methods --networks` spells it."""
    student: str | None = None
    host: str | None = None
    """A published system; `scale` is the share of its optimiser steps."""
    scale: float | None = None
    inversion: str | None = None
    """In the place of `host`: an inversion in this project's own recipe."""
    prior: Prior | None = None
    """Class prior of `mixed_prior` and the guided arms, `weight` and `temperature`. None: the host's own."""
    condensation: Tree | None = None
    """The condensed set with its `ipc`; the `path` of a stranger's is relative to the data root."""
    config: Tree = field(default_factory=dict)
    """Any other field of a trial's config."""


@dataclass(frozen=True, kw_only=True)
class Candidate(Setting):
    """A setting that a choosing claim ranks beside others."""

    arm: Arm
    group: str = ""
    """Candidates compete within their group."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A step of successive halving: candidates that have so many seeds in all, and how many of a group go on."""

    seeds: int
    keep: int | None = None
    """None: of the last rung, after which the best of each group is the choice."""


@dataclass(frozen=True, kw_only=True)
class Claim(Setting):
    """A claim file. `name` and `cells` are what `read_claim` makes of it."""

    name: str = ""
    order: float
    """Claims run in ascending order."""
    kind: Literal["measuring", "choosing"] = "measuring"
    """`measuring` compares arms on test images; `choosing` ranks candidates on validation images."""
    question: str
    hypothesis: str
    chosen: str
    """What was chosen on validation images, and by which claim and seeds."""
    data: DataConfig
    teachers: int = 1
    """The seeds are spread over so many teachers."""
    cells: dict[str, Any] = field(default_factory=dict)
    """Settings by name; of a choosing claim `candidates` stands in their place."""
    candidates: dict[str, Any] = field(default_factory=dict)
    arms: tuple[Arm, ...] = ()
    seeds: tuple[int, ...]
    rungs: tuple[Any, ...] = ()
    cpu_seconds: float
    """Expected of a trial; `--list` uses the median of stored rows where there are some."""
    needs_gpu: bool = False
    """Without --gpus-per-trial the claim is listed and not run."""

    @property
    def choosing(self) -> bool:
        """Whether it chooses on validation images, so that nothing of the test images may be stored or shown."""
        return self.kind == "choosing"

    def setting(self, cell: str) -> Setting:
        """What holds in a cell. Its `config` is that of the claim with the cell's own leaves over it."""
        own = self.cells[cell]
        names = ("teacher", "student", "host", "scale", "inversion", "prior", "condensation")
        given = {name: getattr(own, name) for name in names if getattr(own, name) is not None}
        # Either replaces the other.
        if "host" in given:
            given = {"inversion": None} | given
        elif "inversion" in given:
            given = {"host": None, "scale": None} | given
        stated = {name: getattr(self, name) for name in names} | given
        return Setting(**stated, config=merge(self.config, own.config))

    def arms_of(self, cell: str) -> tuple[Arm, ...]:
        """The arms that are run in a cell."""
        return (self.cells[cell].arm,) if self.choosing else self.arms

    def base(self, cell: str) -> TrialConfig:
        """The config that all arms of a cell start from; its paths are relative. Raises `InputError`."""
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
    """The claims in a folder, or those named, in their order. Raises `InputError` for the first that cannot be."""
    paths = {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder.is_dir() else {}
    require(bool(paths), "--claims", str(folder), "a folder that holds claims, a YAML file each")
    for name in names:
        require(name in paths, "claim", name, ", ".join(paths) or f"the name of a YAML file in {folder}")
    claims = [read_claim(paths[name]) for name in dict.fromkeys(names or paths)]
    return sorted(claims, key=lambda claim: (claim.order, claim.name))


def read_claim(path: Path) -> Claim:
    """The claim in a file, checked whole. Raises `InputError`: the field, its value, what is accepted."""
    tree = read_tree(path)
    require("name" not in tree, f"{path}: name", tree.get("name"), "none: the name of the file is that of the claim")
    claim = build(Claim, tree, str(path))
    accepted = f"a set below one data root: digits, {', '.join(FOLDERS)}"
    require(claim.data.name in ("digits", *FOLDERS), f"{path}: data: name", claim.data.name, accepted)
    require(
        claim.data.root is None, f"{path}: data: root", str(claim.data.root), "none: --data-root says where it lies"
    )
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
    """A cell's config with its paths below the data root. Raises `InputError` where it needs one and there is none."""
    relative = config.data.root
    if relative is None:
        return config if not isinstance(config.condensation, Imported) else _set_located(config, _given(root))
    moved = replace(config, data=replace(config.data, root=_given(root) / relative))
    return _set_located(moved, _given(root))


def set_path(config: TrialConfig) -> str:
    """The relative path of a stranger's condensed set; empty where it has none. Hashes of configs leave paths out."""
    return config.condensation.path.as_posix() if isinstance(config.condensation, Imported) else ""


def _set_located(config: TrialConfig, root: Path) -> TrialConfig:
    if not isinstance(config.condensation, Imported):
        return config
    return replace(config, condensation=replace(config.condensation, path=root / config.condensation.path))


def _given(root: Path | None) -> Path:
    require(root is not None, "--data-root", None, "the folder that holds cifar10, FashionMNIST and condensed")
    assert root is not None
    return root.expanduser()


def _check_seeds(claim: Claim, path: Path) -> None:
    least, most = (CHOOSING_SEEDS, 2**31 - 1) if claim.choosing else (0, CHOOSING_SEEDS - 1)
    fits = bool(claim.seeds) and all(least <= seed <= most for seed in claim.seeds)
    fits = fits and len(set(claim.seeds)) == len(claim.seeds)
    accepted = f"different integers from {least} to {most}, as a {claim.kind} claim has them"
    require(fits, f"{path}: seeds", claim.seeds, accepted)
    require(1 <= claim.teachers <= len(claim.seeds), f"{path}: teachers", claim.teachers, "1 to the number of seeds")
    require(claim.cpu_seconds > 0, f"{path}: cpu_seconds", claim.cpu_seconds, "seconds above 0")


def _check_measuring(claim: Claim, path: Path) -> None:
    require(not claim.rungs, f"{path}: rungs", len(claim.rungs), "none, or kind: choosing")
    fits = bool(claim.arms) and len(set(claim.arms)) == len(claim.arms)
    require(fits, f"{path}: arms", claim.arms, f"one or more of {', '.join(get_args(Arm))}, each once")


def _check_choosing(claim: Claim, path: Path) -> None:
    require(not claim.arms, f"{path}: arms", claim.arms, "none: each candidate has its own arm")
    held_out = claim.data.val_fraction > 0 or claim.data.name == "digits"
    accepted = "a part above 0 of the train images, which choose (digits has validation images of its own)"
    require(held_out, f"{path}: data: val_fraction", claim.data.val_fraction, accepted)
    counts, kept = [rung.seeds for rung in claim.rungs], [rung.keep for rung in claim.rungs]
    grows = bool(counts) and counts == sorted(set(counts)) and counts[0] >= 1 and counts[-1] <= len(claim.seeds)
    require(
        grows,
        f"{path}: rungs: seeds",
        counts,
        f"one or more growing numbers, up to that of the seeds, {len(claim.seeds)}",
    )
    falls = kept[-1] is None and all(keep is not None and keep >= 1 for keep in kept[:-1])
    require(falls, f"{path}: rungs: keep", kept, "an integer >= 1 in each rung but the last, which has none")


def _check_cell(claim: Claim, cell: str, path: Path) -> None:
    where, stated = f"{path}: {cell}", claim.setting(cell)
    require(stated.condensation is not None, f"{where}: condensation", None, "a method with its ipc")
    elsewhere = {"seed", "data", "condensation"} & stated.config.keys()
    require(not elsewhere, f"{where}: config", sorted(elsewhere), "other fields: these stand in the claim itself")
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

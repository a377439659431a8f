"""What the best trials have made, kept beside their records: student, synthetic images, and points of the latter.

OUT/products/<hash>.safetensors    the best trial of each arm and IPC, kept while an experiment runs
OUT/points/<hash>.safetensors      of the same trials, for the report: see `condkd_ray.report.tensorboard.embeddings`
"""

import math
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from condkd_ray import models
from condkd_ray.core.method import require
from condkd_ray.core.records import Record, read_manifest, read_records
from condkd_ray.core.samples import Codec, Samples
from condkd_ray.core.storage import Location, take
from condkd_ray.methods.condensation import AllReal
from condkd_ray.report.tensorboard.embeddings import points_path, write_points
from condkd_ray.runs.images import feature_points
from condkd_ray.trial.config import Prepared
from condkd_ray.trial.outcome import Product, product_path, read_product

MERITS = ("student/val_accuracy", "proxy/agreement")
"""What the best is chosen by: the first that was measured. Never test accuracy."""


def kept_path(out: Path, config_hash: str) -> Path:
    """Where the product of that trial is kept, if it is."""
    return Path(out) / "products" / f"{config_hash}.safetensors"


def merit(record: Record) -> tuple[str, float]:
    """The name of what it is judged by, and its value; minus infinity where nothing was measured."""
    for name in MERITS:
        value = record.metrics.get(name, math.nan)
        if not math.isnan(value):
            return name, value
    return "nothing", -math.inf


def _group(record: Record) -> tuple[str, int, int]:
    """Trials of which one is kept: those of an arm and IPC, or all of a search, of one version of the numbers."""
    return ("search", 0, record.numbers) if record.experiment == "search" else (record.arm, record.ipc, record.numbers)


class Shelf:
    """Keeps what the best trial of each arm and IPC, or of a search, has made, of those that ended under `out` so far.

    `storage`: where trials leave their products; `out` too if not given.
    """

    def __init__(self, out: Path, storage: Location | None = None) -> None:
        self._out, self._storage = Path(out), storage or Path(out)
        self._best = {_group(r): r for r in read_records(out) if kept_path(out, r.config_hash).is_file()}

    def offer(self, record: Record, prepared: Prepared | None = None) -> None:
        """Keep this trial's product in place of the former best, or delete it.

        With what it was `prepared` with, the points that the teacher makes of its images are kept beside it.
        """
        fresh = product_path(self._storage / "trials" / record.config_hash)
        kept = kept_path(self._out, record.config_hash)
        # Kept without being known: a driver that died before it had made a record of it.
        if record.status != "finished" or not (fresh.is_file() or kept.is_file()):
            return
        former = self._best.get(_group(record))
        if former is not None and merit(former)[1] >= merit(record)[1]:
            fresh.unlink(missing_ok=True)
            return
        if fresh.is_file():
            take(fresh, kept)
        if prepared is not None:
            write_points(points_path(self._out, record.config_hash), feature_points(prepared, read_product(kept)))
        self._best[_group(record)] = record
        if former is not None and former.config_hash != record.config_hash:
            for path in (kept_path, points_path):
                path(self._out, former.config_hash).unlink(missing_ok=True)


def choose(out: Path, config_hash: str | None = None) -> Record:
    """The best of the kept trials, or the one whose hash begins with `config_hash`.

    Trials of the newest version of the numbers come first, as those of different versions cannot be compared.
    Those that were taught with all real images are references, chosen unasked only where there are no others.
    Raises `InputError` where none is kept, or where none or several hashes begin so.
    """
    read_manifest(out)
    kept = [record for record in read_records(out) if kept_path(out, record.config_hash).is_file()]
    require(bool(kept), f"trials kept in {out}", 0, "a folder whose experiment kept the best of each arm")
    if config_hash is None:
        others = [record for record in kept if record.condensation != AllReal.name]
        return max(others or kept, key=lambda record: (record.numbers, merit(record)[1]))
    found = [record for record in kept if record.config_hash.startswith(config_hash)]
    there = ", ".join(f"{r.config_hash[:12]} ({r.arm} ipc {r.ipc} seed {r.seed})" for r in kept)
    require(len(found) == 1, "trial", config_hash, f"the beginning of just one of {there}")
    return found[0]


def load_student(product: Product) -> nn.Module:
    """The student in eval mode."""
    student = models.parse(product.network).build(product.image_shape, product.num_classes)
    student.load_state_dict(product.student)
    return student.eval()


@dataclass(frozen=True)
class Trained:
    """What came of a trial."""

    record: Record
    """Its status, config, metrics, history and predictions."""
    product: Product | None
    """Student, synthetic images and how to use them; None where the trial failed, or a better one's is kept instead."""

    @property
    def student(self) -> nn.Module:
        """The student in eval mode, a new one each time; it reads images normalised by the product's mean and std."""
        require(
            self.product is not None, "product of the trial", None, "a trial that finished and whose product is kept"
        )
        assert self.product is not None
        return load_student(self.product)

    @property
    def samples(self) -> Samples | None:
        """The synthetic images in the teacher's normalised space; None where the trial remembers none."""
        if self.product is None or self.product.samples is None:
            return None
        return Codec(self.product.space, self.product.mean, self.product.std).decode(self.product.samples)


def kept_product(out: Path, config_hash: str) -> Product | None:
    """The product of that trial, if it is kept."""
    path = kept_path(out, config_hash)
    return read_product(path) if path.is_file() else None

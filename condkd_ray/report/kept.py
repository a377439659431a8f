"""Finds and loads the trials of a folder whose student and synthetic images are kept, and chooses the best of them.

OUT/products/<hash>.safetensors    the best trial of each arm and IPC, or of a search
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from condkd_ray import models
from condkd_ray.core.families import check_plugins
from condkd_ray.core.method import require
from condkd_ray.core.records import ALL_REAL, Record, read_manifest, read_records
from condkd_ray.core.samples import Codec, Samples
from condkd_ray.models import NETWORKS
from condkd_ray.trial.outcome import Product, read_product

MERITS = ("student/val_accuracy", "proxy/agreement")
"""Metrics by which the best trial is chosen: the first that was measured counts. Never test accuracy."""


def kept_path(out: Path, config_hash: str) -> Path:
    """Return the path of the product of the trial `config_hash`, whether the file exists or not."""
    return Path(out) / "products" / f"{config_hash}.safetensors"


def kept_product(out: Path, config_hash: str) -> Product | None:
    """Return the product of the trial `config_hash`, or None if it is not kept."""
    path = kept_path(out, config_hash)
    return read_product(path) if path.is_file() else None


def merit(record: Record) -> tuple[str, float]:
    """Return the name and value of the metric by which a trial is chosen; minus infinity if none was measured."""
    for name in MERITS:
        value = record.metrics.get(name, math.nan)
        if not math.isnan(value):
            return name, value
    return "nothing", -math.inf


def choose(out: Path, beginning: str | None = None) -> Record:
    """Return the best of the kept trials under `out`, or the one whose hash begins with `beginning`: see `chosen`.

    Raises `InputError` where `chosen` does, and if `out` is not the folder of an experiment.
    """
    read_manifest(out)
    return chosen(read_records(out), out, beginning)


def chosen(records: Sequence[Record], out: Path, beginning: str | None = None) -> Record:
    """Return the best of the `records` with a product under `out`, or the one whose hash begins with `beginning`.

    Only trials of the newest version of the numbers can be the best, because versions cannot be compared. Reference
    trials, whose student was trained on all real images, are chosen only if there are no others. Raises `InputError` if
    no trial is kept, or unless exactly one hash begins with `beginning`.
    """
    kept = [record for record in records if kept_path(out, record.config_hash).is_file()]
    require(bool(kept), f"trials kept in {out}", 0, "a folder with the product of at least one trial")
    if beginning is None:
        others = [record for record in kept if record.condensation != ALL_REAL]
        return max(others or kept, key=lambda record: (record.numbers, merit(record)[1]))
    found = [record for record in kept if record.config_hash.startswith(beginning)]
    there = ", ".join(f"{r.config_hash[:12]} ({r.arm} ipc {r.ipc} seed {r.seed})" for r in kept)
    require(len(found) == 1, "trial", beginning, f"the beginning of just one of {there}")
    return found[0]


def load_student(product: Product, record: Record) -> nn.Module:
    """Return the student of a trial in eval mode.

    Raises `InputError` if the student's network is defined by a plug-in that is not installed.
    """
    networks = {place: origin for place, origin in record.plugins.items() if place.startswith(f"{NETWORKS.name}/")}
    check_plugins(networks, f"record {record.config_hash[:12]}", record.config)
    with torch.random.fork_rng(devices=[]):
        student = models.parse(product.network).build(product.image_shape, product.num_classes)
    student.load_state_dict(product.student)
    return student.eval()


@dataclass(frozen=True, repr=False)
class Trained:
    """One trial with its record, its student and its synthetic images."""

    record: Record
    """Status, config, metrics, history and predictions."""
    product: Product | None
    """Student, synthetic images and their normalisation; None if the trial failed or its product was not kept."""

    def __repr__(self) -> str:
        record = self.record
        accuracy = record.metrics.get("student/test_accuracy")
        measured = "" if accuracy is None else f", test accuracy {accuracy:.1%}"
        return f"<Trained {record.arm} seed {record.seed} {record.config_hash}: {record.status}{measured}>"

    @property
    def student(self) -> nn.Module:
        """A new copy of the student in eval mode. Its inputs are images normalised by the product's mean and std.

        Raises `InputError` if there is no product.
        """
        require(
            self.product is not None, "product of the trial", None, "a trial that finished and whose product is kept"
        )
        assert self.product is not None
        return load_student(self.product, self.record)

    @property
    def samples(self) -> Samples | None:
        """Synthetic images in the teacher's normalised space; None if the trial's memory keeps none."""
        if self.product is None or self.product.samples is None:
            return None
        return Codec(self.product.space, self.product.mean, self.product.std).decode(self.product.samples)

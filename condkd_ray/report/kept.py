"""Finds and loads the trials of a folder whose student and synthetic images are kept, and chooses the best of them.

OUT/products/<hash>.safetensors    student and synthetic images of the best trial of each arm and IPC, of the best trial
                                   of a search, and of each trial of `condkd train`
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from condkd_ray import models
from condkd_ray.core.families import check_plugins
from condkd_ray.core.method import InputError, require
from condkd_ray.core.records import ALL_REAL, Record, newest, planned, read_all_records, read_manifest
from condkd_ray.core.samples import Codec, Samples
from condkd_ray.core.task import SCORES, Score
from condkd_ray.models import NETWORKS
from condkd_ray.report.statistics import score_of
from condkd_ray.trial.outcome import Product, read_product

MERITS = (*(Score(task).val for task in SCORES), "proxy/agreement")
"""Metrics by which the best trial is chosen: the first of them that was measured counts. Never a test score."""


def kept_path(out: Path, config_hash: str) -> Path:
    """Return the path of the product of the trial `config_hash`; the file need not exist."""
    return Path(out) / "products" / f"{config_hash}.safetensors"


def kept_product(out: Path, config_hash: str) -> Product | None:
    """Return the product of the trial `config_hash`; None if it is not kept. Raises `InputError` if it is damaged."""
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
    """Return the record of the best kept trial under `out`, or of the trial whose hash begins with `beginning`.

    Raises `InputError` like `chosen`, and if `out` is not the folder of an experiment.
    """
    manifest, stored = read_manifest(out), read_all_records(out)
    counted, _ = newest(planned(stored, manifest))
    return chosen(counted, out, beginning, stored=stored)


def chosen(
    records: Sequence[Record], out: Path, beginning: str | None = None, *, stored: Sequence[Record] = ()
) -> Record:
    """Return the best of the `records` with a product under `out`, or the one whose hash begins with `beginning`.

    Only `records`, which are planned and have one version of the numbers, can be the best, because others cannot be
    compared with them. If `beginning` is given, all `stored` records with a product are searched. Reference trials,
    whose student was trained on all real images, are chosen only if there are no others. Raises `InputError` if there
    is no product, or unless exactly one hash begins with `beginning`.
    """
    named = [record for record in stored or records if kept_path(out, record.config_hash).is_file()]
    there = ", ".join(f"{r.config_hash[:12]} ({r.arm} ipc {r.ipc} seed {r.seed})" for r in named)
    if beginning is None:
        keys = {record.config_hash for record in records}
        kept = [record for record in named if record.config_hash in keys]
        accepted = "a folder with the product of at least one trial"
        if named:
            accepted += f" of the present plan; products of other trials, which can be chosen by hash: {there}"
        require(bool(kept), f"trials kept in {out}", 0, accepted)
        others = [record for record in kept if record.condensation != ALL_REAL]
        return max(others or kept, key=lambda record: merit(record)[1])
    require(bool(named), f"trials kept in {out}", 0, "a folder with the product of at least one trial")
    found = [record for record in named if record.config_hash.startswith(beginning)]
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
    """One trial: its record, its student and its synthetic images."""

    record: Record
    """Status, config, metrics, history and predictions."""
    product: Product | None
    """Student, synthetic images and their normalisation; None if the trial failed or its product was not kept."""

    def __repr__(self) -> str:
        record = self.record
        score = score_of([record])
        found = record.metrics.get(score.test)
        measured = "" if found is None else f", test {score.name} {found:.1%}"
        return f"<Trained {record.arm} seed {record.seed} {record.config_hash}: {record.status}{measured}>"

    @property
    def student(self) -> nn.Module:
        """A new copy of the student in eval mode. Its inputs are images normalised by the product's mean and std.

        Raises `InputError` if there is no product.
        """
        if self.product is None:
            raise InputError(f"product of trial {self.record.config_hash[:12]} is None; accepted: {self._missing}")
        return load_student(self.product, self.record)

    @property
    def _missing(self) -> str:
        """Text that states which trials have a product, for a trial without one."""
        if self.record.status != "finished":
            return f"a trial that finished; this one is {self.record.status}"
        return (
            "a trial whose product is kept. This one finished, but its folder keeps that of another trial, which "
            "condkd_ray.load(folder).best() returns; to get that of this one, run it in another folder (out)"
        )

    @property
    def samples(self) -> Samples | None:
        """Synthetic images in the teacher's normalised space; None without a product, or if the memory has none."""
        if self.product is None or self.product.samples is None:
            return None
        return Codec(self.product.space, self.product.mean, self.product.std).decode(self.product.samples)

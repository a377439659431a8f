"""Out again: the best student and its synthetic images, in forms that need nothing of this package.

OUT/products/<hash>.safetensors    the best trial of each arm and IPC, kept while an experiment runs
OUT/points/<hash>.safetensors      of the same trials, for the report: see `condkd_ray.report.tensorboard.embeddings`
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from condkd_ray import models
from condkd_ray.core.config import to_tree
from condkd_ray.core.files import atomic_write
from condkd_ray.core.method import require
from condkd_ray.core.records import Record, read_manifest, read_records
from condkd_ray.core.samples import to_unit
from condkd_ray.core.storage import Location, take
from condkd_ray.data.writers import write_images
from condkd_ray.methods.condensation import AllReal
from condkd_ray.report.tensorboard.embeddings import points_path, write_points
from condkd_ray.runs.images import feature_points
from condkd_ray.trial.config import Prepared
from condkd_ray.trial.product import Product, product_path, read_product

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


class FromPixels(nn.Module):
    """A student that reads [0, 1] pixels (B, C, H, W): normalised twice, or not at all, cannot happen to it."""

    mean: Tensor
    std: Tensor

    def __init__(self, student: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.student = student
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (B, K)."""
        return self.student((pixels - self.mean) / self.std)


def load_student(product: Product) -> nn.Module:
    """The student in eval mode."""
    student = models.parse(product.network).build(product.image_shape, product.num_classes)
    student.load_state_dict(product.student)
    return student.eval()


def export(out: Path, record: Record, to: Path) -> list[str]:
    """Write student and synthetic set of `record`'s trial to the folder `to`; what was written, a line each.

    `student.safetensors` and `student.json`: weights and what they are. `student.pt2`: the same as a program of
    `torch.export` that reads [0, 1] pixels. `synthetic.parquet`: the images with labels and the teacher's logits.
    """
    product = read_product(kept_path(out, record.config_hash))
    student = load_student(product)
    to.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in product.student.items()}
    atomic_write(to / "student.safetensors", save(weights, metadata={"network": product.network}))
    atomic_write(to / "student.json", (json.dumps(_card(product, record), indent=1) + "\n").encode())
    _export_program(student, product, to / "student.pt2")
    written = [
        f"student.safetensors  weights of {product.network}; student.json says what they are",
        "student.pt2          the same for torch.export.load; reads [0, 1] pixels (B, C, H, W), gives logits",
    ]
    samples = product.samples
    if samples is None:
        return [*written, "no synthetic.parquet: this trial remembers no images"]
    pixels = samples.images if product.space == "unit" else _eight_bit(samples.images, product)
    write_images(to / "synthetic.parquet", pixels, samples.labels, logits=samples.logits.float())
    clipped = "" if product.space == "unit" else " (8 bit: what lay outside [0, 1] is clipped)"
    return [*written, f"synthetic.parquet    {len(samples)} images with label and the teacher's logits{clipped}"]


def _eight_bit(images: Tensor, product: Product) -> Tensor:
    return to_unit(images.float(), product.mean, product.std).mul(255).round().clamp(0, 255).to(torch.uint8)


def _export_program(student: nn.Module, product: Product, path: Path) -> None:
    example = torch.rand(2, *product.image_shape)
    batch = torch.export.Dim("batch", min=1)
    module = FromPixels(student, product.mean, product.std).eval()
    program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)


def _card(product: Product, record: Record) -> dict[str, object]:
    """All a reader needs to use the weights, and where they come from."""
    name, value = merit(record)
    return {
        "network": to_tree(models.parse(product.network)),
        "num_classes": product.num_classes,
        "image_shape": list(product.image_shape),
        "mean": list(product.mean),
        "std": list(product.std),
        "chosen_by": {name: value},
        "test_accuracy": record.metrics["student/test_accuracy"],
        **{key: getattr(record, key) for key in ("experiment", "arm", "ipc", "seed", "dataset", "teacher")},
        **{key: getattr(record, key) for key in ("config_hash", "teacher_hash", "data_hash", "versions", "git")},
        "config": record.config,
    }

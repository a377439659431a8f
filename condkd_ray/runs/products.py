"""Writes results of trials beside their records: image grids, the products of the best trials, and feature points.

OUT/grids/...                      image grids of every trial and of every condensed set
OUT/products/<hash>.safetensors    student and synthetic images of the best planned trial of each arm and IPC so far, of
                                   the best trial of a search, and of each trial of `condkd train`
OUT/points/<hash>.safetensors      feature points of the same trials. Only the report reads them, because they contain
                                   features of real training images: see `condkd_ray.report.tensorboard.embeddings`
"""

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from condkd_ray.core.method import InputError
from condkd_ray.core.records import (
    MANIFEST,
    Outcome,
    Record,
    condensed_path,
    grid_path,
    planned,
    read_all_records,
    read_manifest,
)
from condkd_ray.core.samples import Codec, Samples, to_pixels
from condkd_ray.core.storage import Location, take
from condkd_ray.data.palette import coloured
from condkd_ray.methods.inversion import NoInversion
from condkd_ray.models.teacher import Teacher
from condkd_ray.report.figures.image_grids import write_grid
from condkd_ray.report.kept import kept_path, merit
from condkd_ray.report.tensorboard.embeddings import KINDS, Points, points_path, write_points
from condkd_ray.trial.config import Prepared
from condkd_ray.trial.outcome import GRID_PER_CLASS, Product, class_major, product_path, read_product

log = logging.getLogger(__name__)

ALONE = "train"
"""Name of the experiment that consists of a single trial, run without Ray."""
MOST_POINTS = 200
"""Largest number of points of each kind of images; they are spread evenly over the classes."""
PER_STORED_BYTE = 8
"""Bytes on disk for each byte of a points file, which is also written as text in two embeddings."""
_BATCH_PIXELS = 50 * 224 * 224
"""Largest number of pixels of the images that the teacher observes at once, for a small peak of memory (our choice)."""
MASKED = ("condensed images", "their masks")
"""Captions of the rows of a condensed set's grid in segmentation."""


def write_grids(out: Path, record: Record, outcome: Outcome, prepared: Prepared) -> None:
    """Write the image grid of the trial, and the grid of its condensed set unless another trial has written it."""
    if outcome.images is not None and outcome.images_per_class:
        write_grid(grid_path(out, record.config_hash), outcome.images, outcome.images_per_class, outcome.grid_rows)
    path = condensed_path(out, record.condensed_hash)
    # Without an inversion, the grid of the trial already shows the condensed set.
    if prepared.condensed is not None and record.inversion != NoInversion.name and not path.is_file():
        images, per_row, rows = _condensed_grid(prepared.condensed, prepared)
        if images is not None:
            write_grid(path, images, per_row, rows)


def _condensed_grid(shown: Samples, prepared: Prepared) -> tuple[Tensor | None, int, Sequence[str]]:
    """Return the images of a condensed set's grid, their number in each row, and the rows' captions."""
    if shown.labels.ndim == 1:
        return *class_major(shown, prepared), ()
    few = shown[slice(GRID_PER_CLASS)]
    images = to_pixels(few.images, prepared.teacher.mean, prepared.teacher.std)
    return torch.cat([images.expand(-1, 3, -1, -1), coloured(few.labels)]), len(few), MASKED


@torch.no_grad()
def feature_points(prepared: Prepared, product: Product) -> dict[str, Points]:
    """Return the feature points of the kinds of images that the trial has (`real`, `condensed`, `synthetic`), by kind.

    Empty if the features of the real images were not computed (`Prepared.landmarks` is None), and in segmentation,
    where a point would be a pixel.
    """
    marks, samples = prepared.landmarks, product.samples
    if marks is None or marks.real_labels.ndim > 1:
        return {}
    found = {"real": _points(marks.real, marks.real_labels)}
    if marks.condensed is not None and marks.condensed_labels is not None:
        found["condensed"] = _points(marks.condensed, marks.condensed_labels)
    if samples is not None:
        chosen = samples[_rows(samples.labels)]
        teacher = prepared.teacher
        images = Codec(product.space, product.mean, product.std).decode(chosen).images.to(teacher.device)
        batch = max(1, _BATCH_PIXELS // images[0, 0].numel())
        seen = torch.cat([teacher.observe(part, bn=False).features for part in images.split(batch)])
        found["synthetic"] = Points(seen / marks.scale, chosen.labels)
    return found


def most_bytes(teacher: Teacher) -> int:
    """Return the largest size in bytes of the points of one trial, with the embeddings made from them."""
    return PER_STORED_BYTE * 2 * len(KINDS) * MOST_POINTS * teacher.num_features


def _points(features: Tensor, labels: Tensor) -> Points:
    rows = _rows(labels)
    return Points(features[rows], labels[rows])


def _rows(labels: Tensor) -> Tensor:
    """Return the indices of at most `MOST_POINTS` rows, spread evenly over the classes and within each class."""
    order = labels.argsort(stable=True)
    count = min(MOST_POINTS, len(order))
    places = torch.linspace(0, len(order) - 1, count, dtype=torch.float64, device=order.device)
    return order[places.round().long()]


_Group = tuple[str, int, int]


def _group(record: Record) -> _Group:
    """Return the key of the group in which only the best trial's product is kept.

    A group is an arm and IPC, or a whole search, for one version of the numbers. A trial that was run alone is a group
    by itself, because its user ran this trial explicitly.
    """
    if record.experiment == ALONE:
        return record.config_hash, record.ipc, record.numbers
    return ("search", 0, record.numbers) if record.experiment == "search" else (record.arm, record.ipc, record.numbers)


class BestProducts:
    """The products of the best trials under `out` so far: one for each arm and IPC, or one for a search.

    A trial is compared only with trials of the present plan: those in the manifest, and those passed to `update`. The
    product of a trial that is no longer planned is kept until a planned trial of its group is at least as good.

    `storage`: location in which trials write their products; `out` if not given. Raises `InputError` if a record or the
    manifest cannot be read.
    """

    def __init__(self, out: Path, storage: Location | None = None) -> None:
        self._out, self._storage = Path(out), storage or Path(out)
        stored = read_all_records(out)
        self._kept: dict[_Group, dict[str, float]] = defaultdict(dict)
        """Merit of the trials of each group whose products are kept, by hash."""
        for record in stored:
            if kept_path(out, record.config_hash).is_file():
                self._kept[_group(record)][record.config_hash] = merit(record)[1]
        present = planned(stored, read_manifest(out)) if (self._out / MANIFEST).is_file() else stored
        self._planned = {record.config_hash for record in present}

    def update(self, record: Record, prepared: Prepared | None = None) -> None:
        """Keep the product of a finished trial if the trial is the best of its group so far; otherwise delete it.

        If it is kept, the other products of the group are deleted unless they are better, and the feature points of the
        trial, if there are any, are written if `prepared` is given.
        """
        fresh = product_path(self._storage / "trials" / record.config_hash)
        kept = kept_path(self._out, record.config_hash)
        # A kept product without a record was left by a driver that died before it wrote the record.
        if record.status != "finished" or not (fresh.is_file() or kept.is_file()):
            return
        self._planned.add(record.config_hash)
        group, own = self._kept[_group(record)], merit(record)[1]
        if any(other >= own for one, other in group.items() if one in self._planned):
            fresh.unlink(missing_ok=True)
            return
        if fresh.is_file():
            take(fresh, kept)
        try:
            product = read_product(kept)
        except InputError as error:
            # The machine failed while the product was written. Only the record of the trial remains.
            log.info(f"{error}; it is deleted, and the product of the former best trial is kept")
            return kept.unlink(missing_ok=True)
        if prepared is not None and (found := feature_points(prepared, product)):
            write_points(points_path(self._out, record.config_hash), found)
        for worse in [one for one, other in group.items() if one != record.config_hash and other <= own]:
            del group[worse]
            for path in (kept_path, points_path):
                path(self._out, worse).unlink(missing_ok=True)
        group[record.config_hash] = own

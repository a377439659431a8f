"""Results of a trial: its metrics (`Outcome`), and a file with its student and its synthetic images (`Product`)."""

import re
from dataclasses import dataclass, field, replace
from statistics import fmean, pvariance
from typing import Any

import torch
from torch import Tensor

from condkd_ray.core import checkpoint as states
from condkd_ray.core.environment import is_out_of_memory, out_of_memory, peak_bytes
from condkd_ray.core.method import NOT_FINITE, InputError, Metrics, NonFiniteError
from condkd_ray.core.records import Outcome
from condkd_ray.core.samples import Encoded, PixelSpace, Samples, to_pixels
from condkd_ray.core.storage import Location
from condkd_ray.core.task import IOU, SCORES, is_dense
from condkd_ray.methods.memory import Store
from condkd_ray.methods.memory.chunk_table import moved
from condkd_ray.methods.scores import mean_iou, named_iou
from condkd_ray.models.network import label
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.diagnosis import histograms
from condkd_ray.trial.evaluation import dense_confusion, predict
from condkd_ray.trial.grids import synthetic_rows, with_test_rows
from condkd_ray.trial.loop import TrialState
from condkd_ray.trial.subset import in_round
from condkd_ray.trial.synthesis import precision, stored_logits

GRID_PER_CLASS = 8
"""Largest number of example images per class in an outcome."""
DENSE_SAMPLES = 64
"""Newest samples of the memory whose pixels' confidences are recorded in segmentation."""
LAST = ("student/val_accuracy", "student/val_miou", "guidance/accuracy", "guidance/perfect_accuracy")
"""Per-round metrics whose last value is also a metric of the run, besides the prefixes named in `summary`."""
_WHEN = re.compile(r"(before the first round|round \d+|after the last round): ")
"""Start of the failure reason that `broken` writes."""


@dataclass
class _Stored:
    """Fields of an outcome, in the form that `checkpoint.save` writes and `checkpoint.load` reads."""

    fields: dict[str, Any]


def save_outcome(outcome: Outcome, path: Location) -> None:
    """Write `outcome` to `path` atomically."""
    states.save(_Stored(vars(outcome)), path)


def load_outcome(path: Location) -> Outcome:
    """Return the outcome stored at `path`. Raises `DamagedError` if the file is incomplete."""
    return Outcome(**states.load(_Stored({}), path).fields)


def left_outcome(path: Location) -> Outcome | None:
    """Return the outcome that an earlier process left at `path`; None if there is none. A damaged file is deleted."""
    stored = states.load_whole(_Stored({}), path)
    return None if stored is None else Outcome(**stored.fields)


def fatal(error: Exception) -> bool:
    """Return whether the error ends the trial as failed, because a retry would most likely fail in the same way."""
    return isinstance(error, NonFiniteError) or is_out_of_memory(error)


def diverged(outcome: Outcome) -> bool:
    """Return whether the trial failed because of its config, on any machine alike: a loss or metric was not finite.

    Other failures, such as a machine out of memory, have other causes than the config alone.
    """
    return outcome.status == "failed" and NOT_FINITE in outcome.reason and _WHEN.match(outcome.reason) is not None


def broken(error: Exception, device: torch.device, state: TrialState | None = None, total: int = 0) -> Outcome:
    """Return the outcome of a trial of `total` rounds that a `fatal` error ended; no `state`: it ended at its start."""
    why = out_of_memory(error) if is_out_of_memory(error) else str(error)
    return Outcome(
        status="failed",
        reason=f"{_when(state, total)}: {why}",
        history=[] if state is None else state.history,
        peak_bytes=peak_bytes(device),
        threads=torch.get_num_threads(),
    )


def _when(state: TrialState | None, total: int) -> str:
    if state is None:
        return "before the first round"
    return f"round {state.round + 1}" if state.round < total else "after the last round"


def end(config: TrialConfig, prepared: Prepared, state: TrialState, store: Store, logits: Tensor) -> Outcome:
    """Return the metrics of the whole run except the final test; `logits` come from `memory_logits`."""
    rows: list[str] = []
    if is_dense(prepared.teacher.task):
        images, rows, per_class = synthetic_rows(config, prepared, state, store)
    else:
        images, per_class = examples(config, prepared, state, store)
    test_images = 0 if prepared.test is None else len(in_round(prepared.test, config.test_rounds))
    return Outcome(
        status="finished",
        metrics=summary(state.history, test_images),
        history=state.history,
        images=images,
        images_per_class=per_class,
        grid_rows=rows,
        held=_held(config, prepared, state, store, logits),
        peak_bytes=peak_bytes(prepared.teacher.device),
        threads=torch.get_num_threads(),
    )


def tested(untested: Outcome, state: TrialState, prepared: Prepared) -> Outcome:
    """Add the student's predictions and accuracy on the whole test set to the outcome.

    In segmentation: its mean IoU and the IoU of each class.
    """
    assert prepared.test is not None
    if is_dense(prepared.teacher.task):
        counts = dense_confusion(state.distiller.student, prepared.test, prepared.teacher)
        of_class = {f"{IOU}{name}": value for name, value in named_iou(counts, prepared.class_names).items()}
        metrics = untested.metrics | {"student/test_miou": mean_iou(counts).item()} | of_class
        images, rows = with_test_rows(untested, state.distiller.student, prepared.test, prepared.teacher)
        return replace(untested, metrics=metrics, images=images, grid_rows=rows)
    predictions = predict(state.distiller.student, prepared.test, prepared.teacher)
    accuracy = (predictions == prepared.test.labels.cpu()).double().mean().item()
    metrics = untested.metrics | {"student/test_accuracy": accuracy}
    return replace(untested, metrics=metrics, predictions=predictions.tolist())


def _held(
    config: TrialConfig, prepared: Prepared, state: TrialState, store: Store, logits: Tensor
) -> dict[str, list[int]]:
    """Return the histograms of the samples in the memory, in segmentation of their pixels; empty without samples.

    In segmentation the confidences are those of the newest `DENSE_SAMPLES`.
    """
    teacher, ids = prepared.teacher, config.memory.live(state.memory)
    if not is_dense(teacher.task):
        return histograms(logits) if len(logits) else {}
    if not len(ids):
        return {}
    with precision(config, teacher.device), torch.no_grad():
        newest = store.gather(ids[-DENSE_SAMPLES:]).images.to(teacher.device)
        found = [histograms(per_pixel(teacher.batched_logits(part))) for part in newest.split(8)]
    bins = [sum(counts) for counts in zip(*(one["confidence"] for one in found), strict=True)]
    return {"class": store.class_counts.tolist(), "confidence": bins}


def per_pixel(logits: Tensor) -> Tensor:
    """Return logits (B, K, H, W) as rows (B x H x W, K)."""
    return logits.movedim(1, -1).flatten(0, -2)


def summary(history: list[Metrics], test_images: int) -> Metrics:
    """Summarise per-round metrics: last values, sums of `time/` and `pool/`, statistics of the test scores.

    The values `student/test_accuracy_*`, or `student/test_miou_*`, are mean, variance and best over the rounds with a
    measured test score; `student/forgetting` is the best minus the last. `test_images` is the number of test images in
    each measurement. The `pool/` metrics count images that the trial made for other trials or took from them.
    """
    last: Metrics = {}
    for metrics in history:
        last |= metrics
    kept = {k: v for k, v in last.items() if k.startswith(("proxy/", "memory/", "diagnosis/")) or k in LAST}
    summed = {k for k in last if k.startswith(("time/", "pool/"))}
    scores = [f"student/test_{score}" for score in SCORES.values()]
    found = [(name, metrics[name]) for metrics in history for name in scores if name in metrics]
    measured = [value for _, value in found]
    kept |= {name: sum(metrics.get(name, 0.0) for metrics in history) for name in sorted(summed)}
    if not measured:
        return kept
    name = found[0][0]
    return kept | {
        f"{name}_mean": fmean(measured),
        f"{name}_variance": pvariance(measured),
        f"{name}_best": max(measured),
        "student/forgetting": max(measured) - measured[-1],
        "student/test_rounds": len(measured),
        "student/test_images": float(test_images),
    }


def examples(config: TrialConfig, prepared: Prepared, state: TrialState, store: Store) -> tuple[Tensor | None, int]:
    """Return the newest images of each class as uint8 and their number per class; (None, 0) if a class has none.

    The images are synthetic, or condensed if the trial makes none; see `class_major`.
    """
    ids = config.memory.live(state.memory)[-64 * prepared.teacher.num_classes :]
    shown = store.gather(ids) if len(ids) else prepared.condensed
    return (None, 0) if shown is None else class_major(shown, prepared)


def class_major(shown: Samples, prepared: Prepared) -> tuple[Tensor | None, int]:
    """Return the last images of each class as uint8, sorted by class, and their number per class.

    The number is equal for all classes and at most `GRID_PER_CLASS`. Returns (None, 0) if a class has no images.
    """
    rows = [(shown.labels == c).nonzero().squeeze(1)[-GRID_PER_CLASS:] for c in range(prepared.teacher.num_classes)]
    per_class = min(len(found) for found in rows)
    if per_class == 0:
        return None, 0
    images = shown.images[torch.cat([found[:per_class] for found in rows])]
    return to_pixels(images, prepared.teacher.mean, prepared.teacher.std).cpu(), per_class


def memory_logits(config: TrialConfig, prepared: Prepared, state: TrialState, store: Store) -> Tensor:
    """Return the teacher's logits (N, K), float16 on the CPU, of all samples that the memory may still draw.

    Stored logits are returned as they are. If none are stored, they are computed now and rounded in the same way. In
    segmentation, where they would take more memory than the images, N is 0.
    """
    ids, teacher = config.memory.live(state.memory), prepared.teacher
    found = [torch.zeros(0, teacher.num_classes, dtype=torch.float16)]
    if is_dense(teacher.task):
        return found[0]
    with precision(config, teacher.device):
        for part in ids.split(4096) if len(ids) else ():
            samples = store.gather(part)
            logits = samples.logits if samples.has_logits else stored_logits(teacher, samples.images.to(teacher.device))
            found.append(logits.half().cpu())
    return torch.cat(found)


def product_path(folder: Location) -> Location:
    """Return the path of a trial's product in the trial's own `folder`."""
    return folder / "product.safetensors"


@dataclass
class Product:
    """Student and synthetic images in the memory of a trial, in one file for other programs.

    The file is self-contained: reading it requires neither the teacher nor the data set.
    """

    student: dict[str, Tensor] = field(default_factory=dict)
    """State dict of the student."""
    network: str = ""
    """Architecture of the student, in the form that `models.parse` reads."""
    num_classes: int = 0
    image_shape: tuple[int, int, int] = (0, 0, 0)
    """(C, H, W)."""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    """Mean and standard deviation of the normalisation, one value per channel, in units of [0, 1] pixels."""
    space: PixelSpace = "unit"
    """Encoding of `images`: uint8 of [0, 1] pixels, or float16 in the normalised space."""
    images: Tensor | None = None
    """(N, C, H, W); None if the memory holds no images."""
    labels: Tensor | None = None
    """(N,) int64; in segmentation (N, H, W) int16, the teacher's prediction of each pixel."""
    logits: Tensor | None = None
    """(N, K) float16, the teacher's logits of exactly these images; in segmentation none."""

    @property
    def samples(self) -> Encoded | None:
        """The synthetic set in its encoded form; None if the memory held no images."""
        if self.images is None or self.labels is None:
            return None
        none = torch.zeros(len(self.labels), 0, dtype=torch.float16)
        return Encoded(self.images, self.labels, none if self.logits is None else self.logits)


def read_product(path: Location) -> Product:
    """Read a product file. Raises `InputError` if it is missing or damaged."""
    try:
        return states.load(Product(), path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"product is {str(path)!r}, which cannot be read ({error}); accepted: the product of a kept trial"
        ) from None


def make_product(config: TrialConfig, prepared: Prepared, state: TrialState, store: Store, logits: Tensor) -> Product:
    """Return the current student, and the memory's samples as the store encodes them, with the `memory_logits`."""
    teacher, ids = prepared.teacher, config.memory.live(state.memory)
    # Moved to the CPU part by part: a GPU may have no room for a second copy of all samples.
    parts = [moved(store.codec.encode(store.gather(part)), "cpu") for part in ids.split(4096)] if len(ids) else []
    columns = zip(*((part.images, part.labels) for part in parts), strict=True)
    images, labels = (torch.cat(column) for column in columns) if parts else (None, None)
    weights = {k: v.detach().cpu().contiguous() for k, v in state.distiller.student.state_dict().items()}
    return Product(
        student=weights,
        network=label(config.student),
        num_classes=teacher.num_classes,
        image_shape=teacher.image_shape,
        mean=teacher.mean,
        std=teacher.std,
        space=store.codec.space,
        images=images,
        labels=labels,
        logits=logits if len(logits) else None,
    )

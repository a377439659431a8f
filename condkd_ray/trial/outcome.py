"""What comes of a trial: its figures, a file until they are a record, and its product, a student and its images."""

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
from condkd_ray.methods.memory import Store
from condkd_ray.methods.memory.chunk_table import moved
from condkd_ray.models.network import label
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.diagnosis import histograms
from condkd_ray.trial.evaluation import predict
from condkd_ray.trial.loop import TrialState
from condkd_ray.trial.subset import in_round
from condkd_ray.trial.synthesis import answers, precision

GRID_PER_CLASS = 8
LAST = ("student/val_accuracy", "guidance/accuracy", "guidance/perfect_accuracy")
"""Figures of a round, beside whole families, whose last value is a figure of the run."""
_WHEN = re.compile(r"(before the first round|round \d+|after the last round): ")
"""How the reason of a trial begins that a `fatal` error has ended."""


@dataclass
class _Stored:
    """An outcome's fields, as `state` saves and loads them."""

    fields: dict[str, Any]


def save_outcome(outcome: Outcome, path: Location) -> None:
    """Write `outcome` to `path`, atomically."""
    states.save(_Stored(vars(outcome)), path)


def load_outcome(path: Location) -> Outcome:
    """The outcome in the file at `path`. Raises `DamagedError` where that is not whole."""
    return Outcome(**states.load(_Stored({}), path).fields)


def left_outcome(path: Location) -> Outcome | None:
    """What an earlier process may have left there; None where nothing is, or what is damaged, which is deleted."""
    stored = states.load_whole(_Stored({}), path)
    return None if stored is None else Outcome(**stored.fields)


def fatal(error: Exception) -> bool:
    """Whether it ends a trial as failed: tried again, that would most likely come to the same."""
    return isinstance(error, NonFiniteError) or is_out_of_memory(error)


def diverged(outcome: Outcome) -> bool:
    """Whether it failed by what its config says, on any machine alike: by a loss or figure that was not finite.

    Any other failure, such as a machine out of memory, says nothing of the config.
    """
    return outcome.status == "failed" and NOT_FINITE in outcome.reason and _WHEN.match(outcome.reason) is not None


def broken(error: Exception, device: torch.device, state: TrialState | None = None, total: int = 0) -> Outcome:
    """The outcome of a trial of `total` rounds that a `fatal` error has ended, in this state if it had one."""
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
    """The figures of the whole run but those of the final test; `logits` are the `remembered_logits`."""
    images, per_class = examples(config, prepared, state, store)
    test_images = 0 if prepared.test is None else len(in_round(prepared.test, config.test_rounds))
    return Outcome(
        status="finished",
        metrics=summary(state.history, test_images),
        history=state.history,
        images=images,
        images_per_class=per_class,
        held=histograms(logits) if len(logits) else {},
        peak_bytes=peak_bytes(prepared.teacher.device),
        threads=torch.get_num_threads(),
    )


def tested(untested: Outcome, state: TrialState, prepared: Prepared) -> Outcome:
    """The student on the whole test set, once."""
    assert prepared.test is not None
    predictions = predict(state.distiller.student, prepared.test, prepared.teacher)
    accuracy = (predictions == prepared.test.labels.cpu()).double().mean().item()
    metrics = untested.metrics | {"student/test_accuracy": accuracy}
    return replace(untested, metrics=metrics, predictions=predictions.tolist())


def summary(history: list[Metrics], test_images: int) -> Metrics:
    """A run's figures from its rounds: last values, sums of times; mean, variance and best of those that were tested.

    `test_images`: how many test images were measured in each of those. Of `pool/`, what a trial made for others and
    took of them, sums too. `student/forgetting` is how far the last tested round is below the best.
    """
    last: Metrics = {}
    for metrics in history:
        last |= metrics
    kept = {k: v for k, v in last.items() if k.startswith(("proxy/", "memory/", "diagnosis/")) or k in LAST}
    summed = {k for k in last if k.startswith(("time/", "pool/"))}
    measured = [m["student/test_accuracy"] for m in history if "student/test_accuracy" in m]
    kept |= {name: sum(metrics.get(name, 0.0) for metrics in history) for name in sorted(summed)}
    if not measured:
        return kept
    return kept | {
        "student/test_accuracy_mean": fmean(measured),
        "student/test_accuracy_variance": pvariance(measured),
        "student/test_accuracy_best": max(measured),
        "student/forgetting": max(measured) - measured[-1],
        "student/test_rounds": len(measured),
        "student/test_images": float(test_images),
    }


def examples(config: TrialConfig, prepared: Prepared, state: TrialState, store: Store) -> tuple[Tensor | None, int]:
    """Some of the newest images of each class, as uint8: synthetic ones, or condensed where none are made."""
    ids = config.memory.live(state.memory)[-64 * prepared.teacher.num_classes :]
    shown = store.gather(ids) if len(ids) else prepared.condensed
    return (None, 0) if shown is None else class_major(shown, prepared)


def class_major(shown: Samples, prepared: Prepared) -> tuple[Tensor | None, int]:
    """The last few images of each class, as uint8, equally many of each; none where a class has none."""
    rows = [(shown.labels == c).nonzero().squeeze(1)[-GRID_PER_CLASS:] for c in range(prepared.teacher.num_classes)]
    per_class = min(len(found) for found in rows)
    if per_class == 0:
        return None, 0
    images = shown.images[torch.cat([found[:per_class] for found in rows])]
    return to_pixels(images, prepared.teacher.mean, prepared.teacher.std).cpu(), per_class


def remembered_logits(config: TrialConfig, prepared: Prepared, state: TrialState, store: Store) -> Tensor:
    """(N, K) float16 on the CPU: the teacher's logits of what the memory may still draw from the store.

    As they are stored; where they are not, the teacher is asked now, and its answers rounded alike.
    """
    ids, teacher = config.memory.live(state.memory), prepared.teacher
    found = [torch.zeros(0, teacher.num_classes, dtype=torch.float16)]
    with precision(config, teacher.device):
        for part in ids.split(4096) if len(ids) else ():
            samples = store.gather(part)
            logits = samples.logits if samples.asked else answers(teacher, samples.images.to(teacher.device))
            found.append(logits.half().cpu())
    return torch.cat(found)


def product_path(folder: Location) -> Location:
    """Where a trial leaves its product, in a `folder` of its own."""
    return folder / "product.safetensors"


@dataclass
class Product:
    """What a trial makes for others to use: its student, and the synthetic images it remembers. One file a trial.

    It says by itself what it is: a reader needs neither the teacher nor the data set it was made from.
    """

    student: dict[str, Tensor] = field(default_factory=dict)
    """The student's state dict."""
    network: str = ""
    """Its architecture, as `models.parse` reads it."""
    num_classes: int = 0
    image_shape: tuple[int, int, int] = (0, 0, 0)
    """(C, H, W)."""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    """Of the normalisation, a channel, in units of [0, 1] pixels."""
    space: PixelSpace = "unit"
    """How `images` are held: uint8 of [0, 1] pixels, or float16 in the normalised space."""
    images: Tensor | None = None
    """(N, C, H, W); None where the trial remembers no images."""
    labels: Tensor | None = None
    """(N,) int64."""
    logits: Tensor | None = None
    """(N, K) float16, the teacher's on just these images."""

    @property
    def samples(self) -> Encoded | None:
        """The synthetic set as it is kept."""
        if self.images is None or self.labels is None or self.logits is None:
            return None
        return Encoded(self.images, self.labels, self.logits)


def read_product(path: Location) -> Product:
    """Raises `InputError` where there is none."""
    try:
        return states.load(Product(), path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"product is {str(path)!r}, which cannot be read ({error}); accepted: that of a kept trial"
        ) from None


def make_product(config: TrialConfig, prepared: Prepared, state: TrialState, store: Store, logits: Tensor) -> Product:
    """The student as it stands, and what the memory refers to as the store keeps it, with the `remembered_logits`."""
    teacher, ids = prepared.teacher, config.memory.live(state.memory)
    # To the CPU one by one: a GPU may have no room for all of them once more.
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
        logits=logits if parts else None,
    )

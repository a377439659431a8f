"""`condkd export`: write the best student and its synthetic images in formats that do not require this package."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from safetensors.torch import save
from torch import Tensor, nn

from condkd_ray import models
from condkd_ray.commands.console.exit_codes import show
from condkd_ray.core.config import to_tree
from condkd_ray.core.method import require
from condkd_ray.core.records import Record, read_manifest
from condkd_ray.core.samples import to_pixels
from condkd_ray.core.storage import atomic_write
from condkd_ray.core.task import is_dense
from condkd_ray.data.writers import VOID, write_images, write_masks
from condkd_ray.report.kept import choose, kept_path, load_student, merit
from condkd_ray.report.statistics import score_of
from condkd_ray.trial.outcome import Product, read_product

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Export:
    """Write the best student and its synthetic images in formats that do not require this package.

    The best student has the highest score (accuracy or mean IoU) on the validation images or, without these, the
    highest agreement with the teacher on the proxy set. The test score is never used, and the reference trained on all
    real images is excluded. An experiment keeps the best trial of each arm and IPC.
    """

    out: tyro.conf.Positional[Path]
    """The `--out` of an experiment or of `condkd train`."""
    trial: str | None = None
    """The hash of another kept trial, or the beginning of its hash."""
    to: Path = Path("export")
    """A new or empty folder."""


def export_best(command: Export) -> int:
    """Run `condkd export`; return 0.

    Raises `InputError` if `out` is not a folder of results, if the trial is not kept, or if `to` is not empty.
    """
    record = choose(command.out, command.trial)
    empty = not command.to.exists() or (command.to.is_dir() and not any(command.to.iterdir()))
    require(empty, "--to", str(command.to), "a new or empty folder")
    name, value = merit(record)
    ipc = f" ipc {record.ipc}" if record.ipc else ""
    log.info(f"trial {record.config_hash[:12]}, {record.arm}{ipc} seed {record.seed}: {name} {value:.2%}")
    for line in export(command.out, record, command.to):
        show(f"{command.to / line}")
    return 0


class FromPixels(nn.Module):
    """A student with its normalisation: reads pixels in [0, 1], shape (B, C, H, W).

    So a caller can neither forget to normalise the pixels nor do it twice.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, student: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.student = student
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits, shape (B, K) or, in segmentation, (B, K, H, W)."""
        return self.student((pixels - self.mean) / self.std)


def export(out: Path, record: Record, to: Path) -> list[str]:
    """Write the student and the synthetic images of a trial to the folder `to`; return one line of text per file.

    `student.safetensors` and `student.json`: the weights and their description. `student.pt2`: the student as a
    program of `torch.export` that reads pixels in [0, 1]. `synthetic.parquet`: images, labels and teacher's logits, or
    images and masks in segmentation; not written if the trial's memory has no images. Raises `InputError` if the
    trial's product is missing or damaged, or if its network is defined by a plug-in that is not installed.
    """
    product = read_product(kept_path(out, record.config_hash))
    student = load_student(product, record)
    to.mkdir(parents=True, exist_ok=True)
    names = read_manifest(out).dataset.get("class_names", ())
    weights = {name: tensor.contiguous() for name, tensor in product.student.items()}
    atomic_write(to / "student.safetensors", save(weights, metadata={"network": product.network}))
    atomic_write(to / "student.json", (json.dumps(model_card(product, record, names), indent=1) + "\n").encode())
    program = torch.export.export(
        FromPixels(student, product.mean, product.std).eval(),
        (torch.rand(2, *product.image_shape),),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
    )
    torch.export.save(program, to / "student.pt2")
    dense, shape = is_dense(score_of([record]).task), f"(B, {', '.join(map(str, product.image_shape))})"
    logits = "logits (B, K, H, W)" if dense else "logits"
    written = [
        f"student.safetensors  weights of {product.network}; student.json describes them",
        f"student.pt2          the same for torch.export.load; reads [0, 1] pixels {shape}, returns {logits}",
    ]
    samples, unit = product.samples, product.space == "unit"
    if samples is None:
        return [*written, "no synthetic.parquet: this trial has no images in memory"]
    pixels = samples.images if unit else to_pixels(samples.images.float(), product.mean, product.std)
    if dense:
        write_masks(to / "synthetic.parquet", pixels, samples.labels, names=names)
        content = f"masks: the class that the teacher predicts for each pixel, {VOID} for none"
    else:
        write_images(to / "synthetic.parquet", pixels, samples.labels, logits=samples.logits.float())
        content = "labels and the teacher's logits"
    clipped = "" if unit else " (8 bit: values outside [0, 1] are clipped)"
    return [*written, f"synthetic.parquet    {len(samples)} images with {content}{clipped}"]


def model_card(product: Product, record: Record, class_names: Sequence[str] = ()) -> dict[str, object]:
    """Return the card of the weights: the data that a program needs to use them, and how they were made.

    `class_names`: names of the classes, which the card of a segmentation states.
    """
    name, value = merit(record)
    score = score_of([record])
    return {
        "network": to_tree(models.parse(product.network)),
        "num_classes": product.num_classes,
        "image_shape": list(product.image_shape),
        "mean": list(product.mean),
        "std": list(product.std),
        "chosen_by": {name: value},
        score.key("test"): record.metrics[score.test],
        **({"task": score.task, "class_names": list(class_names)} if is_dense(score.task) else {}),
        **{key: getattr(record, key) for key in ("experiment", "arm", "ipc", "seed", "dataset", "teacher")},
        **{key: getattr(record, key) for key in ("config_hash", "teacher_hash", "data_hash", "versions", "git")},
        **({"plugins": record.plugins} if record.plugins else {}),
        "config": record.config,
    }

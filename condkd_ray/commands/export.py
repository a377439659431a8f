"""`condkd export`: the best student and its synthetic images, in forms that need nothing of this package."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from safetensors.torch import save
from torch import Tensor, nn

from condkd_ray import models
from condkd_ray.core.config import to_tree
from condkd_ray.core.method import require
from condkd_ray.core.records import Record
from condkd_ray.core.samples import to_pixels
from condkd_ray.core.storage import atomic_write
from condkd_ray.data.writers import write_images
from condkd_ray.report.kept import choose, kept_path, load_student, merit
from condkd_ray.trial.outcome import Product, read_product

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Export:
    """Write the best student and its synthetic images in forms that need nothing of this package.

    The best by validation accuracy, or by agreement on the proxy set where there is none; never by test accuracy, and
    not the reference that was taught with all real images. An experiment keeps the best trial of each arm and IPC.
    """

    out: tyro.conf.Positional[Path]
    """The `--out` of an experiment or of `condkd train`."""
    trial: str | None = None
    """The (beginning of the) hash of another kept trial."""
    to: Path = Path("export")
    """A new or empty folder."""


def export_best(command: Export) -> int:
    """`condkd export`."""
    record = choose(command.out, command.trial)
    empty = not command.to.exists() or (command.to.is_dir() and not any(command.to.iterdir()))
    require(empty, "--to", str(command.to), "a new or empty folder")
    name, value = merit(record)
    ipc = f" ipc {record.ipc}" if record.ipc else ""
    log.info(f"trial {record.config_hash[:12]}, {record.arm}{ipc} seed {record.seed}: {name} {value:.2%}")
    for line in export(command.out, record, command.to):
        print(f"{command.to / line}")
    return 0


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
    atomic_write(to / "student.json", (json.dumps(card_of(product, record), indent=1) + "\n").encode())
    program = torch.export.export(
        FromPixels(student, product.mean, product.std).eval(),
        (torch.rand(2, *product.image_shape),),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
    )
    torch.export.save(program, to / "student.pt2")
    written = [
        f"student.safetensors  weights of {product.network}; student.json says what they are",
        "student.pt2          the same for torch.export.load; reads [0, 1] pixels (B, C, H, W), gives logits",
    ]
    samples, unit = product.samples, product.space == "unit"
    if samples is None:
        return [*written, "no synthetic.parquet: this trial remembers no images"]
    pixels = samples.images if unit else to_pixels(samples.images.float(), product.mean, product.std)
    write_images(to / "synthetic.parquet", pixels, samples.labels, logits=samples.logits.float())
    clipped = "" if unit else " (8 bit: what lay outside [0, 1] is clipped)"
    return [*written, f"synthetic.parquet    {len(samples)} images with label and the teacher's logits{clipped}"]


def card_of(product: Product, record: Record) -> dict[str, object]:
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

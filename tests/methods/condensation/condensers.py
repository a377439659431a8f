"""Small real data, and a common call of all condensers on it."""

from pathlib import Path
from typing import Any

import torch
from data.image_files import write_parquet

from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples, to_model, unseen
from condkd_ray.methods.condensation import (
    AnyCondensation,
    DistributionMatching,
    GradientMatching,
    Herding,
    Imported,
    RandomReal,
    SqueezeRecover,
    TrajectoryMatching,
)
from condkd_ray.models import ResNet

NUM_CLASSES = 4
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
COUNTS = (20, 31, 25, 40)


def real_pixels(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return uint8 images (N, 3, 8, 8) and labels: a noisy pattern for each class, unequal counts, mixed order."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(NUM_CLASSES).repeat_interleave(torch.tensor(COUNTS))
    labels = labels[torch.randperm(len(labels), generator=rng)]
    patterns = torch.rand(NUM_CLASSES, 3, 8, 8, generator=torch.Generator().manual_seed(7))
    images = 0.5 * patterns[labels] + 0.5 * torch.rand(len(labels), 3, 8, 8, generator=rng)
    return images.mul(255).round().to(torch.uint8), labels


def real_samples(seed: int = 0) -> Samples:
    pixels, labels = real_pixels(seed)
    return unseen(to_model(pixels / 255, MEAN, STD), labels)


def condense(method: AnyCondensation, seed: int = 0, **changes: Any) -> Samples:
    options = {"num_classes": NUM_CLASSES, "mean": MEAN, "std": STD, "flip_ok": True, "rng": Streams(seed)} | changes
    return method.condense(real_samples(), **options)


def nested_methods(ipc: int, folder: Path) -> list[AnyCondensation]:
    """Return one of each condenser whose sets are nested over ipc."""
    path = folder / "set.parquet"
    if not path.exists():
        write_parquet(path, *real_pixels())
    return [
        RandomReal(ipc=ipc),
        DistributionMatching(ipc=ipc, iterations=3, width=4),
        Herding(ipc=ipc, epochs=1, width=4),
        GradientMatching(ipc=ipc, iterations=2, outer=2, inner=1, real_batch=4, width=4),
        TrajectoryMatching(ipc=ipc, iterations=2, experts=1, expert_epochs=2, max_start=0, steps=2, width=4),
        SqueezeRecover(ipc=ipc, network=ResNet(width=2), epochs=1, iterations=2),
        Imported(path=path, ipc=ipc),
    ]

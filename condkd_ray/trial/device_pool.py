"""Limit on the GPU memory for a trial's samples: the flag `--device-pool-limit` and the smallest accepted value.

The default is a quarter of the trial's share of the GPU; see `methods.memory.device_rows`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from condkd_ray.core.method import require
from condkd_ray.core.task import is_dense

if TYPE_CHECKING:
    from condkd_ray.data.datasets import Dataset
    from condkd_ray.trial.config import TrialConfig

FLAG = "--device-pool-limit"


def round_bytes(config: TrialConfig, image_shape: tuple[int, int, int], num_classes: int, *, logits: bool) -> int:
    """Return the bytes of a round's images (C, H, W) with their labels, and with `logits` or without, in a store."""
    width = 1 if config.inversion.pixel_space == "unit" else 2
    pixels = math.prod(image_shape[1:]) if is_dense(config.data.task) else 1
    label = 2 * pixels if is_dense(config.data.task) else 8
    row = width * math.prod(image_shape) + label + (2 * num_classes * pixels if logits else 0)
    return config.inversion.images_per_round * row


def check_round_fits(limit: int | None, config: TrialConfig, dataset: Dataset) -> None:
    """Raise `InputError` if `limit` bytes on a GPU cannot hold one round of the trial's images."""
    if limit is not None:
        least = round_bytes(config, dataset.image_shape, dataset.num_classes, logits=config.keeps_logits)
        accepted = f"at least the {least} bytes of a round's {config.inversion.images_per_round} images"
        require(limit >= least, FLAG, f"{limit} bytes", accepted)


def check_on_gpu(given: str | None, on_gpu: bool, accepted: str) -> None:
    """Raise `InputError` if a limit is `given` (the text as typed) for trials that run on a CPU."""
    require(given is None or on_gpu, f"{FLAG} for a trial on a CPU", given, accepted)

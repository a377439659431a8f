"""A data set: `read` returns all images, and the base class splits, resizes and normalises them."""

from dataclasses import dataclass
from typing import Literal

import torch

from condkd_ray.core.method import require
from condkd_ray.data import DataSource, Found, Raw

CLASSES = ("top left", "top right", "bottom left", "bottom right")


@dataclass(frozen=True, kw_only=True)
class Blobs(DataSource):
    """Grey images of 8 x 8 pixels with a bright blob in one corner, which is the class."""

    name: Literal["blobs"] = "blobs"
    flip_ok: bool | None = False
    """A mirrored blob is in another corner."""
    count: int = 400
    """Number of train images; a quarter of it is the number of test images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.count >= 40, "data.count", self.count, "40 or more")

    def read(self) -> Found:
        """Return train and test images; a real data set reads them from `self.root`."""
        return Found(_draw(self.count, seed=1), _draw(self.count // 4, seed=2))


def _draw(count: int, seed: int) -> Raw:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(CLASSES)
    centres = 2 + 3 * torch.stack([labels // 2, labels % 2], 1) + 0.7 * torch.randn(count, 2, generator=rng)
    grid = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij"), -1)
    distance = (grid - centres.view(-1, 1, 1, 2)).square().sum(-1)
    pixels = 0.7 * torch.exp(-distance / 3) + 0.3 * torch.rand(count, 8, 8, generator=rng)
    return Raw(pixels.mul(255).to(torch.uint8).unsqueeze(1), labels, CLASSES)

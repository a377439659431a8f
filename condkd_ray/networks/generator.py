"""The image generator of DAFL, CMI and Fast: a linear layer and two times upsampling.

Letters: B batch, Z latent size, C channels, H W height and width. Source: `methods.md` 6.1, `peers.md` A.1.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn


class Generator(nn.Module):
    """Latents (B, Z) to images (B, C, H, W).

    `head="sigmoid"`: [0, 1] pixels, to be normalised afterwards (CMI, Fast). `head="tanh_bn"`: images in the model's
    space, Tanh then BN without affine (DAFL). Sides need not be multiples of 4: the last upsampling meets them.
    `eps` of the inner BN layers; DAFL's code has 0.8.
    """

    def __init__(
        self,
        latent: int,
        width: int,
        image_shape: tuple[int, int, int],
        *,
        head: Literal["sigmoid", "tanh_bn"] = "sigmoid",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        channels, height, wide = image_shape
        self._sizes = [(-(-height // k), -(-wide // k)) for k in (4, 2, 1)]
        self._width = width
        rows, columns = self._sizes[0]
        half = max(width // 2, 1)
        self.linear = nn.Linear(latent, width * rows * columns)
        self.start = nn.BatchNorm2d(width)
        self.middle = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width, eps=eps), nn.LeakyReLU(0.2)
        )
        self.end = nn.Sequential(
            nn.Conv2d(width, half, 3, padding=1, bias=False),
            nn.BatchNorm2d(half, eps=eps),
            nn.LeakyReLU(0.2),
            nn.Conv2d(half, channels, 3, padding=1),
        )
        self.head = (
            nn.Sigmoid() if head == "sigmoid" else nn.Sequential(nn.Tanh(), nn.BatchNorm2d(channels, affine=False))
        )

    def forward(self, latents: Tensor) -> Tensor:
        """(B, Z) to (B, C, H, W)."""
        x = self.linear(latents).view(len(latents), self._width, *self._sizes[0])
        x = self.middle(F.interpolate(self.start(x), size=self._sizes[1]))
        x = self.end(F.interpolate(x, size=self._sizes[2]))
        return self.head(x.float())

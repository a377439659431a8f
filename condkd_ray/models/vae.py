"""PRE-DFKD's memory network: an encoder of images, and as decoder DAFL's generator without spectral norm.

Letters: B batch, C channels, H W height and width, Z latent size. Source: `methods.md` 2.2.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from condkd_ray.models.generator import Generator, initialise

SMALLEST = 6
"""The shortest side that leaves a pixel after the encoder's three halvings."""


class Encoder(nn.Module):
    """Images (B, C, H, W), H and W at least `SMALLEST`, to mean and log variance of their latents, each (B, Z).

    Three halvings: nearest, a strided convolution, nearest. `width` channels after the second convolution (128 in the
    official code), half as many before. `eps` is that of the first two BN layers.
    """

    def __init__(self, latent: int, width: int, image_shape: tuple[int, int, int], *, eps: float = 0.8) -> None:
        super().__init__()
        channels, *sides = image_shape
        half = max(width // 2, 1)
        self._half = [side // 2 for side in sides]
        self._eighth = [(side + 1) // 2 // 2 for side in self._half]
        self.start = nn.Sequential(
            *(nn.Conv2d(channels, half, 3, padding=1), nn.BatchNorm2d(half, eps=eps), nn.LeakyReLU(0.2)),
            *(nn.Conv2d(half, width, 3, padding=1), nn.BatchNorm2d(width, eps=eps), nn.LeakyReLU(0.2)),
        )
        self.end = nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width))
        features = width * self._eighth[0] * self._eighth[1]
        self.mean = nn.Linear(features, latent)
        self.log_var = nn.Linear(features, latent)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) to (B, Z) twice, float32 also under autocast. Each image column first gets unit length."""
        x = self.start(F.normalize(images, dim=2))
        x = self.end(F.interpolate(x, size=self._half))
        x = F.interpolate(x, size=self._eighth).flatten(1)
        return self.mean(x).float(), self.log_var(x).float()


def vae(latent: int, width: int, image_shape: tuple[int, int, int]) -> tuple[Encoder, Generator]:
    """Encoder and decoder, weights U(-0.08, 0.08) and biases 0 as officially; images are in the model's space."""
    encoder = Encoder(latent, width, image_shape)
    decoder = Generator(latent, width, image_shape, head="tanh_bn", eps=0.8, init="uniform")
    initialise(encoder, "uniform")
    return encoder, decoder

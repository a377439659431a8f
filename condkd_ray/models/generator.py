"""Image generator of DAFL, ZSKT, DFAD, DFQ, CMI, Fast and PRE-DFKD: a linear layer and two upsamplings or more.

Also PRE-DFKD's memory network: an encoder of images, and DAFL's generator without spectral norm as its decoder. Source:
the released code of these methods. Letters: B batch, Z latent size, C channels, H W height and width.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from condkd_ray.core.method import require

Head = Literal["sigmoid", "tanh_bn", "bn"]
Init = Literal["default", "normal", "uniform"]
SMALLEST = 6
"""Shortest image side, in pixels, that leaves one position after the encoder's three halvings."""


class UpsampledConv(nn.Conv2d):
    """Nearest upsampling from `before` (H, W) to `after`, then a 3x3 convolution without bias.

    If both sides double, upsampling and convolution are computed as one transposed 4x4 convolution of stride 2 with the
    same weights, at 4/9 of the multiply-adds: neighbouring upsampled pixels are equal, so that their taps add up.
    """

    def __init__(self, inputs: int, outputs: int, before: tuple[int, int], after: tuple[int, int]) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=False)
        self._after = after
        self.taps = 4 if after == (2 * before[0], 2 * before[1]) else 9
        """Multiply-adds per output pixel and pair of input and output channels."""

    def forward(self, input: Tensor) -> Tensor:
        """Return maps (B, outputs, *after) of (B, inputs, *before)."""
        if self.taps == 9:
            return super().forward(F.interpolate(input, size=self._after))
        weight = summed_taps(summed_taps(self.weight, 2), 3)
        return F.conv_transpose2d(input, weight.transpose(0, 1), stride=2, padding=1)


def summed_taps(weight: Tensor, dim: int) -> Tensor:
    """Return the four taps of the transposed convolution, from the three taps of a convolution after upsampling."""
    first, middle, last = weight.unbind(dim)
    return torch.stack([last, middle + last, first + middle, first], dim)


class ConvToImage(nn.Conv2d):
    """3x3 convolution to a few channels, computed as a transposed convolution with mirrored taps; the result is equal.

    On a CPU the gradients of an ordinary convolution to 3 channels take two and a half times as long.
    """

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__(inputs, channels, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """Return images (B, channels, H, W) of maps (B, inputs, H, W)."""
        return F.conv_transpose2d(input, self.weight.transpose(0, 1).flip(2, 3), self.bias, padding=1)


class Generator(nn.Module):
    """Maps latents (B, Z) to images (B, C, H, W).

    `head="sigmoid"`: pixels in [0, 1], to be normalised afterwards (CMI, Fast). `head="tanh_bn"`: images in the model's
    space, Tanh then BN without affine (DAFL, DFAD, DFQ, PRE-DFKD). `head="bn"`: the same space, BN with affine and no
    Tanh (ZSKT). Image sides need not be multiples of 4: the last upsampling interpolates to the exact sides. `eps`: of
    the BN layers after the upsamplings; 0.8 in DAFL's code. `spectral`: convolutions have spectral norm 1
    (PRE-DFKD). `init`: `default` is PyTorch's; `normal` draws weights from N(0, 0.02) and BN weights from N(1, 0.02)
    (CMI); `uniform` draws weights of linear layer and convolutions from U(-0.08, 0.08) (PRE-DFKD); both set biases to
    0.

    `upsamplings`: with 2 the maps have `width`, `width` and `width` / 2 channels. With more, for images of 64 pixels
    and above, they are those of DFAD's generator for segmentation (`GeneratorB` of its code, where width / 2 is `ngf`):
    `width` / 2 channels at the last two resolutions, twice as many at each coarser one; with 4 upsamplings and width
    128 they are 512, 256, 128, 64 and 64. Its transposed 4x4 convolutions are `UpsampledConv` here (our choice).
    Raises `InputError` for fewer than 2.
    """

    def __init__(
        self,
        latent: int,
        width: int,
        image_shape: tuple[int, int, int],
        *,
        head: Head = "sigmoid",
        eps: float = 1e-5,
        spectral: bool = False,
        init: Init = "default",
        upsamplings: int = 2,
    ) -> None:
        super().__init__()
        require(upsamplings >= 2, "upsamplings of a generator", upsamplings, "2 or more")
        channels, height, wide = image_shape
        half = max(width // 2, 1)
        self.sizes = [(-(-height // 2**k), -(-wide // 2**k)) for k in range(upsamplings, -1, -1)]
        """Height and width of the maps, coarse to fine; the last are those of the image."""
        self.channels = [width, width, half]
        """Channels of the maps, coarse to fine."""
        if upsamplings > 2:
            self.channels = [half * 2 ** max(k - 1, 0) for k in range(upsamplings, -1, -1)]
        rows, columns = self.sizes[0]
        self.linear = nn.Linear(latent, self.channels[0] * rows * columns)
        self.start = nn.BatchNorm2d(self.channels[0])
        blocks = [self._block(index, eps) for index in range(upsamplings)]
        self.middle = nn.Sequential(*(layer for block in blocks[:-1] for layer in block))
        self.end = nn.Sequential(*blocks[-1], ConvToImage(half, channels))
        self.head = _head(head, channels)
        initialise(self, init)
        if spectral:
            for layer in [layer for layer in self.modules() if isinstance(layer, nn.Conv2d)]:
                spectral_norm(layer)

    def _block(self, index: int, eps: float) -> list[nn.Module]:
        """Return the layers from the map `index` to the next finer one."""
        inputs, outputs = self.channels[index : index + 2]
        convolution = UpsampledConv(inputs, outputs, *self.sizes[index : index + 2])
        return [convolution, nn.BatchNorm2d(outputs, eps=eps), nn.LeakyReLU(0.2, inplace=True)]

    def coarsest(self, latents: Tensor) -> Tensor:
        """Return the coarsest map (B, channels[0], *sizes[0]) of latents (B, Z)."""
        x = self.linear(latents).view(len(latents), self.channels[0], *self.sizes[0])
        return self.start(x.contiguous(memory_format=torch.channels_last))

    def forward(self, latents: Tensor) -> Tensor:
        """Return images (B, C, H, W) of latents (B, Z)."""
        return self.head(self.end(self.middle(self.coarsest(latents))).float())


class LabelledGenerator(nn.Module):
    """Maps latents (B, Z) and labels (B,) to images (B, C, H, W): a `Generator` of the latent and the one-hot label.

    Our choice. The one-hot vector has length sqrt(Z), the length of a latent; at length 1 hundreds of latent
    dimensions would outweigh it.
    """

    def __init__(
        self, latent: int, width: int, image_shape: tuple[int, int, int], num_classes: int, **form: Any
    ) -> None:
        super().__init__()
        self.body = Generator(latent + num_classes, width, image_shape, **form)
        self._classes, self._length = num_classes, latent**0.5

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Return images (B, C, H, W) of latents (B, Z) and labels (B,)."""
        classes = torch.arange(self._classes, device=labels.device)
        return self.body(torch.cat([latents, self._length * (labels[:, None] == classes).to(latents)], 1))


class LayoutGenerator(nn.Module):
    """Maps latents (B, Z) and labels per pixel (B, H, W) to images (B, C, H, W): a `Generator` that is told the layout.

    Our choice. The one-hot layout is average-pooled to the size of each map, and a 1x1 convolution of it is added to
    the map, the finest included, so that the generator can place classes. These weights start from N(0, 1): a class
    then has the variance of the batch-normalised map. A pixel without a class (`UNLABELLED`) adds nothing.
    """

    def __init__(
        self, latent: int, width: int, image_shape: tuple[int, int, int], num_classes: int, **form: Any
    ) -> None:
        super().__init__()
        self.body = Generator(latent, width, image_shape, **form)
        self.placed = nn.ModuleList(nn.Conv2d(num_classes, outputs, 1, bias=False) for outputs in self.body.channels)
        for layer in self.placed:
            nn.init.normal_(layer.weight)  # type: ignore[arg-type]
        self._classes = num_classes

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Return images (B, C, H, W) of latents (B, Z) and labels (B, H, W)."""
        classes = torch.arange(self._classes, device=labels.device)[:, None, None]
        layout = (labels[:, None] == classes).to(latents).contiguous(memory_format=torch.channels_last)
        x = self.body.coarsest(latents)
        added = zip(self.placed, self.body.sizes, strict=True)
        for layer in (*self.body.middle, *self.body.end):
            if isinstance(layer, nn.Conv2d):
                place, size = next(added)
                x = x + place(F.adaptive_avg_pool2d(layout, size))
            x = layer(x)
        return self.body.head(x.float())


def _head(head: Head, channels: int) -> nn.Module:
    if head == "sigmoid":
        return nn.Sigmoid()
    if head == "bn":
        return nn.BatchNorm2d(channels)
    return nn.Sequential(nn.Tanh(), nn.BatchNorm2d(channels, affine=False))


def initialise(network: nn.Module, init: Init) -> None:
    """Draw weights from N(0, 0.02) (`normal`) or U(-0.08, 0.08) (`uniform`), biases 0; `default` changes nothing."""
    if init == "default":
        return
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            if init == "normal":
                nn.init.normal_(layer.weight, 0.0, 0.02)
            else:
                nn.init.uniform_(layer.weight, -0.08, 0.08)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif init == "normal" and isinstance(layer, nn.BatchNorm2d) and layer.affine:
            nn.init.normal_(layer.weight, 1.0, 0.02)


class Encoder(nn.Module):
    """Maps images (B, C, H, W) to mean and log variance of their latents, each (B, Z). H and W are at least `SMALLEST`.

    Three halvings: nearest, a strided convolution, nearest. `width`: channels after the second convolution (128 in
    PRE-DFKD's code); the first has half as many. `eps`: of the first two BN layers.
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
        """Return mean and log variance, each (B, Z), of images (B, C, H, W); float32 also under autocast.

        Each column of an image is first scaled to length 1.
        """
        x = self.start(F.normalize(images, dim=2))
        x = self.end(F.interpolate(x, size=self._half))
        x = F.interpolate(x, size=self._eighth).flatten(1)
        return self.mean(x).float(), self.log_var(x).float()


def vae(latent: int, width: int, image_shape: tuple[int, int, int]) -> tuple[Encoder, Generator]:
    """Return encoder and decoder, weights from U(-0.08, 0.08) and biases 0 as in PRE-DFKD's code.

    Images are in the model's space.
    """
    encoder = Encoder(latent, width, image_shape)
    decoder = Generator(latent, width, image_shape, head="tanh_bn", eps=0.8, init="uniform")
    initialise(encoder, "uniform")
    return encoder, decoder

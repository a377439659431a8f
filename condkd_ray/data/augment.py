"""Differentiable augmentation of image batches from a random stream: shift, roll, flip, resized crop, cutout, DSA.

All draws are vectorised. They are per image, except the draws of `roll_flip` and the group that `dsa` draws for a whole
batch. A shift fills with black in every space: 0 in [0, 1] pixels, `Teacher.black` in the teacher's. Only the DSA
family shifts in zeros, as in the released code of DSA. In segmentation the labels are one more channel, which shifts,
rolls and flips move along; new positions have no label.

Source of the DSA family and its parameters: Zhao & Bilen, "Dataset Condensation with Differentiable Siamese
Augmentation", ICML 2021, and the authors' released code (github.com/VICO-UoE/DatasetCondensation).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from condkd_ray.core.method import require
from condkd_ray.core.samples import UNLABELLED

BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
CROP_SHARE, CUTOUT_SHARE, SCALE, DEGREES = 0.125, 0.5, 1.2, 15.0


def with_labels(images: Tensor, labels: Tensor) -> Tensor:
    """Return (B, C + 1, H, W): images (B, C, H, W), and their labels (B, H, W) as one more channel that moves along."""
    return torch.cat([images, labels[:, None].to(images.dtype)], 1)


def split_labels(both: Tensor) -> tuple[Tensor, Tensor]:
    """Return the images (B, C, H, W) and int64 labels (B, H, W) of `with_labels` after a shift, a roll or a flip."""
    return both[:, :-1], both[:, -1].long()


def black_of(black: Tensor, images: Tensor) -> Tensor:
    """Return the fill value (1, channels of `images`, 1, 1): `black` (1, C, 1, 1), and no label for a label channel."""
    more = images.shape[1] - black.shape[1]
    return F.pad(black.to(images), (0, 0, 0, 0, 0, more), value=UNLABELLED) if more else black.to(images)


def pixels(share: float, side: int) -> int:
    """Return the largest shift in pixels for a `share` of `side`: 0 for 0, otherwise rounded and at least 1."""
    return max(1, round(share * side)) if share else 0


def require_shift(share: float, what: str) -> None:
    """Raise `InputError` unless `share` is between 0 and 1."""
    require(0 <= share <= 1, what, share, "0 to 1, a share of the side")


def shift_flip(images: Tensor, *, rng: torch.Generator, share: float, flip: bool, black: Tensor | float) -> Tensor:
    """Shift each image (B, C, H, W) by up to `share` of its sides and mirror it with probability 1/2 if `flip`.

    This is the usual "pad, crop, flip" augmentation. `black` is the fill value: a number, or a tensor that broadcasts
    to the images, such as `Teacher.black` (1, C, 1, 1). A share above 0 shifts by up to `pixels`, at least 1, of the
    height up and down and of the width left and right. The number of draws does not depend on `flip`.
    """
    count, _, height, width = images.shape
    moves = [_whole(pixels(share, side), count, rng, images.device)[:, None] for side in (height, width)]
    mirrored = torch.rand(count, generator=rng, device=images.device) < 0.5
    rows = torch.arange(height, device=images.device) + moves[0]
    columns = torch.arange(width, device=images.device) + moves[1]
    if flip:
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    return _gather(images, rows, columns, black)


def roll_flip(images: Tensor, *, rng: torch.Generator, share: float, flip: bool) -> Tensor:
    """Roll the batch (B, C, H, W) by one offset of up to `share` of its sides, and mirror it with p 1/2 if `flip`.

    Pixels that leave at one edge enter at the opposite one, so no value is invented. All images share one pair of
    offsets and one random bit, drawn without a wait for the device. Range of the offsets and number of draws: as in
    `shift_flip`.
    """
    height, width = images.shape[2:]
    down, right = (_whole(pixels(share, side), 1, rng, images.device) for side in (height, width))
    mirrored = torch.rand(1, generator=rng, device=images.device) < 0.5
    rows = (torch.arange(height, device=images.device) - down) % height
    columns = (torch.arange(width, device=images.device) - right) % width
    if flip:
        columns = torch.where(mirrored, columns.flip(0), columns)
    # Not `torch.roll`, which needs offsets on the CPU. In channels-last order whole pixels are copied.
    return images.permute(0, 2, 3, 1).index_select(1, rows).index_select(2, columns).permute(0, 3, 1, 2)


def cutout(images: Tensor, *, rng: torch.Generator, share: float) -> Tensor:
    """Set a square of `share` of the sides to zero at a random place of each image (B, C, H, W), clipped at the edges.

    In normalised images a zero is the mean (DeVries and Taylor, arXiv 1708.04552).
    """
    uniform = torch.rand(2, len(images), generator=rng, device=images.device)
    return images * ~_square(images, uniform, share)


def _whole(reach: int, count: int, rng: torch.Generator, device: torch.device) -> Tensor:
    """Return (count,) integers, uniform in -reach..reach."""
    return torch.randint(-reach, reach + 1, (count,), generator=rng, device=device)


def resized_crop(
    images: Tensor, *, rng: torch.Generator, scale: tuple[float, float] = (0.25, 1.0), flip: bool
) -> Tensor:
    """Crop a part of each image (B, C, H, W), resize it to H x W (bilinear), and mirror it with p 1/2 if `flip`.

    The area of the part is uniform in `scale`, as a fraction of the image, and its width over height log-uniform in
    (3/4, 4/3), before sides longer than the image are clipped (torchvision draws again instead). The number of draws
    does not depend on `flip`.
    """
    uniform = torch.rand(5, len(images), generator=rng, device=images.device)
    area = scale[0] + (scale[1] - scale[0]) * uniform[0]
    ratio = ((2 * uniform[1] - 1) * math.log(4 / 3)).exp()
    sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()]).clamp(max=1.0)
    centres = (2 * uniform[2:4] - 1) * (1 - sides)
    matrices = images.new_zeros(len(images), 2, 3)
    matrices[:, 0, 0], matrices[:, 1, 1] = sides[0], sides[1]
    matrices[:, :, 2] = centres.T
    if flip:
        matrices[:, 0, 0] *= torch.where(uniform[4] < 0.5, -1.0, 1.0)
    # Padding "border": otherwise the outermost half pixel of a crop at the edge would fade to black.
    return _warp(images, matrices, padding="border")


def _gather(images: Tensor, rows: Tensor, columns: Tensor, black: Tensor | float) -> Tensor:
    """Return the pixels at `rows` (B, H) x `columns` (B, W), and `black` if either is outside the image."""
    count, channels, height, width = images.shape
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    first = torch.arange(0, count * height * width, height * width, device=images.device)[:, None]
    pixel_rows = (first + rows.clamp(0, height - 1) * width)[:, :, None] + columns.clamp(0, width - 1)[:, None, :]
    # In channels-last order whole pixels are copied. One combined index is cheaper than three.
    taken = images.permute(0, 2, 3, 1).reshape(-1, channels).index_select(0, pixel_rows.flatten())
    return torch.where(inside[:, None], taken.view(count, height, width, channels).permute(0, 3, 1, 2), black)


def dsa(images: Tensor, *, rng: torch.Generator, choice: torch.Generator, flip: bool, siamese: bool = False) -> Tensor:
    """Apply one randomly chosen group of the DSA family (color, crop, cutout, flip, scale, rotate) to the whole batch.

    `choice` draws the group, on the CPU; `rng` draws the parameters, on the images' device. `siamese`: all images get
    the parameters of the first, as condensation requires; otherwise each has its own. `flip` False excludes the flip
    (for digits). Differentiable in `images` (B, C, H, W). Padding and cutout are zeros in any normalisation, because
    DSA's code pads its normalised images with zeros.
    """
    groups: list[Callable[[Tensor, Tensor], Tensor]] = [_color, _crop, _cutout, _scale, _rotate]
    if flip:
        groups.append(_flip)
    group = int(torch.randint(len(groups), (1,), generator=choice))
    count = 1 if siamese else len(images)
    uniform = torch.rand(3, count, generator=rng, device=images.device)
    return groups[group](images, uniform.expand(3, len(images)))


def _color(images: Tensor, u: Tensor) -> Tensor:
    shape = (-1, 1, 1, 1)
    images = images + (u[0].view(shape) - 0.5) * BRIGHTNESS
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * (u[1].view(shape) * SATURATION) + grey
    level = images.mean((1, 2, 3), keepdim=True)
    return (images - level) * (u[2].view(shape) + CONTRAST) + level


def _offsets(u: Tensor, reach: int) -> Tensor:
    """Return integers in -reach..reach for uniform `u` in [0, 1)."""
    return (u * (2 * reach + 1)).floor().long().clamp(max=2 * reach) - reach


def _crop(images: Tensor, u: Tensor) -> Tensor:
    """Shift as in the released DSA code, with zeros of the normalised space as padding instead of black."""
    height, width = images.shape[2:]
    down, right = int(height * CROP_SHARE + 0.5), int(width * CROP_SHARE + 0.5)
    rows = torch.arange(height, device=images.device) + _offsets(u[0], down)[:, None]
    columns = torch.arange(width, device=images.device) + _offsets(u[1], right)[:, None]
    return _gather(images, rows, columns, 0.0)


def _cutout(images: Tensor, u: Tensor) -> Tensor:
    return images * ~_square(images, u, CUTOUT_SHARE)


def _square(images: Tensor, u: Tensor, share: float) -> Tensor:
    """Return a mask (B, 1, H, W): a square of `share` of the sides with a centre drawn by `u`, clipped at the edges."""

    def hidden(size: int, centre: Tensor) -> Tensor:
        side = int(size * share + 0.5)
        # An even side has one more position, so that both edges are covered equally often.
        starts = size + 1 - side % 2
        start = (centre * starts).floor().clamp(max=starts - 1)[:, None] - side // 2
        position = torch.arange(size, device=images.device)
        return (position >= start) & (position < start + side)

    height, width = images.shape[2:]
    return hidden(height, u[0])[:, None, :, None] & hidden(width, u[1])[:, None, None, :]


def _flip(images: Tensor, u: Tensor) -> Tensor:
    return torch.where((u[0] < 0.5).view(-1, 1, 1, 1), images.flip(3), images)


def _warp(images: Tensor, matrices: Tensor, padding: str = "zeros") -> Tensor:
    # align_corners=False: corners are pixel edges, so scale and rotation do not depend on the resolution.
    grid = F.affine_grid(matrices.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False, padding_mode=padding)


def _scale(images: Tensor, u: Tensor) -> Tensor:
    factors = u[:2] * (SCALE - 1 / SCALE) + 1 / SCALE
    return _warp(images, F.pad(torch.diag_embed(factors.T), (0, 1)))


def _rotate(images: Tensor, u: Tensor) -> Tensor:
    angle = (u[0] - 0.5) * 2 * torch.pi * DEGREES / 180
    rows = [angle.cos(), angle.sin().neg(), angle.sin(), angle.cos()]
    return _warp(images, F.pad(torch.stack(rows, 1).view(-1, 2, 2), (0, 1)))

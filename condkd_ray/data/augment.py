"""Differentiable augmentation of image batches, drawn from a stream: shift, roll, flip, resized crop, the DSA family.

All draws are vectorised, and per image except in `roll_flip`. What a shift moves in is black in every space: 0 in
[0, 1] pixels, `Teacher.black` in the teacher's. Only the DSA family moves in zeros, as its released code does.
Parameters of the DSA family: `peers.md` B.5 (Zhao & Bilen's DSA).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from condkd_ray.core.method import require

BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
CROP_SHARE, CUTOUT_SHARE, SCALE, DEGREES = 0.125, 0.5, 1.2, 15.0


def pixels(share: float, side: int) -> int:
    """The largest move in pixels along `side` for a `share` of it: 0 for 0, otherwise rounded and at least 1."""
    return max(1, round(share * side)) if share else 0


def require_shift(share: float, what: str) -> None:
    """Raise `InputError` unless `share` is a share of the side."""
    require(0 <= share <= 1, what, share, "0 to 1, a share of the side")


def shift_flip(images: Tensor, *, rng: torch.Generator, share: float, flip: bool, black: Tensor | float) -> Tensor:
    """Move each image by up to `share` of its sides both ways and mirror it with p 1/2 if `flip`.

    The usual "pad, crop, flip" of the field, (B, C, H, W) to (B, C, H, W). `black` is what moves in: a number, or a
    tensor that broadcasts to the images, such as `Teacher.black` (1, C, 1, 1). A share above 0 moves by up to `pixels`,
    at least 1, of the height up and down and of the width left and right. Draws the same numbers whether or not `flip`
    is set.
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
    """Roll the whole batch by one offset of up to `share` of its sides both ways, and mirror it with p 1/2 if `flip`.

    (B, C, H, W) to (B, C, H, W). What leaves at one edge comes in at the other, so no value is invented. One pair of
    offsets and one coin for all images, drawn without a host sync. The offsets' reach and the draws: as `shift_flip`.
    """
    height, width = images.shape[2:]
    down, right = (_whole(pixels(share, side), 1, rng, images.device) for side in (height, width))
    mirrored = torch.rand(1, generator=rng, device=images.device) < 0.5
    rows = (torch.arange(height, device=images.device) - down) % height
    columns = (torch.arange(width, device=images.device) - right) % width
    if flip:
        columns = torch.where(mirrored, columns.flip(0), columns)
    # Not `torch.roll`, which wants its offsets on the host. Channels last: whole pixels are copied.
    return images.permute(0, 2, 3, 1).index_select(1, rows).index_select(2, columns).permute(0, 3, 1, 2)


def cutout(images: Tensor, *, rng: torch.Generator, share: float) -> Tensor:
    """Zeros in one square of `share` of the sides of each image, at a random place and cut at the image's edges.

    (B, C, H, W) to (B, C, H, W). In normalised images a zero is the mean (DeVries and Taylor, arXiv 1708.04552).
    """
    uniform = torch.rand(2, len(images), generator=rng, device=images.device)
    return images * ~_square(images, uniform, share)


def _whole(reach: int, count: int, rng: torch.Generator, device: torch.device) -> Tensor:
    """(count,) integers -reach..reach, uniform."""
    return torch.randint(-reach, reach + 1, (count,), generator=rng, device=device)


def resized_crop(
    images: Tensor, *, rng: torch.Generator, scale: tuple[float, float] = (0.25, 1.0), flip: bool
) -> Tensor:
    """A part of each image, blown up to its size (bilinear) and mirrored with p 1/2 if `flip`.

    The part has a share of the area uniform in `scale` and width over height log-uniform in (3/4, 4/3), both before
    a side that would be longer than the image's is cut to it (torchvision draws again). (B, C, H, W) to (B, C, H, W).
    Draws the same numbers whether or not `flip` is set.
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
    # "border": the outermost half pixel of a crop at the edge must not fade to black.
    return _warp(images, matrices, padding="border")


def _gather(images: Tensor, rows: Tensor, columns: Tensor, black: Tensor | float) -> Tensor:
    """Pixels at `rows` (B, H) x `columns` (B, W); `black` where either lies outside."""
    count, channels, height, width = images.shape
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    first = torch.arange(0, count * height * width, height * width, device=images.device)[:, None]
    places = (first + rows.clamp(0, height - 1) * width)[:, :, None] + columns.clamp(0, width - 1)[:, None, :]
    # Channels last: whole pixels are moved. By one index, which is cheaper than three.
    taken = images.permute(0, 2, 3, 1).reshape(-1, channels).index_select(0, places.flatten())
    return torch.where(inside[:, None], taken.view(count, height, width, channels).permute(0, 3, 1, 2), black)


def dsa(images: Tensor, *, rng: torch.Generator, choice: torch.Generator, flip: bool, siamese: bool = False) -> Tensor:
    """One randomly chosen group of the DSA family (color, crop, cutout, flip, scale, rotate) on the whole batch.

    `choice` draws the group, on the CPU; `rng` the parameters, on the images' device. `siamese`: every image gets the
    parameters of the first, as condensation wants it; otherwise each its own.
    `flip` False leaves the mirror out (digits). Differentiable in `images`. Zeros come in from outside and under the
    cutout, whatever the normalisation: the released code pads its normalised images with zeros (`peers.md` B.5).
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
    """Integers -reach..reach, uniform."""
    return (u * (2 * reach + 1)).floor().long().clamp(max=2 * reach) - reach


def _crop(images: Tensor, u: Tensor) -> Tensor:
    """Moved as in the released DSA code: zeros of the normalised space come in, not black."""
    height, width = images.shape[2:]
    down, right = int(height * CROP_SHARE + 0.5), int(width * CROP_SHARE + 0.5)
    rows = torch.arange(height, device=images.device) + _offsets(u[0], down)[:, None]
    columns = torch.arange(width, device=images.device) + _offsets(u[1], right)[:, None]
    return _gather(images, rows, columns, 0.0)


def _cutout(images: Tensor, u: Tensor) -> Tensor:
    return images * ~_square(images, u, CUTOUT_SHARE)


def _square(images: Tensor, u: Tensor, share: float) -> Tensor:
    """(B, 1, H, W) bool: a square of `share` of the sides round a place that `u` draws, cut at the image's edges."""

    def hidden(size: int, centre: Tensor) -> Tensor:
        side = int(size * share + 0.5)
        # An even side has one place more, so that both edges are hidden equally often.
        places = size + 1 - side % 2
        start = (centre * places).floor().clamp(max=places - 1)[:, None] - side // 2
        place = torch.arange(size, device=images.device)
        return (place >= start) & (place < start + side)

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

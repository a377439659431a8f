"""Artificial scenes for segmentation: coloured shapes in front of a sky and a textured ground, drawn from a seed.

They need no files, and a small network learns them within minutes on one core. Discs and squares have the same
colours, and so have triangles and crosses, so a network must recognise shapes. All arithmetic is in integers on the
CPU, so the images do not depend on the machine or the number of threads.
"""

import torch
from torch import Tensor

from condkd_ray.core.method import require
from condkd_ray.core.rng import derive_seed
from condkd_ray.core.samples import MASK, UNLABELLED
from condkd_ray.data.readers.images import Raw, Size, sides_of

CLASSES = ("sky", "ground", "disc", "square", "triangle", "cross")
COUNTS = {"train": 400, "val": 100, "test": 200}
"""Number of images of each split."""
DEFAULT_SIZE = (32, 48)
SMALLEST = 16
"""Smallest side, in pixels, at which the shapes can be told apart."""
SHAPES = 5
"""Most shapes of an image; each is present with a probability of 3/4."""
SUB = 16
"""Units of a pixel in which positions and radii are drawn."""
WARM, COLD = ((215, 120, 60), (70, 110, 190))
"""Mean colours of discs and squares, and of triangles and crosses."""
SKY, GROUND = ((150, 185, 225), (115, 120, 75))
JITTER = 45
"""Largest deviation of a shape's colour from its mean, per channel."""
BATCH = 100
"""Number of images drawn at a time."""


def draw_scenes(split: str, size: Size | None, seed: int) -> Raw:
    """Return the scenes of a split, "train", "val" or "test": RGB images, and masks with a void border round shapes.

    `size` is by default 32 x 48 pixels (height x width). The images are drawn at this size, not resized. Raises
    `InputError` for sides of less than 16 pixels.
    """
    sides = sides_of(DEFAULT_SIZE if size is None else size)
    require(min(sides) >= SMALLEST, "data.size of scenes", size, f"sides of {SMALLEST} pixels or more")
    rng = torch.Generator().manual_seed(derive_seed(seed, f"scenes/{split}"))
    counts = [min(BATCH, COUNTS[split] - start) for start in range(0, COUNTS[split], BATCH)]
    parts = [_drawn(count, sides, rng) for count in counts]
    pixels, masks = (torch.cat(part) for part in zip(*parts, strict=True))
    return Raw(pixels, masks, CLASSES)


def _drawn(count: int, sides: tuple[int, int], rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return images (N, 3, H, W) uint8 and masks (N, H, W) of the classes."""
    height, width = sides
    short = min(sides)
    rows, columns = torch.arange(height).view(1, -1, 1) * SUB, torch.arange(width).view(1, 1, -1) * SUB

    def drawn(low: int, high: int, *shape: int) -> Tensor:
        """Return integers from `low` to `high`, one or more per image."""
        return torch.randint(low, high + 1, (count, *shape), generator=rng, dtype=torch.int32)

    def texture(cell: int, contrast: int, channels: int) -> Tensor:
        """Return random patches (N, channels, H, W) of `cell` x `cell` pixels."""
        patches = drawn(-contrast, contrast, channels, -(-height // cell), -(-width // cell))
        return patches.repeat_interleave(cell, 2).repeat_interleave(cell, 3)[:, :, :height, :width]

    # The horizon is a line of random height and slope.
    horizon = drawn(height * SUB // 4, height * SUB * 6 // 10, 1, 1) + drawn(-4, 4, 1, 1) * (columns - width * 8) // 16
    below = rows >= horizon
    mask = below.to(MASK)
    sky = _colour(SKY, drawn(-25, 25, 3)) - rows[:, None] * 40 // (height * SUB)
    ground = _colour(GROUND, drawn(-30, 30, 3)) + texture(max(2, short // 6), 30, 3)
    ground = ground + texture(max(1, short // 16), 20, 1)
    image = torch.where(below[:, None], ground, sky)
    for _ in range(SHAPES):
        kind, present = drawn(0, 3, 1, 1), drawn(0, 3, 1, 1) > 0
        radius = drawn(short * SUB // 9, short * SUB // 4, 1, 1)
        across = (columns - drawn(0, width * SUB, 1, 1)).expand(count, height, width)
        down = (rows - drawn(0, height * SUB, 1, 1)).expand(count, height, width)
        beyond = _beyond(kind, across, down, radius)
        inside, border = present & (beyond <= 0), present & (beyond > 0) & (beyond <= SUB)
        warm = (kind < 2)[:, None].expand(-1, 3, -1, -1)
        fill = torch.where(warm, _colour(WARM), _colour(COLD)) + drawn(-JITTER, JITTER, 3, 1, 1)
        image = torch.where(inside[:, None], fill, torch.where(border[:, None], (image + fill) // 2, image))
        mask = torch.where(inside, (kind + 2).to(MASK), mask).masked_fill(border, UNLABELLED)
    light = drawn(70, 150, 1, 1, 1)
    image = image * light // 128 + drawn(-15, 15, 3, 1, 1) + drawn(-18, 18, 3, height, width)
    return image.clamp(0, 255).to(torch.uint8), mask


def _colour(mean: tuple[int, ...], offset: Tensor | None = None) -> Tensor:
    """Return colours (1 or N, 3, 1, 1): `mean` plus the `offset` (N, 3) of each image."""
    colour = torch.tensor(mean, dtype=torch.int32).view(1, 3, 1, 1)
    return colour if offset is None else colour + offset[:, :, None, None]


def _beyond(kind: Tensor, across: Tensor, down: Tensor, radius: Tensor) -> Tensor:
    """Return how far each pixel (N, H, W) is outside of the image's shape, in units of 1/16 pixel; 0 or less inside.

    `kind` (N, 1, 1): 0 disc, 1 square, 2 triangle, 3 cross. `across`, `down`: the pixel's position from the centre.
    """
    wide, high = across.abs(), down.abs()
    far, near = torch.maximum(wide, high), torch.minimum(wide, high)
    # Squares of distances need no root, which is not an integer: 0 is inside, 1 in the border, more outside of it.
    distance = across.square() + down.square()
    disc = (distance > radius.square()) * 1 + (distance > (radius + SUB).square()) * SUB
    side = radius * 7 // 8
    triangle = torch.maximum(down - side, (2 * wide - down - radius) * 4 // 9)  # 4 / 9 is about 1 / sqrt(5)
    cross = torch.maximum(far - radius, near - radius * 3 // 8)
    shapes = torch.stack([disc, far - side, triangle, cross], 1)
    return shapes.gather(1, kind.long()[:, None].expand(-1, 1, *across.shape[1:])).squeeze(1)

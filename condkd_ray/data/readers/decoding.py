"""Image files to pixels."""

import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from condkd_ray.core.method import InputError, require
from condkd_ray.data.readers.images import resize

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF")  # named, as some of Pillow's others start programs
GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("RGB", "RGBA", "P", "CMYK", "YCbCr")

Source = tuple[str, bytes | Path]
"""An image as it lies: what to call it in a message, and its bytes or file."""

BATCH_ROWS = 1000


def decode_all(sources: Iterator[Source], size: int | None) -> Tensor:
    """uint8 (N, C, H, W): C is 1 where all images are grey, else 3.

    With `size` all are resized to size x size, a batch at a time. Raises `InputError` where an image cannot be read,
    or where images differ in size and no `size` is given.
    """
    batches: list[Tensor] = []
    sides: tuple[int, ...] = ()
    while listed := list(islice(sources, BATCH_ROWS)):
        images = [_decode(what, source) for what, source in listed]
        sides = sides or tuple(images[0].shape[1:])
        for (what, _), image in zip(listed, images, strict=True):
            accepted = f"{sides} as the first, or give a size"
            fits = size is not None or image.shape[1:] == sides
            require(fits, f"height and width of {what}", tuple(image.shape[1:]), accepted)
        batches.append(_join(images, size))
    require(bool(batches), "number of images", 0, "at least 1")
    channels = max(batch.shape[1] for batch in batches)
    return torch.cat([batch.expand(-1, channels, -1, -1) for batch in batches]).contiguous()


def _join(images: list[Tensor], size: int | None) -> Tensor:
    channels = max(image.shape[0] for image in images)
    images = [image.expand(channels, -1, -1) for image in images]
    if size is None:
        return torch.stack(images)
    if len({image.shape for image in images}) > 1:
        return torch.cat([resize(image[None], size) for image in images])
    return resize(torch.stack(images), size)


def _decode(what: str, source: bytes | Path) -> Tensor:
    """(C, H, W) uint8: one channel of a grey image, three of any other; transparency is dropped."""
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=FORMATS) as image:
            accepted = "8 bits a channel: " + ", ".join(GREY_MODES + COLOUR_MODES)
            require(image.mode in GREY_MODES + COLOUR_MODES, f"mode of {what}", image.mode, accepted)
            mode = "L" if image.mode in GREY_MODES else "RGB"
            pixels = np.array(image if image.mode == mode else image.convert(mode))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read {what}: {error}") from error
    return torch.from_numpy(pixels)[None] if pixels.ndim == 2 else torch.from_numpy(pixels).permute(2, 0, 1)

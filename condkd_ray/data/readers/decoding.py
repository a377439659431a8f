"""Image files to pixels, as a viewer shows them: upright, and on a ground where they are transparent."""

import io
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from condkd_ray.core.method import InputError, require
from condkd_ray.data.readers.images import Ground, resize

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")  # named, as some of Pillow's others start programs
DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
GREY_MODES = ("1", "L", "LA", *DEEP_MODES)
COLOUR_MODES = ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr")
MOST = 65_535
"""Of a grey value of 16 bits, which becomes 255."""

Source = tuple[str, bytes | Path]
"""An image as it lies: what to call it in a message, and its bytes or file."""

BATCH_ROWS, BATCH_BYTES = 1000, 2**28
BRIGHT = 0.75
"""Mean grey from which on what is visible of transparent images would hardly be seen on white (our choice)."""
DEEP = "of 16 bits a channel"
TRANSPARENT = "partly transparent"
UNSEEN = "transparent everywhere"
SEVERAL = "of several frames"
BAD_EXIF = "with an EXIF block that cannot be read"
TOLD = {
    DEEP: "read as 8 bits, 65 535 as 255",
    UNSEEN: "their colours are read as they lie, without alpha",
    SEVERAL: "the first is read",
    BAD_EXIF: "read as they lie, not turned",
}
"""What is done with such images."""


@dataclass(frozen=True)
class Decoded:
    """`pixels` uint8 (N, C, H, W), the ground that transparent ones lie on, and a sentence on each thing to be told."""

    pixels: Tensor
    ground: Ground | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Image:
    """One image over black (C, H, W) uint8, how much of the ground is seen (1, H, W) or None, and what it is."""

    name: str
    pixels: Tensor
    clear: Tensor | None
    kinds: tuple[str, ...]


@dataclass
class _Seen:
    """What the images of a set are, summed over its batches."""

    kinds: Counter[str] = field(default_factory=Counter)
    light: int = 0
    """Sum of the grey values of what is visible of transparent images, over black."""
    visible: int = 0
    """Sum of their alphas, likewise of 0 to 255."""

    def add(self, images: list[_Image], pixels: Tensor, clear: Tensor | None) -> None:
        for image in images:
            self.kinds.update(image.kinds)
        if clear is not None:
            rows = (clear > 0).flatten(1).any(1)
            self.light += int(pixels[rows].sum()) // pixels.shape[1]
            self.visible += int((255 - clear[rows]).sum())

    def ground(self) -> Ground:
        return "black" if self.light > BRIGHT * self.visible else "white"


def decode_all(sources: Iterator[Source], size: int | None, what: str, ground: Ground | None = None) -> Decoded:
    """The images of the set `what`; C is 1 where all are grey, else 3.

    They are turned as their EXIF says. Transparent ones are laid on `ground`, all on the same: if it is None on white,
    and on black where what is visible of them is brighter than `BRIGHT` in the mean. Grey values of 16 bits are scaled.
    With `size` all are resized to size x size, a batch at a time. Raises `InputError` where an image cannot be read,
    or where images differ in size and no `size` is given.
    """
    batches: list[tuple[Tensor, Tensor | None]] = []
    sides: tuple[int, ...] = ()
    seen = _Seen()
    while images := _batch(sources):
        sides = sides or tuple(images[0].pixels.shape[1:])
        for image in images:
            accepted = f"{sides} as the first, or give a size"
            shape = tuple(image.pixels.shape[1:])
            require(size is not None or shape == sides, f"height and width of {image.name}", shape, accepted)
        batches.append((_join([image.pixels for image in images], size), _clear(images, size)))
        seen.add(images, *batches[-1])
    require(bool(batches), f"number of images in {what}", 0, "at least 1")
    channels = max(pixels.shape[1] for pixels, _ in batches)
    transparent = any(clear is not None for _, clear in batches)
    ground = (ground or seen.ground()) if transparent else None
    laid = [_laid(pixels, clear, ground).expand(-1, channels, -1, -1) for pixels, clear in batches]
    blank = sum(_blank(image, clear) for image, (_, clear) in zip(laid, batches, strict=True))
    return Decoded(torch.cat(laid).contiguous(), ground, tuple(_notes(seen, ground, blank, what)))


def _batch(sources: Iterator[Source]) -> list[_Image]:
    """The next images, as many as are decoded before they are resized: a photo may take 40 MB."""
    images: list[_Image] = []
    size = 0
    # Pillow warns of odd metadata and of half a bomb; what it cannot read it raises.
    with warnings.catch_warnings(action="ignore"):
        for name, source in islice(sources, BATCH_ROWS):
            images.append(_decode(name, source))
            size += images[-1].pixels.numel()
            if size > BATCH_BYTES:
                break
    return images


def _notes(seen: _Seen, ground: Ground | None, blank: int, what: str) -> Iterator[str]:
    for kind, count in sorted(seen.kinds.items()):
        told = TOLD.get(kind) or f"laid on {ground}, as the whole set"
        more = f"; {blank} of them show nothing there" if kind == TRANSPARENT and blank else ""
        yield f"{count} {'image' if count == 1 else 'images'} {kind} in {what}: {told}{more}"


def _blank(laid: Tensor, clear: Tensor | None) -> int:
    """How many transparent images are of one colour on their ground."""
    if clear is None:
        return 0
    shown = laid.flatten(1)[(clear > 0).flatten(1).any(1)]
    return int((shown.amax(1) == shown.amin(1)).sum()) if len(shown) else 0


def _laid(pixels: Tensor, clear: Tensor | None, ground: Ground | None) -> Tensor:
    """Images over black, (N, C, H, W), on `ground`."""
    if clear is None or ground == "black":
        return pixels
    # Over white is over black and what is seen of the ground; after resizing the two may overshoot by 1.
    return torch.minimum(pixels, 255 - clear) + clear


def _clear(images: list[_Image], size: int | None) -> Tensor | None:
    if all(image.clear is None for image in images):
        return None
    return _join([torch.zeros_like(i.pixels[:1]) if i.clear is None else i.clear for i in images], size)


def _join(images: list[Tensor], size: int | None) -> Tensor:
    channels = max(image.shape[0] for image in images)
    images = [image.expand(channels, -1, -1) for image in images]
    if size is None:
        return torch.stack(images)
    if len({image.shape for image in images}) > 1:
        return torch.cat([resize(image[None], size) for image in images])
    return resize(torch.stack(images), size)


def _decode(what: str, source: bytes | Path) -> _Image:
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=FORMATS) as image:
            accepted = "8 bits a channel, or 16 of grey: " + ", ".join(GREY_MODES + COLOUR_MODES)
            require(image.mode in GREY_MODES + COLOUR_MODES, f"mode of {what}", image.mode, accepted)
            # A photo's second frame, in a file of format MPO, is a preview or for the other eye.
            kinds = (SEVERAL,) if getattr(image, "is_animated", False) and image.format != "MPO" else ()
            upright, more = _upright(image)
            return _image(upright, what, kinds + more)
    except InputError:
        raise
    except Exception as error:  # whatever a stranger's file makes Pillow raise is the file's fault
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot read {what}: {reason}") from error


def _upright(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """The image turned as its EXIF block, or its XMP, says it was taken."""
    image.load()
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # a damaged block of metadata makes Pillow raise nearly anything; the pixels are whole
        return image, (BAD_EXIF,)
    return (ImageOps.exif_transpose(image) if turned else image), ()


def _image(image: Image.Image, what: str, kinds: tuple[str, ...]) -> _Image:
    """The image over black, one channel of a grey one and three of any other, and its alpha."""
    if image.mode in DEEP_MODES:
        return _deep(image, what, kinds)
    mode = "L" if image.mode in GREY_MODES else "RGB"
    if not image.has_transparency_data:
        return _Image(what, _channels(np.array(image if image.mode == mode else image.convert(mode))), None, kinds)
    both = _channels(np.array(image.convert(f"{mode}A")))
    colours, alpha = both[:-1], both[-1:]
    if alpha.min() == 255:
        return _Image(what, colours, None, kinds)
    if alpha.max() == 0 and colours.min() != colours.max():
        return _Image(what, colours, None, (*kinds, UNSEEN))
    over_black = (colours.int() * alpha.int() + 127) // 255
    return _Image(what, over_black.to(torch.uint8), 255 - alpha, (*kinds, TRANSPARENT))


def _deep(image: Image.Image, what: str, kinds: tuple[str, ...]) -> _Image:
    """Grey of 16 bits; one of its values may stand for transparent."""
    values = _channels(np.array(image).astype(np.int64))
    lowest, highest = int(values.min()), int(values.max())
    require(lowest >= 0 and highest <= MOST, f"grey values of {what}", (lowest, highest), f"0 to {MOST}, of 16 bits")
    pixels = ((values * 255 + MOST // 2) // MOST).to(torch.uint8)
    clear = values == image.info.get("transparency", -1)
    if not clear.any():
        return _Image(what, pixels, None, (*kinds, DEEP))
    return _Image(what, pixels * ~clear, clear.to(torch.uint8) * 255, (*kinds, DEEP, TRANSPARENT))


def _channels(values: np.ndarray) -> Tensor:
    """(C, H, W) of what Pillow gives."""
    return torch.from_numpy(values)[None] if values.ndim == 2 else torch.from_numpy(values).permute(2, 0, 1)

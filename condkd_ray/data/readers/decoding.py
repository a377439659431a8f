"""Decodes image files to pixels as a viewer shows them: rotated by EXIF, with transparency on a background."""

import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from condkd_ray.core.method import InputError, require
from condkd_ray.data.readers.images import Ground, Size, resize

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")  # fixed, because some Pillow plug-ins start programs
DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
GREY_MODES = ("1", "L", "LA", *DEEP_MODES)
COLOUR_MODES = ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr")
MOST = 65_535
"""Largest 16-bit grey value, which becomes 255."""

Source = tuple[str, bytes | Path]
"""Name of an image for messages, and its bytes or its file."""

BATCH_ROWS, BATCH_BYTES = 1000, 2**28
BRIGHT = 0.75
"""Mean grey from which the visible part of transparent images would hardly show on white (our choice)."""
DEEP = "of 16 bits per channel"
TRANSPARENT = "partly transparent"
UNSEEN = "fully transparent"
SEVERAL = "of several frames"
BAD_EXIF = "with an EXIF block that cannot be read"
ACTIONS = {
    DEEP: "converted to 8 bits, 65 535 to 255",
    UNSEEN: "their colours are used and their alpha is ignored",
    SEVERAL: "only the first frame is used",
    BAD_EXIF: "used without rotation",
}
"""Treatment of images with these properties, for the notes."""


@dataclass(frozen=True)
class Decoded:
    """Images `pixels` uint8 (N, C, H, W), the background of transparent ones, and notes for the user."""

    pixels: Tensor
    ground: Ground | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Image:
    """One image over black (C, H, W) uint8, the visibility of its background (1, H, W) or None, and its properties."""

    name: str
    pixels: Tensor
    clear: Tensor | None
    kinds: tuple[str, ...]


@dataclass
class _Properties:
    """Properties of the images of a set, summed over its batches."""

    kinds: Counter[str] = field(default_factory=Counter)
    light: int = 0
    """Sum of the grey values of the visible parts of transparent images, over black."""
    visible: int = 0
    """Sum of the alpha values of the same images, on the same scale of 0 to 255."""

    def add(self, images: list[_Image], pixels: Tensor, clear: Tensor | None) -> None:
        for image in images:
            self.kinds.update(image.kinds)
        if clear is not None:
            rows = (clear > 0).flatten(1).any(1)
            self.light += int(pixels[rows].sum()) // pixels.shape[1]
            self.visible += int((255 - clear[rows]).sum())

    def ground(self) -> Ground:
        return "black" if self.light > BRIGHT * self.visible else "white"


def decode_all(
    sources: Iterator[Source],
    size: Size | None,
    what: str,
    ground: Ground | None = None,
    check: Callable[[str, tuple[int, ...]], None] = lambda name, sides: None,
) -> Decoded:
    """Decode the images of the set `what`; C is 1 if all are grey, otherwise 3.

    Images are rotated by their EXIF orientation. All transparent images are placed on `ground`. If it is None, that is
    white, or black if the visible parts are brighter than `BRIGHT` on average. 16-bit grey values are scaled to 8 bits.
    With `size` all images are resized to it, batch by batch. `check` is called with the name and the upright (H, W) of
    each image before the next one is taken from `sources`. Raises `InputError` if an image cannot be read,
    or if images differ in size and `size` is None.
    """
    batches: list[tuple[Tensor, Tensor | None]] = []
    sides: tuple[int, ...] = ()
    properties = _Properties()
    while images := _batch(sources, check):
        sides = sides or tuple(images[0].pixels.shape[1:])
        for image in images:
            accepted = f"{sides} as in the first image, or set a size"
            shape = tuple(image.pixels.shape[1:])
            require(size is not None or shape == sides, f"height and width of {image.name}", shape, accepted)
        batches.append((_join([image.pixels for image in images], size), _clear(images, size)))
        properties.add(images, *batches[-1])
    require(bool(batches), f"number of images in {what}", 0, "at least 1")
    channels = max(pixels.shape[1] for pixels, _ in batches)
    transparent = any(clear is not None for _, clear in batches)
    ground = (ground or properties.ground()) if transparent else None
    laid = [_laid(pixels, clear, ground).expand(-1, channels, -1, -1) for pixels, clear in batches]
    blank = sum(_blank(image, clear) for image, (_, clear) in zip(laid, batches, strict=True))
    return Decoded(torch.cat(laid).contiguous(), ground, tuple(_notes(properties, ground, blank, what)))


def _batch(sources: Iterator[Source], check: Callable[[str, tuple[int, ...]], None]) -> list[_Image]:
    """Decode the next images, at most as many as fit into memory before they are resized: a photo may take 40 MB."""
    images: list[_Image] = []
    size = 0
    # Ignored warnings: odd metadata, and large images below Pillow's limit. Unreadable images raise errors.
    with warnings.catch_warnings(action="ignore"):
        for name, source in islice(sources, BATCH_ROWS):
            images.append(_decode(name, source))
            check(name, tuple(images[-1].pixels.shape[1:]))
            size += images[-1].pixels.numel()
            if size > BATCH_BYTES:
                break
    return images


def _notes(properties: _Properties, ground: Ground | None, blank: int, what: str) -> Iterator[str]:
    for kind, count in sorted(properties.kinds.items()):
        action = ACTIONS.get(kind) or f"placed on {ground}, like all of the set"
        more = f"; then {blank} of them have a single colour" if kind == TRANSPARENT and blank else ""
        yield f"{count} {'image' if count == 1 else 'images'} {kind} in {what}: {action}{more}"


def _blank(laid: Tensor, clear: Tensor | None) -> int:
    """Return the number of transparent images that have a single colour on their background."""
    if clear is None:
        return 0
    shown = laid.flatten(1)[(clear > 0).flatten(1).any(1)]
    return int((shown.amax(1) == shown.amin(1)).sum()) if len(shown) else 0


def _laid(pixels: Tensor, clear: Tensor | None, ground: Ground | None) -> Tensor:
    """Place images over black, (N, C, H, W), on `ground`."""
    if clear is None or ground == "black":
        return pixels
    # Over white = over black + visible background. After resizing, the sum of both may exceed 255 by 1.
    return torch.minimum(pixels, 255 - clear) + clear


def _clear(images: list[_Image], size: Size | None) -> Tensor | None:
    if all(image.clear is None for image in images):
        return None
    return _join([torch.zeros_like(i.pixels[:1]) if i.clear is None else i.clear for i in images], size)


def _join(images: list[Tensor], size: Size | None) -> Tensor:
    channels = max(image.shape[0] for image in images)
    images = [image.expand(channels, -1, -1) for image in images]
    if size is None:
        return torch.stack(images)
    if len({image.shape for image in images}) > 1:
        return torch.cat([resize(image[None], size) for image in images])
    return resize(torch.stack(images), size)


def _decode(what: str, source: bytes | Path) -> _Image:
    with opened(what, source) as image:
        accepted = "8 bits per channel, or 16 of grey: " + ", ".join(GREY_MODES + COLOUR_MODES)
        require(image.mode in GREY_MODES + COLOUR_MODES, f"mode of {what}", image.mode, accepted)
        # The second frame of a photo in MPO format is a preview, or the other half of a stereo pair.
        kinds = (SEVERAL,) if getattr(image, "is_animated", False) and image.format != "MPO" else ()
        turned, more = upright(image)
        return _image(turned, what, kinds + more)


@contextmanager
def opened(what: str, source: bytes | Path) -> Iterator[Image.Image]:
    """Open the image file `what`. Raises `InputError` naming it if it, or the block, cannot read it."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            yield image
    except InputError:
        raise
    except Exception as error:  # every error that Pillow raises is caused by the file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot read {what}: {reason}") from error


def upright(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """Return the image rotated by its EXIF or XMP orientation, and the properties to report."""
    image.load()
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # damaged metadata makes Pillow raise nearly any exception; the pixels are intact
        return image, (BAD_EXIF,)
    return (ImageOps.exif_transpose(image) if turned else image), ()


def _image(image: Image.Image, what: str, kinds: tuple[str, ...]) -> _Image:
    """Return the image over black and its alpha, with one channel if it is grey and three otherwise."""
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
    """Return a 16-bit grey image; one grey value may be marked as transparent."""
    values = _channels(np.array(image).astype(np.int64))
    lowest, highest = int(values.min()), int(values.max())
    require(lowest >= 0 and highest <= MOST, f"grey values of {what}", (lowest, highest), f"0 to {MOST}, of 16 bits")
    pixels = ((values * 255 + MOST // 2) // MOST).to(torch.uint8)
    clear = values == image.info.get("transparency", -1)
    if not clear.any():
        return _Image(what, pixels, None, (*kinds, DEEP))
    return _Image(what, pixels * ~clear, clear.to(torch.uint8) * 255, (*kinds, DEEP, TRANSPARENT))


def _channels(values: np.ndarray) -> Tensor:
    """Return Pillow's array as (C, H, W)."""
    return torch.from_numpy(values)[None] if values.ndim == 2 else torch.from_numpy(values).permute(2, 0, 1)

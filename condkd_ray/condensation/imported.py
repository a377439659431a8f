"""Other people's condensed sets: DC / DSA / DM files, Hugging Face Parquet, image folders.

Most failures reported with such sets are of units: images normalised twice, or whitened. So units are inferred or
declared, and what does not look like images in the teacher's space is refused with the likely cause.
Letters: N images, C channels, H W height and width, K classes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from condkd_ray.condensation.condensation import Condensation, random_per_class, require_ipc
from condkd_ray.method import InputError, require
from condkd_ray.readers import read_folder, read_parquet
from condkd_ray.samples import Samples, to_model, unseen
from condkd_ray.streams import Streams

Space = Literal["unit", "normalised", "uint8"]

SCALAR = np._core.multiarray.scalar  # type: ignore[attr-defined]
ALLOWED_GLOBALS = [SCALAR, (SCALAR, "numpy.core.multiarray.scalar"), np.dtype, np.dtypes.Float64DType]
"""What DC's files hold beside tensors: accuracies as numpy float64. The second is how numpy 1 spelled the first."""

LEAST_STD, MOST_STD = 0.5, 2.0
"""Overall standard deviation in the teacher's space. Real images have 1 to 1.25, published sets 1.0 to 1.6; [0, 1]
pixels taken for normalised ones 0.2 to 0.4, images normalised twice 2.6 to 8."""

TIMES_CHANCE = 2.5


@dataclass(frozen=True, kw_only=True)
class Imported(Condensation):
    """A condensed set from a file or folder, converted to the teacher's space.

    Serves any `ipc` up to what the file has, by a seeded choice within each class.
    """

    name: Literal["imported"] = "imported"
    path: Path = field(metadata={"identity": False})
    """A `.pt` dictionary of DC, DSA or DM, an image `.parquet`, or a folder with one sub-folder a class."""
    space: Literal["auto", "unit", "normalised", "uint8"] = "auto"
    """Units of the pixels: [0, 1], normalised with the teacher's own constants, or 0 to 255. `auto` looks at them."""
    which: int = -1
    """Which repeat of a DC file; -1 is the last, as DC-BENCH reads it."""
    force: bool = False
    """Take a set although its statistics or the teacher's answers speak against it."""

    def __post_init__(self) -> None:
        require_ipc(self.ipc)

    def whole(self) -> Self:
        """Itself."""
        return self

    def condense(
        self,
        real: Samples,
        *,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        flip_ok: bool,
        rng: Streams,
    ) -> Samples:
        """A seeded choice from the file, nested over `ipc`. Raises `InputError` as `read` does, or for a larger ipc."""
        samples = self.read(num_classes=num_classes, image_shape=tuple(real.images.shape[1:]), mean=mean, std=std)
        fewest = int(samples.labels.bincount().min())
        require(fewest >= self.ipc, f"condensation.ipc of {self.path}", self.ipc, f"1 to {fewest}, what the file has")
        samples = samples.to(rng.device)
        return samples[random_per_class(samples.labels, self.ipc, num_classes, rng["condensation"])]

    def read(
        self, *, num_classes: int, image_shape: tuple[int, ...], mean: Sequence[float], std: Sequence[float]
    ) -> Samples:
        """The whole set (N, C, H, W) in the teacher's space, in the file's order.

        Raises `InputError` for a file that cannot be read safely, for other classes or another `image_shape`
        (C, H, W), for values that are not finite, and, unless `force`, for statistics no image set has.
        """
        pixels, labels = read_pixels(self.path, self.which)
        shape = tuple(pixels.shape[1:])
        require(shape == image_shape, f"shape of the images in {self.path}", shape, f"{image_shape}, as the real ones")
        there = set(labels.unique().tolist())
        accepted = f"{num_classes} classes, each of 0 to {num_classes - 1}"
        require(there == set(range(num_classes)), f"labels in {self.path}", sorted(there), accepted)
        require(bool(pixels.float().isfinite().all()), f"pixels in {self.path}", "not all finite", "finite values")
        space = infer_space(pixels) if self.space == "auto" else self.space
        samples = unseen(_convert(pixels.float(), space, mean, std), labels)
        check_statistics(samples, self.force, f"{self.path} read as {space!r}")
        return samples


def read_pixels(path: Path, which: int = -1) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) as the file holds them, float or uint8, and labels int64 (N,). `which`: see `Imported`."""
    require(path.exists(), "condensed set", str(path), "an existing file or folder")
    if path.is_dir():
        raw = read_folder(path)
        return raw.pixels, raw.labels
    if path.suffix == ".parquet":
        raw = read_parquet([path])
        return raw.pixels, raw.labels
    accepted = ".pt or .pth (DC, DSA, DM), .parquet, or a folder with one sub-folder a class"
    require(path.suffix in (".pt", ".pth"), "condensed set", str(path), accepted)
    return _pair(_load(path), which, path)


def infer_space(pixels: Tensor) -> Space:
    """What units pixels (N, C, H, W) are in. Condensed pixels leave [0, 1] by design, hence the margin above 1."""
    if pixels.dtype == torch.uint8:
        return "uint8"
    low, high = pixels.min().item(), pixels.max().item()
    if low >= 0 and 1.5 < high <= 255 and torch.equal(pixels, pixels.round()):
        return "uint8"
    return "normalised" if low < 0 or high > 1.5 else "unit"


def check_statistics(samples: Samples, force: bool, what: str = "condensed set") -> None:
    """Raise `InputError` where the overall standard deviation in the teacher's space is not that of images."""
    spread = samples.images.std().item()
    if force or LEAST_STD <= spread <= MOST_STD:
        return
    if spread > MOST_STD:
        cause = (
            "the images look normalised twice (try space 'normalised'), of 0 to 255 taken for less (try 'uint8'), or "
            "ZCA-whitened (use the un-whitened copy)"
        )
    else:
        cause = (
            "the images look like [0, 1] pixels declared normalised (try space 'unit'), or like ones already scaled "
            "taken for 0 to 255 (try 'auto')"
        )
    require(False, f"standard deviation of {what}", round(spread, 4), f"{LEAST_STD} to {MOST_STD}; {cause}; or force")


def check_recognised(accuracy: float, num_classes: int, what: str, force: bool) -> None:
    """Raise `InputError` where the teacher hardly knows the images: `accuracy`, a fraction of them all.

    The least that passes is 2.5 times chance, or half way from chance to 1 where that is less (few classes).
    """
    chance = 1 / num_classes
    least = min(TIMES_CHANCE * chance, (1 + chance) / 2)
    accepted = (
        f"more than {least:.3f} ({num_classes} classes); likely causes: normalised twice (check space), ZCA-whitened, "
        "labels in another order, or another data set than the teacher's; or force"
    )
    require(force or accuracy > least, f"teacher's accuracy on {what}", round(accuracy, 4), accepted)


def _convert(pixels: Tensor, space: Space, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    if space == "normalised":
        return pixels
    return to_model(pixels / 255 if space == "uint8" else pixels, mean, std)


def _load(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(ALLOWED_GLOBALS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a stranger's file makes the loader raise is the file's fault
        forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
        cause = f"it names {forbidden[1]}, which is not allowed" if forbidden else str(error).partition("\n")[0]
        raise InputError(f"cannot read {path}: {cause}; accepted: a torch file of tensors and numbers") from error


def _pair(content: Any, which: int, path: Path) -> tuple[Tensor, Tensor]:
    """The images and labels of a DC, DSA or DM dictionary: `data` is a list of [images, labels], one a repeat."""
    found: Any = content.get("data") if isinstance(content, dict) else None
    keys = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
    accepted = "a dictionary whose 'data' is a list of [images, labels]"
    require(isinstance(found, (list, tuple)), f"content of {path}", keys, accepted)
    count = len(found)
    require(-count <= which < count, f"condensation.which of {path}", which, f"{-count} to {count - 1}")
    pair = found[which]
    tensors = isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(part, Tensor) for part in pair)
    require(tensors, f"data[{which}] of {path}", type(pair).__name__, "[images, labels], two tensors")
    images, labels = (part.detach() for part in pair)
    holds = images.ndim == 4 and len(images) > 0 and (images.is_floating_point() or images.dtype == torch.uint8)
    require(holds, f"images in {path}", _form(images), "(N, C, H, W), floating or uint8")
    holds = labels.shape == images.shape[:1] and not (labels.is_floating_point() or labels.is_complex())
    require(holds, f"labels in {path}", _form(labels), f"({len(images)},), integers")
    return images, labels.long()


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"

"""Other people's condensed sets: files of DC, DSA, DM, MTT, IDC and DC-BENCH, Hugging Face Parquet, image folders.

Most failures reported with such sets are of units: images normalised twice, or whitened. So units are inferred or
declared, and what does not look like images in the teacher's space is refused with the likely cause.
Letters: N images, C channels, H W height and width, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from condkd_ray.core.method import require
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples, to_model, unseen
from condkd_ray.data.condensed_sets import is_copy, read_pixels, resolve, unpack
from condkd_ray.methods.condensation.condensation import Condensation, random_per_class
from condkd_ray.methods.recognition import least_recognised

Space = Literal["unit", "normalised", "uint8"]

LEAST_STD, MOST_STD = 0.5, 2.0
"""Overall standard deviation in the teacher's space. Real images have 1 to 1.25, published sets 1.0 to 1.6; [0, 1]
pixels taken for normalised ones 0.2 to 0.4, images normalised twice 2.6 to 8. CIFAR-10 after ZCA has
0.47 with 0.1 added to the eigenvalues, 0.59 with 0.01, 1.05 with next to nothing: whitening may pass here, and is then
left to `check_recognised`."""


@dataclass(frozen=True, kw_only=True)
class Imported(Condensation):
    """A condensed set from a file or folder, converted to the teacher's space.

    Serves any `ipc` up to what the file has, by a seeded choice within each class.
    """

    name: Literal["imported"] = "imported"
    path: Path = field(metadata={"identity": False})
    """A `.pt` dictionary of DC, DSA or DM, `images_*.pt` of MTT (or the folder of its `images_best.pt`), `data.pt` of
    IDC, `*_images.pt` of DC-BENCH, an image `.parquet`, or a folder with one sub-folder a class (SRe2L)."""
    space: Literal["auto", "unit", "normalised", "uint8", "zca"] = "auto"
    """Units of the pixels: [0, 1], normalised with the teacher's own constants, or 0 to 255. `auto` looks at them.

    `zca`: the file is whitened; its un-whitened copy `images_zca_*.pt` must lie beside it. Where there is one
    it is read in any case."""
    factor: int = 1
    """Into how many rows and columns each image is cut, whose parts are blown up to images: IDC's 2."""
    which: int = -1
    """Which repeat of a DC file; -1 is the last, as DC-BENCH reads it."""
    force: bool = False
    """Take a set although its statistics or the teacher's answers speak against it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.factor >= 1, "condensation.factor", self.factor, "1 or more")

    @property
    def source(self) -> str:
        """What is read, as it is called in messages."""
        found = resolve(self.path)
        return f"{found.name} (un-whitened)" if is_copy(found) else found.name

    def condense(
        self, real: Samples, *, num_classes: int, mean: Sequence[float], std: Sequence[float], rng: Streams, **_: object
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
        space = self._space(pixels)
        images, labels = unpack(pixels.float(), labels, self.factor)
        shape = tuple(images.shape[1:])
        require(shape == image_shape, f"shape of the images in {self.path}", shape, f"{image_shape}, as the real ones")
        there = set(labels.unique().tolist())
        accepted = f"{num_classes} classes, each of 0 to {num_classes - 1}"
        require(there == set(range(num_classes)), f"labels in {self.path}", sorted(there), accepted)
        require(bool(images.isfinite().all()), f"pixels in {self.path}", "not all finite", "finite values")
        samples = unseen(_convert(images, space, mean, std), labels)
        check_statistics(samples, self.force, f"{self.path} read as {space!r}")
        return samples

    def _space(self, pixels: Tensor) -> Space:
        if self.space == "zca":
            copied = is_copy(resolve(self.path))
            accepted = "zca with the un-whitened copy images_zca_*.pt beside it: no teacher here reads whitened images"
            require(copied, f"space of {self.path}", self.space, accepted)
        return infer_space(pixels) if self.space in ("auto", "zca") else self.space


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
            "taken for 0 to 255 (try 'auto'), or ZCA-whitened (use the un-whitened copy)"
        )
    require(False, f"standard deviation of {what}", round(spread, 4), f"{LEAST_STD} to {MOST_STD}; {cause}; or force")


def check_recognised(accuracy: float, num_classes: int, what: str, force: bool) -> None:
    """Raise `InputError` where the teacher hardly knows the images: `accuracy`, a fraction of them all."""
    least = least_recognised(num_classes)
    accepted = (
        f"more than {least:.3f} ({num_classes} classes); likely causes: normalised twice (check space), ZCA-whitened, "
        "labels in another order, or another data set than the teacher's; or force"
    )
    require(force or accuracy > least, f"teacher's accuracy on {what}", round(accuracy, 4), accepted)


def _convert(pixels: Tensor, space: Space, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    if space == "normalised":
        return pixels
    return to_model(pixels / 255 if space == "uint8" else pixels, mean, std)

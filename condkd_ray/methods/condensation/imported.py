"""Condensed sets from elsewhere: files of DC, DSA, DM, MTT, IDC, KIP, DC-BENCH, Hugging Face Parquet, image folders.

Most failures reported with such sets concern units: images normalised twice, or whitened. So the units are inferred or
declared, and a set is checked by its pixels and by the teacher's predictions. A set that is certainly wrong is refused,
with the cause that pixels and predictions support; doubts are reported. The teacher classifies images of the set only,
so that nothing is chosen by test images. Letters: N images, C channels, H W height and width, K classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from condkd_ray.core.method import require
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples, unseen
from condkd_ray.data.condensed_sets import StoredSet, is_copy, read_stored, resolve, unpack
from condkd_ray.methods.condensation.condensation import Condensation, random_per_class
from condkd_ray.methods.condensation.judgement import ChosenSpace, Subject, choose_space
from condkd_ray.methods.condensation.pixel_space import Space, plain
from condkd_ray.models.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Imported(Condensation):
    """A condensed set from a file or folder, converted to the teacher's space.

    It serves any `ipc` up to the number of images per class in the file, by a seeded choice within each class.
    """

    name: Literal["imported"] = "imported"
    path: Path = field(metadata={"identity": False})
    """A `.pt` dictionary of DC, DSA or DM, `images_*.pt` of MTT (or its folder: `images_best.pt` there, or the only
    `images_*.pt`), `data.pt` of IDC, `*_images.pt` of DC-BENCH, `.npz` or `images.npy` of KIP, an image `.parquet`, or
    a folder with one sub-folder per class (SRe2L)."""
    space: Literal["auto", "unit", "signed", "normalised", "uint8", "zca"] = "auto"
    """Units of the pixels: [0, 1], [-1, 1], normalised with the teacher's own constants (or with `mean` and `std`), or
    0 to 255. `auto` infers them from the pixels, and from the teacher's predictions if the pixels are not conclusive.

    `zca`: the file is whitened; its un-whitened copy `images_zca_*.pt` must be in the same folder. If that copy exists,
    it is read in any case."""
    mean: tuple[float, ...] | None = None
    """Means with which the file is normalised, one per channel, in units of [0, 1] pixels."""
    std: tuple[float, ...] | None = None
    """Standard deviations with which the file is normalised, like `mean`."""
    order: tuple[int, ...] | None = None
    """The file's labels in the order of the teacher's classes: the label of class k is at position k. For files with
    another order than the teacher's."""
    factor: int = 1
    """Number of rows and columns into which each image is cut; the parts are enlarged to whole images. 2 for IDC."""
    which: int = -1
    """Index of the repeat to read from a DC file; -1 is the last, as in DC-BENCH."""
    force: bool = False
    """Accept a set although its pixels or the teacher's predictions contradict it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.factor >= 1, "condensation.factor", self.factor, "1 or more")
        given = (self.mean, self.std)
        require((self.mean is None) == (self.std is None), "condensation.mean, condensation.std", given, "both or none")
        fits = self.mean is None or self.space in ("auto", "normalised")
        require(fits, "condensation.space with mean and std", self.space, "normalised, or auto")
        require(all(map(math.isfinite, self.mean or ())), "condensation.mean", self.mean, "finite values")
        positive = all(0 < value < math.inf for value in self.std or ())
        require(positive, "condensation.std", self.std, "positive values")
        whole = self.order is None or sorted(self.order) == list(range(len(self.order)))
        require(whole, "condensation.order", self.order, "each of the labels 0 to K - 1 once")

    @property
    def source(self) -> str:
        """Name of the file in messages."""
        found = resolve(self.path)
        return f"{found.name} (un-whitened)" if is_copy(found) else found.name

    def condense(
        self,
        real: Samples,
        *,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        rng: Streams,
        teacher: Teacher | None = None,
        **_: object,
    ) -> Samples:
        """Return a seeded choice from the file, nested over `ipc`. Raises `InputError` like `stored` and `space_of`."""
        stored = self.stored(num_classes, tuple(real.images.shape[1:]))
        space = self.space_of(stored, num_classes, mean=mean, std=std, real=real, teacher=teacher).space
        return self.chosen(stored, space, num_classes, mean=mean, std=std, rng=rng)

    def read(
        self, *, num_classes: int, image_shape: tuple[int, ...], mean: Sequence[float], std: Sequence[float]
    ) -> Samples:
        """Return the whole set (N, C, H, W) in the teacher's space, in the file's order, without using a teacher.

        Raises `InputError` as `stored` and `space_of` do.
        """
        stored = replace(self, ipc=1).stored(num_classes, image_shape)
        space = self.space_of(stored, num_classes, mean=mean, std=std).space
        images, labels = self._unpacked(stored)
        return unseen(space.convert(images, mean, std), labels)

    def stored(self, num_classes: int, image_shape: tuple[int, ...], class_names: Sequence[str] = ()) -> StoredSet:
        """Return the file's content, with its labels in the teacher's order.

        The order is given by `order`, else by the class names if file and teacher have the same ones. Raises
        `InputError` for a file that cannot be read safely, for other classes or another `image_shape` (C, H, W), for
        values that are not finite, and for fewer than `ipc` images of a class.
        """
        if self.space == "zca":
            accepted = "zca with the un-whitened copy images_zca_*.pt beside it: no teacher here reads whitened images"
            require(is_copy(resolve(self.path)), f"space of {self.path}", self.space, accepted)
        found = read_stored(self.path, self.which, image_shape)
        shape = tuple(found.pixels.shape[1:])
        require(
            shape == image_shape, f"shape of the images in {self.path}", shape, f"{image_shape}, like the real ones"
        )
        there = set(found.labels.unique().tolist())
        accepted = f"{num_classes} classes, each of 0 to {num_classes - 1}"
        require(there == set(range(num_classes)), f"labels in {self.path}", sorted(there), accepted)
        given = {"mean": (self.mean, shape[0], "channel"), "order": (self.order, num_classes, "class")}
        for name, (values, count, what) in given.items():
            fits = values is None or len(values) == count
            require(fits, f"condensation.{name}", values, f"{count} values, one per {what}")
        if self.order is not None:
            found = replace(found, labels=torch.tensor(self.order).argsort()[found.labels])
        elif found.class_names and sorted(found.class_names) == sorted(class_names):
            label_of = {name: label for label, name in enumerate(class_names)}
            found = replace(found, labels=torch.tensor([label_of[name] for name in found.class_names])[found.labels])
        self.check_ipc(found)
        return found

    def check_ipc(self, stored: StoredSet) -> None:
        """Raise `InputError` if a class has fewer than `ipc` images or `factor` does not divide their sides."""
        sides = tuple(stored.pixels.shape[2:])
        divisible = all(side % self.factor == 0 for side in sides)
        require(divisible, "condensation.factor", self.factor, f"a divisor of both of {sides}")
        fewest = int(stored.labels.bincount().min()) * self.factor**2
        require(
            fewest >= self.ipc, f"condensation.ipc of {self.path}", self.ipc, f"1 to {fewest}, as many as the file has"
        )

    def space_of(
        self,
        stored: StoredSet,
        num_classes: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        real: Samples | None = None,
        teacher: Teacher | None = None,
        class_names: Sequence[str] = (),
    ) -> ChosenSpace:
        """Return the space of the file's pixels, with notes for the user. Raises `InputError` like `choose_space`."""
        constants = tuple(mean), tuple(std)
        counts = (stored.labels.bincount() * self.factor**2).unique().tolist()
        each = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        subject = Subject(f"condensed set {self.source}, {each} per class", num_classes, *constants, tuple(class_names))
        images, labels = self._unpacked(stored)
        return choose_space(
            StoredSet(images, labels, stored.soft),
            subject,
            whole=stored.pixels,
            real=real,
            teacher=teacher,
            declared=self._declared(*constants),
            order=self.order,
            force=self.force,
        )

    def chosen(
        self,
        stored: StoredSet,
        space: Space,
        num_classes: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        rng: Streams,
    ) -> Samples:
        """Return `ipc` images of each class in the teacher's space, on the device of `rng`."""
        images, labels = self._unpacked(stored)
        rows = random_per_class(labels.to(rng.device), self.ipc, num_classes, rng["condensation"]).cpu()
        return unseen(space.convert(images[rows], mean, std), labels[rows]).to(rng.device)

    def _unpacked(self, stored: StoredSet) -> tuple[Tensor, Tensor]:
        if self.factor == 1:
            return stored.pixels, stored.labels
        return unpack(stored.pixels.float(), stored.labels, self.factor)

    def _declared(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Space | None:
        if self.mean is not None and self.std is not None:
            own = (self.mean, self.std) == (mean, std)
            return Space("normalised", self.mean, self.std, "the teacher's" if own else "the given")
        if self.space in ("auto", "zca"):
            return None
        return Space("normalised", mean, std) if self.space == "normalised" else plain(self.space, len(mean))

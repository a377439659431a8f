"""Real data sets: where they are stored, how they are split and normalised.

The split has its own seed, independent of a trial's seed: a teacher must not be trained on the test images of any seed.
"""

from __future__ import annotations

import hashlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal, get_args

import torch

from condkd_ray.core.families import Family
from condkd_ray.core.method import InputError, Method, require
from condkd_ray.core.rng import derive_seed
from condkd_ray.core.samples import MASK, pixel_counts
from condkd_ray.core.task import Task, is_dense
from condkd_ray.data import copies, readers
from condkd_ray.data.readers import IDX_SETS, TORCHVISION_SETS, Classes, Pair, ParquetFiles, Raw, RealImages, Size
from condkd_ray.data.scenes import draw_scenes

Known = Literal["digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "svhn"]
Masked = Literal["camvid", "mask_folders", "parquet_masks"]
DataName = Literal[Known, "parquet", "image_folder", "class_folders", Masked, "scenes"]
MASKED: tuple[str, ...] = get_args(Masked)
"""Data sets whose masks are read from files."""
DENSE = (*MASKED, "scenes")
"""Data sets with a class per pixel."""
Constants = tuple[tuple[float, ...], tuple[float, ...]]

CONSTANTS: dict[str, Constants] = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2861,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
}
"""Mean and standard deviation per channel, in units of [0, 1] pixels, as in published condensed sets (DC, DSA, DM)."""

NO_FLIP = ("digits", "mnist", "svhn")
DIGITS_TEST, DIGITS_VAL = 600, 197
HELD_OUT, HELD_OUT_FROM = 10_000, 50_000
PARQUET_FOLDER = "a folder with train*.parquet or train/*.parquet in it or in one sub-folder"
SHOWN = 10
"""Largest number of classes named in a note."""


@dataclass(frozen=True, kw_only=True)
class DataSource(Method, ABC):
    """Base class of data sets: where the images are, and how they are resized, split and normalised.

    A data set from another package is a subclass with a `name`, further fields if needed, and `read`. It can give
    `mean`, `std` and `flip_ok` other defaults. If each pixel has a class, it sets `task = "segmentation"`, and labels
    are (N, H, W), int16, int64 or uint8; -1 is a pixel without a class.
    """

    task: ClassVar[Task] = "classification"
    """Whether an image has one label, or each of its pixels."""
    name: str
    root: Path | None = field(default=None, metadata={"identity": False})
    """Folder of the data set; not part of a trial's identity. `digits` needs none."""
    size: Size | None = None
    """Side of the images after resizing, in pixels, or height and width. None keeps the images' own size."""
    val_fraction: float = 0.0
    """Share of the train images held out for validation, 0 to 0.5. `digits` always holds out 197. It must be 0 if the
    data set has validation images of its own, as `scenes`, `camvid` and `mask_folders` with val/ and test/ have."""
    seed: int = 0
    """Seed of every split, independent of the trial's seed."""
    mean: tuple[float, ...] | None = None
    """Mean of the normalisation of your own teacher, one value per channel, in units of [0, 1] pixels."""
    std: tuple[float, ...] | None = None
    """Standard deviation of the normalisation, like `mean`; the two are given together."""
    flip_ok: bool | None = None
    """True if a mirrored image keeps its class. None: false for digits, mnist and svhn, true for all others."""

    def __post_init__(self) -> None:
        sides = self.size if isinstance(self.size, (list, tuple)) else (self.size, self.size)
        fits = self.size is None or (len(sides) == 2 and all(side is not None and side >= 1 for side in sides))
        accepted = "an integer of at least 1, two such integers (height and width), or none"
        require(fits, "data.size", self.size, accepted)
        require(0 <= self.val_fraction <= 0.5, "data.val_fraction", self.val_fraction, "0 to 0.5")
        require((self.mean is None) == (self.std is None), "data.mean, data.std", (self.mean, self.std), "both or none")
        require(all(map(math.isfinite, self.mean or ())), "data.mean", self.mean, "finite values")
        require(all(0 < value < math.inf for value in self.std or ()), "data.std", self.std, "positive, finite values")

    @abstractmethod
    def read(self) -> Found:
        """Return the train images, and the test images if the data set has some.

        Raises `InputError` if something is missing. Records identify the data set by a digest of its images, so two
        calls must return the same images.
        """


@dataclass(frozen=True, kw_only=True)
class DataConfig(DataSource):
    """A data set of this package, and its split and size."""

    name: DataName = "digits"
    train_file: str | None = None
    """Parquet only: file name in `root`, path, or a pattern such as "train-*.parquet"."""
    test_file: str | None = None
    """Parquet only: like `train_file`."""
    ignore_index: tuple[int, ...] | None = None
    """Values of masks that mean no class (void). None: 255, and for camvid also 11; given values replace these. The
    other values are the classes, in their order."""
    download: bool = False
    """Let torchvision download a known data set into `root`."""

    @property
    def task(self) -> Task:  # type: ignore[override]
        """Segmentation for data sets with masks, otherwise classification."""
        return task_of(self.name)

    def __post_init__(self) -> None:
        super().__post_init__()
        own = self.name != "digits" or self.val_fraction == 0
        require(own, "data.val_fraction", self.val_fraction, "0: digits always holds out 197 validation images")
        files = (self.train_file, self.test_file)
        parquet = self.name in ("parquet", "parquet_masks") or self.name in TORCHVISION_SETS or files == (None, None)
        require(parquet, f"data.train_file, data.test_file of {self.name}", files, "none: they name Parquet files")
        known = not self.download or self.name in IDX_SETS or self.name in TORCHVISION_SETS
        require(known, f"data.download of {self.name}", self.download, "false: torchvision has no such data set")

        void = self.ignore_index
        masked = void is None or self.name in MASKED
        require(masked, f"data.ignore_index of {self.name}", void, f"none: only {', '.join(MASKED)} have masks to read")
        fits = all(0 <= value <= 65_535 for value in void or ())
        require(fits, "data.ignore_index", void, "integers from 0 to 65535")

    def read(self) -> Found:
        """Return the images, resized if the reader resizes them best, and how to split them.

        Raises `InputError` if files are missing, not readable or not valid.
        """
        try:
            return _find(self)
        except PermissionError as error:
            accepted = f"a folder whose files and folders can be read ({error})"
            raise InputError(f"data.root of {self.name} is {str(self.root)!r}; accepted: {accepted}") from None


AnyData = DataConfig
"""The data sets of this package, distinguished by `name`."""


def _check_task(kind: type[DataSource]) -> None:
    """Raise `InputError` unless the `task` of a data set of another package is one of the tasks."""
    tasks, task = get_args(Task), kind.task
    known = task in tasks or issubclass(kind, DataConfig)
    require(known, f"datasets plug-in {kind.__name__}: task", task, " or ".join(map(repr, tasks)))


DATASETS = Family("datasets", DataSource, (DataConfig,), _check_task)


def task_of(name: str) -> Task:
    """Return the task of the data set `name`; that of an unknown name is classification."""
    kind = DATASETS.members().get(name, DataConfig)
    if issubclass(kind, DataConfig):
        return "segmentation" if name in DENSE else "classification"
    return kind.task


@dataclass(frozen=True)
class Dataset:
    """A data set, split. `mean`, `std` per channel, in units of [0, 1] pixels; `digest` covers pixels, labels, splits.

    `notes`: sentences for the user about decisions made while reading and splitting.
    """

    name: str
    train: RealImages
    val: RealImages | None
    test: RealImages
    num_classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip_ok: bool
    digest: str
    notes: tuple[str, ...] = ()
    task: Task = "classification"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.train.pixels.shape[1:]
        return channels, height, width


@dataclass(frozen=True)
class Found:
    """Images before splitting.

    `val`: validation images, if the data set has some; otherwise `own_val`, or the share `val_fraction`, are held out
    of train. `held_out`, `own_val`: numbers of train images to hold out for test and validation. `notes`: sentences.
    `why`: the reason for holding out a test set; `remedy`: how the user can name one instead. If a data set of another
    package has neither test images nor `held_out`, a fifth of the train images (10 000 of 50 000 or more) becomes the
    test set.
    """

    train: Raw
    test: Raw | None
    held_out: int = 0
    own_val: int = 0
    notes: tuple[str, ...] = ()
    why: str = ""
    remedy: str = ""
    val: Raw | None = None

    @property
    def parts(self) -> Iterator[tuple[str, Raw]]:
        """The names and the images of the parts that are there."""
        named = (("train", self.train), ("test", self.test), ("val", self.val))
        yield from ((name, raw) for name, raw in named if raw is not None)


def load(config: DataSource, check_shape: Callable[[tuple[int, int, int], str], None] | None = None) -> Dataset:
    """Read, resize and split a data set. Raises `InputError` if something is missing or does not fit.

    `check_shape` gets the shape (C, H, W) of the images and the name of the data set before the number of values in
    `mean` and `std` is checked; it may raise `InputError`.
    """
    found = config.read()
    if not isinstance(config, DataConfig):
        found = _checked(config, found)
    counts = _counts(found.train)
    classes = int((counts.sum(0) > 0).sum())
    where = "pixels" if is_dense(config.task) else "images"
    accepted = "2 or more"
    if isinstance(config, DataConfig) and config.name in MASKED:
        accepted += "; of black and white masks, name both colours in class_dict.csv, because 255 is void by default"
    require(classes > 1, f"number of classes with {where} in {config.name}", classes, accepted)
    (train, val, test), copy_notes = _split(config, found)
    if check_shape is not None:
        channels, height, width = train.pixels.shape[1:]
        check_shape((channels, height, width), config.name)
    mean, std = _constants(config, train)
    flip_ok = config.name not in NO_FLIP if config.flip_ok is None else config.flip_ok
    names, digest = found.train.class_names, _digest(train, val, test)
    own_notes = [*_held_out_note(config, found, len(test)), *found.notes, *_files_notes(found, counts)]
    notes = tuple(dict.fromkeys([*own_notes, *copy_notes]))
    return Dataset(config.name, train, val, test, len(names), names, mean, std, flip_ok, digest, notes, config.task)


def _checked(config: DataSource, found: Found) -> Found:
    """Return the images of a data set from another package. Raises `InputError` if images or labels do not fit."""
    tasks = get_args(Task)
    require(config.task in tasks, f"task of data set {config.name}", config.task, " or ".join(tasks))
    kept = {}
    for part, raw in found.parts:
        what, pixels, labels = f"{part} images of data set {config.name}", raw.pixels, raw.labels
        fits = pixels.dtype == torch.uint8 and pixels.ndim == 4 and pixels.shape[1] in (1, 3)
        require(fits, what, f"{pixels.dtype} {tuple(pixels.shape)}", "uint8 (N, C, H, W) with 1 or 3 channels")
        if is_dense(config.task):
            readers.check_masks(pixels, labels, raw.class_names, what)
            sized = _real(config, replace(raw, labels=labels.to(MASK)))
            kept[part] = readers.without_void(replace(raw, pixels=sized.pixels, labels=sized.labels), what)
            continue
        fits = labels.dtype == torch.int64 and labels.shape == pixels.shape[:1]
        require(fits, f"labels of {what}", f"{labels.dtype} {tuple(labels.shape)}", f"int64 ({len(pixels)},)")
        readers.check_labels(labels.tolist(), raw.class_names, what)
    found = replace(found, **kept)
    if found.test is not None or found.held_out:
        return found
    return replace(_held_out(found.train, found.notes, "no test images"), val=found.val)


def _find(config: DataConfig) -> Found:
    if config.name in ("digits", "scenes"):
        return _made(config)
    require(config.root is not None, f"data.root of {config.name}", None, "the folder that holds the data set")
    root = Path(config.root or "").expanduser()
    require(os.path.exists(root) or config.download, "data.root", str(root), "an existing folder")
    if config.name in IDX_SETS:
        return Found(*readers.idx_set(config.name, root, download=config.download))
    if config.name == "image_folder":
        return _image_folder(config, root)
    if config.name == "class_folders":
        return Found(*readers.read_halves(root, config.size, config.seed))
    if config.name in MASKED:
        return _masked(config, root)
    files = readers.find_parquet(root, config.train_file, config.test_file)
    if files is not None:
        return _parquet(config, files)
    require(config.name != "parquet", "data.root", str(root), PARQUET_FOLDER)
    return Found(*readers.torchvision_set(config.name, root, download=config.download))


def _made(config: DataConfig) -> Found:
    """Return the images of a data set that needs no files."""
    if config.name == "digits":
        return Found(readers.digits(), None, held_out=DIGITS_TEST, own_val=DIGITS_VAL)
    train, val, test = (draw_scenes(part, config.size, config.seed) for part in ("train", "val", "test"))
    return Found(train, test, val=val)


def _masked(config: DataConfig, root: Path) -> Found:
    """Return the images of a data set with masks."""
    given = config.ignore_index
    if config.name == "camvid":
        void = readers.CAMVID_VOID if given is None else tuple(given)
        classes = readers.Classes(readers.CAMVID_NAMES, void=void, origin="CamVid")
        return _mask_folders(config, readers.find_camvid(root), classes)
    folder = root.parent if root.is_file() else root
    classes = readers.find_classes(folder, readers.VOID if given is None else tuple(given))
    if config.name == "mask_folders":
        return _mask_folders(config, readers.find_mask_folders(root), classes)
    files = readers.find_parquet(root, config.train_file, config.test_file)
    if files is None:
        raise InputError(f"data.root is {str(root)!r}; accepted: {PARQUET_FOLDER}")
    train = readers.read_parquet_masks(files.train.files, classes, config.size)
    if len(files.tests) != 1:
        return _without_test(train, files)
    classes = classes.as_in(train)
    test = readers.read_parquet_masks(files.tests[0].files, classes, config.size, train.ground)
    return Found(train, test, notes=files.notes)


def _parquet(config: DataConfig, files: ParquetFiles) -> Found:
    train = readers.read_parquet(files.train.files, config.size)
    if len(files.tests) == 1:
        return Found(train, readers.read_parquet(files.tests[0].files, config.size, train.ground), notes=files.notes)
    return _without_test(train, files)


def _without_test(train: Raw, files: ParquetFiles) -> Found:
    """Hold a test set out of train, because there are no Parquet files of one, or several and none is named."""
    names = ", ".join(one.label for one in files.tests)
    why = f"several test files ({names}) and none named" if files.tests else "no test file"
    return _held_out(train, files.notes, why, "; name one with --test-file")


def _image_folder(config: DataConfig, root: Path) -> Found:
    train = readers.read_folder(root / "train", config.size)
    there = [name for name in ("test", "val") if (root / name).is_dir()]
    if not there:
        return _held_out(train, (), "neither test/ nor val/")
    notes = {"test": (), "val": ("val/ is the test set, because there is no test/",)}[there[0]]
    notes = notes if len(there) == 1 else ("val/ is not read: test/ is the test set",)
    return Found(train, readers.read_folder(root / there[0], config.size, train.ground), notes=notes)


def _mask_folders(config: DataConfig, folders: dict[str, Pair], classes: Classes) -> Found:
    """Read all parts; val/ is the test set if there is no test/, and otherwise the validation set."""
    train = readers.read_mask_folder(folders["train"], classes, config.size)
    classes = classes.as_in(train)
    others = {
        part: readers.read_mask_folder(folders[part], classes, config.size, train.ground)
        for part in ("val", "test")
        if part in folders
    }
    if not others:
        return _held_out(train, (), "no test images and no validation images")
    if "test" not in others:
        note = f"{folders['val'].images} is the test set, because there is no other"
        return Found(train, others["val"], notes=(note,))
    return Found(train, others["test"], val=others.get("val"))


def _held_out(train: Raw, notes: tuple[str, ...], why: str, remedy: str = "") -> Found:
    """Hold a test set out of the train images; `why` becomes a note to the user."""
    count = HELD_OUT if len(train) >= HELD_OUT_FROM else len(train) // 5
    return Found(train, None, held_out=count, notes=notes, why=why, remedy=remedy)


def _held_out_note(config: DataSource, found: Found, count: int) -> Iterator[str]:
    if found.why:
        images = f"{count:,}".replace(",", " ")
        yield f"{found.why}: {images} images held out of train by data seed {config.seed}{found.remedy}"


def _counts(raw: Raw) -> torch.Tensor:
    """Return the number of images of each class (1, K), or of pixels in each image (N, K)."""
    classes = len(raw.class_names)
    if raw.labels.ndim == 1:
        return raw.labels.bincount(minlength=classes)[None]
    return pixel_counts(raw.labels, classes)


def _files_notes(found: Found, counts: torch.Tensor) -> Iterator[str]:
    """Yield the readers' notes, and notes about the order of classes and about classes with too few train images.

    `counts`: those of `_counts` of the train images.
    """
    for _, raw in found.parts:
        yield from raw.notes
    train, test = found.train, found.test
    if (
        test is not None
        and test.class_names != train.class_names
        and not (_decimal(train, test) or _is_numbered(train) or _is_numbered(test))
    ):
        yield "test images list the classes in another order than train images: classes are matched by name"
    names, masks = found.train.class_names, found.train.labels.ndim > 1
    reasons = ("no train image, so the student cannot learn them", "one train image, which goes to the proxy set")
    if masks:
        reasons = ("no pixel in a train image, so the student cannot learn them", "pixels in a single train image")
    images = ((counts > 0) if masks else counts).sum(0)
    for few, reason in enumerate(reasons):
        rare = [names[label] for label in (images == few).nonzero().flatten().tolist()]
        shown = ", ".join(rare[:SHOWN]) + ", ..." * (len(rare) > SHOWN)
        yield from [f"{len(rare)} of {len(names)} classes have {reason} ({shown})"] * bool(rare)


def _split(config: DataSource, found: Found) -> tuple[tuple[RealImages, RealImages | None, RealImages], list[str]]:
    """Return train, validation and test images, and notes about copies; parts we split share no image and no copy."""
    train = _real(config, found.train)
    own_val = found.val is None or config.val_fraction == 0
    require(own_val, "data.val_fraction", config.val_fraction, f"0: {config.name} has validation images of its own")
    val_count = found.own_val or round(config.val_fraction * (len(train) - found.held_out))
    left = len(train) - found.held_out - val_count
    enough = left > 0 and (found.test is not None or found.held_out > 0) and (val_count > 0 or not config.val_fraction)
    require(enough, "number of train images", len(train), f"enough images for val_fraction {config.val_fraction}")
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "split"))
    prints = copies.fingerprints(train.pixels)
    first = copies.first_copies(prints)
    order = torch.randperm(len(train), generator=generator)
    parts = [train[rows] for rows in copies.split(order, [found.held_out, val_count, left], first)]
    different = [bool(len(part)) or not size for part, size in zip(parts, (found.held_out, val_count, 1), strict=True)]
    accepted = "images that are not all the same, enough for each part of the split: copies stay in one part"
    require(all(different), "number of different train images", len(first.unique()), accepted)
    held_out, val, kept = parts
    val = val if val_count else None
    if found.val is not None:
        val = _other(config, found.train, found.val, "validation")
    test = held_out if found.test is None else _other(config, found.train, found.test, "test")
    for part, name in ((test, "test"), (val, "validation")):
        if part is not None:
            shape, fitting = (tuple(one.pixels.shape[1:]) for one in (part, kept))
            accepted = f"{fitting}, the shape of the train images"
            require(shape == fitting, f"shape of the {name} images", shape, accepted)
    test_prints = [] if found.test is None else copies.fingerprints(test.pixels)
    labels = torch.cat([train.labels, *([] if found.test is None else [test.labels])])
    notes = [*copies.notes(prints, test_prints, labels), *(copies.split_note(first) if left < len(train) else ())]
    return (kept, val, test), notes


def _is_numbered(raw: Raw) -> bool:
    """Return whether the images have no class names; then classes are matched by number."""
    return raw.class_names == tuple(map(str, range(len(raw.class_names))))


def _other(config: DataSource, train: Raw, other: Raw, part: str) -> RealImages:
    """Return the images of another part with the labels of train's classes, matched by name if both have names."""
    if other.labels.ndim > 1:
        same, accepted = other.class_names == train.class_names, f"those of the train images, {train.class_names}"
        require(same, f"classes of the {part} images", other.class_names, accepted)
        return _real(config, other)
    given = other
    if _decimal(train, other):
        other = replace(other, labels=_as_trains(train, other))
    elif not (_is_numbered(train) or _is_numbered(other)):
        same = sorted(train.class_names) == sorted(other.class_names)
        accepted = f"the classes of train, {train.class_names}"
        require(same, f"classes of the {part} images", other.class_names, accepted)
        label_of = {name: label for label, name in enumerate(train.class_names)}
        other = replace(other, labels=torch.tensor([label_of[name] for name in other.class_names])[other.labels])
    there = torch.isin(other.labels, train.labels.unique())
    foreign = [given.class_names[label] for label in given.labels[~there].unique().tolist()]
    foreign = [int(name) if name.isdecimal() else name for name in foreign]
    require(not foreign, f"{part} classes without train images", foreign, "the classes of train")
    return _real(config, other)


def _decimal(*sides: Raw) -> bool:
    """Return whether all class names are numbers, such as folder names, some of which may be missing."""
    return all(name.isdecimal() for raw in sides for name in raw.class_names)


def _as_trains(train: Raw, test: Raw) -> torch.Tensor:
    """Return labels (N,) of the test images, matched by the class numbers; -1 for a class that train does not have."""
    label_of = {int(name): label for label, name in enumerate(train.class_names)}
    return torch.tensor([label_of.get(int(name), -1) for name in test.class_names])[test.labels]


def _real(config: DataSource, raw: Raw) -> RealImages:
    if config.size is None:
        return RealImages(raw.pixels, raw.labels)
    labels = raw.labels if raw.labels.ndim == 1 else readers.resize_masks(raw.labels, config.size)
    return RealImages(readers.resize(raw.pixels, config.size), labels)


def _constants(config: DataSource, train: RealImages) -> Constants:
    """Return the normalisation: from the config, published for the data set, or computed from the train images."""
    channels = train.pixels.shape[1]
    if config.mean is not None and config.std is not None:
        mean, std = config.mean, config.std
    elif config.name in CONSTANTS:
        mean, std = CONSTANTS[config.name]
    else:
        mean, std = own_constants(train.pixels)
    one_each = len(mean) == len(std) == channels
    require(one_each, "data.mean, data.std", (mean, std), f"{channels} values each, one per channel of the images")
    require(min(std) > 1e-6, "standard deviation of the train images", std, "images that are not all the same")
    return mean, std


def own_constants(pixels: torch.Tensor) -> Constants:
    """Return mean and standard deviation per channel of uint8 `pixels` (N, C, H, W), in units of [0, 1] pixels.

    They are computed from counts of grey values, so that the result does not depend on the number of threads.
    """
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in pixels.unbind(1)]).double()
    shares, grey = counts / counts.sum(1, keepdim=True), torch.arange(256).double() / 255
    means = shares @ grey
    stds = (shares @ grey.square() - means.square()).clamp(min=0).sqrt()
    return tuple(means.tolist()), tuple(stds.tolist())


def _digest(*parts: RealImages | None) -> str:
    """Return 16 hex digits of the SHA-256 of all pixels and labels, part by part."""
    digest = hashlib.sha256()
    for part in parts:
        if part is not None:
            digest.update(str(tuple(part.pixels.shape)).encode())
            digest.update(part.pixels.contiguous().numpy().data)
            digest.update(part.labels.contiguous().numpy().data)
        digest.update(b"/")
    return digest.hexdigest()[:16]

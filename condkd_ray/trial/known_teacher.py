"""Whether a teacher that was not trained here knows the images it is to answer for.

Weights fit a network by their shapes alone. A teacher of other classes, of the same classes in another order, read with
another normalisation, or never trained, runs through everything; and its student agrees with it. So it is asked to name
train images before anything is written. All of it is our choice.
Letters: N images, C channels, K classes.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from condkd_ray.core.method import InputError
from condkd_ray.data.datasets import CONSTANTS, Constants, Dataset, RealImages, own_constants
from condkd_ray.methods.recognition import Recognition, asked_each, choose, named, recognition, sign_test
from condkd_ray.models.cost import cost
from condkd_ray.models.teacher import Teacher

FEW_EACH = 10
"""With fewer train images in some class, held-out ones are asked for too: nothing is chosen by them."""
TRIED = 500
"""Of these, with which each other normalisation is compared."""
AFFORDABLE = 4e11
"""Multiply-adds that asking may take, ten seconds or so of one core, and a quarter of it to try one normalisation. At
least `LEAST` images are asked for, and `LEAST_TRIED` tried with, in any case. Measured: 4 CPU s for ResNet-20 at 32x32
with 1000 images and all normalisations tried."""
LEAST, LEAST_TRIED = 200, 100
TOLD, REFUSED = 0.03, 0.1
"""Gain of another normalisation, in balanced accuracy, from which it is told, and from which it is refused."""
SHORT = 0.05
"""By how much less than its card promises is told. Less than half of what is promised above chance is refused."""
IMAGENET: Constants = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CAUSES = (
    "another --mean and --std or --size than it was trained with, images of other classes, or weights that were never "
    "trained"
)
FORCE = "--force-teacher (teacher.force)"


@dataclass(frozen=True)
class Reading:
    """How the teacher's answers fit when it reads images normalised by `mean` and `std`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    answers: Tensor
    """(N,) int64."""
    labels: Tensor
    num_classes: int

    @cached_property
    def found(self) -> Recognition:
        """In the given order of the classes."""
        return recognition(self.answers, self.labels, self.num_classes)

    @property
    def reordered(self) -> bool:
        """Whether another order fits for certain, and so well that the teacher knows the images in it.

        Classes of an untrained network fit some order better than chance, too.
        """
        return self.found.order is not None and self.found.ordered > self.found.least

    @property
    def best(self) -> float:
        """Balanced accuracy in the order that fits."""
        return self.found.ordered if self.reordered else self.found.share

    @property
    def right(self) -> Tensor:
        """(N,) whether each image is named right in that order."""
        order = self.found.order if self.reordered else None
        return (self.answers if order is None else torch.tensor(order)[self.answers]) == self.labels

    @property
    def flags(self) -> str:
        """How to give this normalisation."""
        mean, std = (" ".join(f"{value:.6g}" for value in values) for values in (self.mean, self.std))
        return f"--mean {mean} --std {std} (data.mean, data.std)"


@dataclass(frozen=True)
class Interview:
    """What came of asking a teacher."""

    what: str
    """The images, in words."""
    number: int
    """Of the images."""
    given: Reading
    better: Reading | None
    """With the normalisation that fits better for certain, on `TRIED` of the images."""
    gain: float
    """Of that one, in balanced accuracy."""
    fresh: tuple[str, ...]
    """Names of the BN layers that have never seen an image."""
    layers: int
    """Number of BN layers."""
    names: tuple[str, ...]
    """Of the classes, in the data's order."""
    order: tuple[int, ...]
    """Labels of the classes in the order of its own outputs, as far as is known."""
    promised: float | None
    """The test accuracy that its card tells."""
    in_folders: bool
    """Whether a `classes.txt` in the images' folder sets their order too."""
    handed: bool = False
    """True for a teacher that was handed over as an object: its message then names arguments, and no flags."""

    @property
    def found(self) -> Recognition:
        """As things were given."""
        return self.given.found

    @property
    def refused(self) -> bool:
        """Whether the teacher is not to be believed as it is given."""
        unknown = self.found.verdict == "unknown" and not self._as_promised
        unlikely = unknown or (bool(self.fresh) and self.found.verdict != "known")
        return unlikely or self.given.reordered or self.gain >= REFUSED or self._far_below

    @property
    def _as_promised(self) -> bool:
        """Whether it is as weak as its card says, but not as one that knows nothing."""
        return self.promised is not None and self.promised <= self.found.high and self.found.beats_chance

    @property
    def _far_below(self) -> bool:
        chance = 1 / self.found.num_classes
        return self.promised is not None and self.found.high - chance < (self.promised - chance) / 2

    @property
    def message(self) -> str:
        """Of the refusal: what was found, what is accepted, the likely cause, and what to give instead."""
        least = self.found.least
        wanted = f"more than {least:.3f} of {len(self.names)} classes in the teacher's order"
        if self.found.share > least and (self.given.reordered or self.gain >= REFUSED):
            wanted = "the classes in the teacher's order, and the normalisation it was trained with"
        if self.promised is not None:
            wanted = f"{wanted}, and near the {self.promised:.3f} that its card promises"
        said = f"teacher's accuracy on {self.what} is {self.found.share:.3f}; accepted: {wanted}"
        return f"{said}; {self.cause}; or {FORCE}"

    @property
    def cause(self) -> str:
        """What the answers say of it, or the likely causes."""
        if len(self.fresh) == self.layers > 0 and self.found.verdict != "known":
            return self._never_seen
        if self.better is not None:
            share, ordered = self.better.best, self._ordered(self.better) if self.better.reordered else ""
            remedy = f"with {self._remedy(self.better)} it would be {share:.3f}"
            other = f"another --mean and --std than it was trained with: {remedy}"
            return f"likely causes: {other}, {ordered}".removesuffix(", ")
        if self.given.reordered and self._sure_of_order:
            return self._ordered(self.given)
        causes = f"likely causes: {CAUSES}"
        if self.given.reordered:
            causes += f", or another order of the classes: {self._ordered(self.given)}"
        return f"{self._never_seen}; {causes}" if self.fresh else causes

    @property
    def _sure_of_order(self) -> bool:
        """Whether nothing but the order is the cause: a teacher of other classes fits the best order a little, too."""
        chance = 1 / self.found.num_classes
        return self.found.verdict == "known" or self.found.ordered > (1 + chance) / 2

    @property
    def _never_seen(self) -> str:
        which = "its" if len(self.fresh) == self.layers else f"{len(self.fresh)} of its {self.layers}"
        whose = "weights of a network that was never trained, or that were saved without these statistics"
        return f"{which} BN layers have never seen an image (running means 0, variances 1): {whose}"

    def _remedy(self, reading: Reading) -> str:
        """How to give this normalisation."""
        if not self.handed:
            return reading.flags
        mean, std = ([float(f"{value:.6g}") for value in values] for values in (reading.mean, reading.std))
        return f"mean={mean}, std={std} of Teacher.from_module"

    def _ordered(self, reading: Reading) -> str:
        if self.handed and reading.found.order:
            labels = list(reading.found.order)
            return f"in another order of its outputs it would be {reading.best:.3f}: give teacher.in_order({labels})"
        order = [self.names[reading.found.order[place]] for place in self.order] if reading.found.order else []
        given = f"--class-order {shlex.join(order)} (teacher.class_order)"
        plain = self.in_folders and self.order == tuple(range(len(self.names)))
        given = f"write that to its classes.txt, a name a line, or give {given}" if plain else given
        return f"in the order {', '.join(order)} it would be {reading.best:.3f}: {given}"

    @property
    def sentence(self) -> str:
        """What a user is told of a teacher that is not refused."""
        found, only = self.found, ""
        share = f"{found.share:.1%} of {self.what} right (95 % interval {found.low:.1%} to {found.high:.1%})"
        if found.verdict != "known":
            only = f"; that does not show that it knows them: with more than {found.least:.1%} it would"
        said = f"the teacher names {share}{only}"
        if self.promised is not None:
            short = found.high < self.promised - SHORT
            said += f"; its card promises {self.promised:.1%}" + short * ": this is far less, of images it should know"
        if self.better is not None:
            said += f"; with {self._remedy(self.better)} it would be {self.better.best:.1%}"
        # It knows the images all the same: BN may be folded into the weights.
        fresh = f"{self._never_seen}; an inversion that matches them has nothing to match"
        return f"{said}; {fresh}" if self.fresh else said


def interview(
    teacher: Teacher,
    dataset: Dataset,
    *,
    what: str = "",
    order: Sequence[int] = (),
    in_folders: bool = False,
    promised: float | None = None,
    handed: bool = False,
) -> Interview:
    """Ask the teacher to name images of `dataset`, train's unless these are few, the same ones every time.

    `what`: the images, in words, if it is more than their number; `order`: in which its outputs were before they were
    put into the data's; others: see `Interview`.
    """
    affordable = int(AFFORDABLE / cost(teacher.network, dataset.image_shape).multiply_adds)
    images = _asked(dataset, max(LEAST, affordable))
    given = _read(teacher, images, (teacher.mean, teacher.std))
    better, gain = None, 0.0
    if given.best <= 1 - TOLD:  # else there is nothing to be gained
        few = max(1, min(TRIED, max(LEAST_TRIED, affordable // 4)) // teacher.num_classes)
        tried = images[choose(images.labels, few, seed=0)]
        better, gain = _better(teacher, tried, own_constants(dataset.train.pixels))
    return Interview(
        what=what or f"{len(images)} images of {dataset.name}",
        number=len(images),
        given=given,
        better=better,
        gain=gain,
        fresh=fresh_bn(teacher),
        layers=len(teacher.bn_inputs),
        names=dataset.class_names,
        order=tuple(order) or tuple(range(teacher.num_classes)),
        promised=promised,
        in_folders=in_folders,
        handed=handed,
    )


def check_known(teacher: Teacher, dataset: Dataset, *, force: bool, **about: object) -> str:
    """What the user is to be told of `interview`. Raises `InputError` where it speaks against the teacher.

    With `force` that is told, too.
    """
    asked = interview(teacher, dataset, **about)  # type: ignore[arg-type]
    if asked.refused and not force:
        raise InputError(asked.message)
    return f"taken by force: {asked.message.removesuffix(f'; or {FORCE}')}" if asked.refused else asked.sentence


def fresh_bn(teacher: Teacher) -> tuple[str, ...]:
    """Names of the BN layers whose statistics are those of a new network: mean 0 and variance 1 in all channels."""
    (mean, var), inside = teacher.bn
    fresh = ((inside == 0) | ((mean == 0) & (var == 1))).all(1).tolist()
    return tuple(name for name, new in zip(teacher.bn_inputs, fresh, strict=True) if new)


def _asked(dataset: Dataset, most: int) -> RealImages:
    """The images to be named: of each class as many, and of all no more than `most`, but for one a class."""
    train, test = dataset.train, dataset.test
    each = asked_each(dataset.num_classes, most)
    if int(train.labels.bincount(minlength=dataset.num_classes).min()) < min(each, FEW_EACH):
        pixels, labels = (torch.cat(parts) for parts in ((train.pixels, test.pixels), (train.labels, test.labels)))
        train = RealImages(pixels, labels)
    return train[choose(train.labels, each, seed=0)]


def _read(teacher: Teacher, images: RealImages, constants: Constants) -> Reading:
    answers = named(teacher.network, images, *constants, teacher.device).cpu()
    return Reading(*constants, answers, images.labels, teacher.num_classes)


def _better(teacher: Teacher, images: RealImages, own: Constants) -> tuple[Reading | None, float]:
    """The usual normalisation that fits the images better than the teacher's for certain, and its gain."""
    given = _read(teacher, images, (teacher.mean, teacher.std))
    others = [_read(teacher, images, constants) for constants in _usual((teacher.mean, teacher.std), own)]
    most = max(other.best for other in others)
    # Of those that fit about equally the first, which is the likeliest.
    found = next(other for other in others if other.best > most - 0.01)
    won, lost = (int((one & ~two).sum()) for one, two in ((found.right, given.right), (given.right, found.right)))
    gain, knows = found.best - given.best, found.best > found.found.least
    return (found, gain) if knows and gain >= TOLD and sign_test(won, lost, among=len(others)) else (None, 0.0)


def _usual(given: Constants, own: Constants) -> Sequence[Constants]:
    """Usual normalisations of images of as many channels, the images' own first, without the one that is given."""
    channels = len(given[0])
    known = [constants for constants in (*CONSTANTS.values(), IMAGENET) if len(constants[0]) == channels]
    # The same for all channels: of [-1, 1], of [0, 1] and of 0 to 255.
    flat: list[Constants] = [((m,) * channels, (s,) * channels) for m, s in ((0.5, 0.5), (0.0, 1.0), (0.0, 1 / 255))]
    own = own[0], tuple(max(std, 1e-3) for std in own[1])
    return [one for one in dict.fromkeys([own, *known, *flat]) if not _alike(one, given)]


def _alike(one: Constants, other: Constants) -> bool:
    return all(torch.allclose(torch.tensor(a), torch.tensor(b), atol=1e-3) for a, b in zip(one, other, strict=True))

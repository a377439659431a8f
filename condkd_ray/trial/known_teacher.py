"""Checks that a user's own teacher recognises the images of the data set.

Loading weights checks only their shapes. A teacher trained on other classes, on the same classes in another order, with
another normalisation, or not at all, would run without any error, and its student would agree with it. So would one
that returns probabilities in place of logits. Therefore the teacher classifies some train images, or their pixels,
before anything is written. All of this is our choice.
Letters: N images, C channels, K classes.
"""

import math
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from condkd_ray.core.method import InputError
from condkd_ray.core.task import is_dense
from condkd_ray.data.datasets import CONSTANTS, Constants, Dataset, RealImages, own_constants
from condkd_ray.methods.recognition import (
    Recognition,
    best_order,
    choose,
    max_images_per_class,
    predicted_classes,
    recognition,
    sign_test,
    some,
)
from condkd_ray.methods.scores import PIXELS, constant_iou, mean_iou, predicted_confusion
from condkd_ray.models.cost import cost
from condkd_ray.models.teacher import Teacher

FEW_EACH = 10
"""If a class has fewer train images than this, test images are used as well. No method or setting depends on the
result."""
TRIED = 500
"""Number of images with which each alternative normalisation is compared."""
AFFORDABLE = 4e11
"""Multiply-adds that the check may take, about ten seconds on one core; each normalisation may take a quarter of them.
In any case at least `LEAST` images are classified, `LEAST_TRIED` for each normalisation. Measured: 4 CPU s for
ResNet-20 at 32x32 with 1000 images and all normalisations."""
LEAST, LEAST_TRIED = 200, 100
LEAST_DENSE, LEAST_DENSE_TRIED = 20, 10
"""Likewise in segmentation, where each image has thousands of labels."""
REPORTED, REFUSED = 0.03, 0.1
"""Gains in balanced accuracy, or mean IoU, from which another normalisation is reported, and from which the teacher is
refused."""
SHORT = 0.05
"""An accuracy that is lower than the card's by more than this is reported. The teacher is refused if its margin over
chance is less than half of the margin that the card states."""
IMAGENET: Constants = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CAUSES = (
    "another --mean and --std or --size than it was trained with, images of other classes, or weights that were never "
    "trained"
)
FORCE = "--force-teacher (teacher.force)"
NEAR = 1e-3
"""Outputs between 0 and 1 whose sums over the classes are this close to 1 for all images are probabilities."""


@dataclass(frozen=True)
class Reading:
    """Predictions of the teacher for images normalised by `mean` and `std`, and their agreement with the labels."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    predicted: Tensor
    """(N,) int64, the predicted classes."""
    labels: Tensor
    num_classes: int

    @cached_property
    def found(self) -> Recognition:
        """Accuracy with the classes in the given order, and a better order if there is one."""
        return recognition(self.predicted, self.labels, self.num_classes)

    @property
    def reordered(self) -> bool:
        """True if the labels fit significantly better in another class order, and well above chance there.

        The second condition is needed because even an untrained network fits some order better than chance.
        """
        return self.found.order is not None and self.found.ordered > self.found.least

    @property
    def best(self) -> float:
        """Balanced accuracy in the class order that fits best."""
        return self.found.ordered if self.reordered else self.found.share

    @property
    def right(self) -> Tensor:
        """(N,) bool, true if the prediction is correct in that order."""
        order = self.found.order if self.reordered else None
        return (self.predicted if order is None else torch.tensor(order)[self.predicted]) == self.labels


@dataclass
class Outputs:
    """Range of a network's outputs and of their sums over the classes, for all images or pixels so far.

    Scalars on the network's device, (low, high); NaN if an output was NaN.
    """

    values: list[Tensor] = field(default_factory=list)
    sums: list[Tensor] = field(default_factory=list)

    def add(self, logits: Tensor) -> None:
        """Add outputs (B, K) or (B, K, H, W). Does not wait for the device."""
        for kept, new in ((self.values, logits), (self.sums, logits.sum(1, dtype=torch.float32))):
            low, high = (value.float() for value in new.aminmax())
            kept[:] = [torch.minimum(kept[0], low), torch.maximum(kept[1], high)] if kept else [low, high]

    @property
    def problem(self) -> str:
        """What is wrong if the outputs are probabilities, and what is accepted; otherwise empty."""
        (low, high), (least, most) = ([value.item() for value in kept] for kept in (self.values, self.sums))
        if not (low >= -NEAR and high <= 1 + NEAR and abs(least - 1) <= NEAR and abs(most - 1) <= NEAR):
            return ""
        found = f"probabilities, from {low:.3g} to {high:.3g} with sums over the classes from {least:.4f} to {most:.4f}"
        return f"{found}; accepted: logits: return the values before the softmax"


@contextmanager
def _outputs_of(network: nn.Module) -> Iterator[Outputs]:
    """Yield the range of the outputs of all forward passes of `network` in the context."""
    seen = Outputs()

    def add(_: nn.Module, __: object, output: Tensor) -> None:
        seen.add(output)

    with network.register_forward_hook(add):
        yield seen


@dataclass(frozen=True)
class Findings:
    """Result of examining a teacher."""

    what: str
    """Description of the images."""
    number: int
    """Number of images."""
    outputs: Outputs
    """Range of the teacher's outputs for them."""
    given: Reading
    better: Reading | None
    """Predictions with a normalisation that fits significantly better, on `TRIED` of the images; None if there is
    none."""
    gain: float
    """Gain of that normalisation in balanced accuracy; 0 without one."""
    fresh: tuple[str, ...]
    """Names of the BN layers whose statistics are those of an untrained network."""
    layers: int
    """Number of BN layers."""
    names: tuple[str, ...]
    """Class names in the order of the data set."""
    order: tuple[int, ...]
    """For each output of the network, the label of its class, as far as the user has given the order."""
    stated: float | None
    """The test accuracy that the teacher's card states, as a fraction."""
    in_folders: bool
    """True if a `classes.txt` in the image folder could set the class order."""
    in_python: bool = False
    """True for a teacher that was passed as an object: its message then names arguments instead of flags."""

    @property
    def found(self) -> Recognition:
        """Accuracy with the given normalisation and class order."""
        return self.given.found

    @property
    def refused(self) -> bool:
        """True if the teacher must not be used as it is given."""
        unknown = self.found.verdict == "unknown" and not self._as_stated
        unlikely = unknown or (bool(self.fresh) and self.found.verdict != "known")
        return unlikely or self.given.reordered or self.gain >= REFUSED or self._far_below

    @property
    def _as_stated(self) -> bool:
        """True if the accuracy agrees with a low accuracy stated on the card and is above chance."""
        return self.stated is not None and self.stated <= self.found.high and self.found.beats_chance

    @property
    def _far_below(self) -> bool:
        chance = 1 / self.found.num_classes
        return self.stated is not None and self.found.high - chance < (self.stated - chance) / 2

    @property
    def message(self) -> str:
        """Error message: what was found, what is accepted, the likely cause, and the flags that would help."""
        least = self.found.least
        share, bound = _apart(self.found.share, least)
        wanted = f"more than {bound} of {len(self.names)} classes in the teacher's order"
        if self.found.share > least and (self.given.reordered or self.gain >= REFUSED):
            wanted = "the classes in the teacher's order, and the normalisation it was trained with"
        if self.stated is not None:
            wanted = f"{wanted}, and near the {self.stated:.3f} that its card states"
        found = f"teacher's accuracy on {self.what} is {share}; accepted: {wanted}"
        return f"{found}; {self.cause}; or {FORCE}"

    @property
    def cause(self) -> str:
        """The cause that the predictions prove, or the likely causes."""
        if len(self.fresh) == self.layers > 0 and self.found.verdict != "known":
            return self._untrained_bn
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
        return f"{self._untrained_bn}; {causes}" if self.fresh else causes

    @property
    def _sure_of_order(self) -> bool:
        """True if the order alone explains the errors: a teacher of other classes also fits its best order a little."""
        chance = 1 / self.found.num_classes
        return self.found.verdict == "known" or self.found.ordered > (1 + chance) / 2

    @property
    def _untrained_bn(self) -> str:
        return _untrained_bn(self.fresh, self.layers)

    def _remedy(self, reading: Reading) -> str:
        return _setting(reading.mean, reading.std, self.in_python)

    def _ordered(self, reading: Reading) -> str:
        if self.in_python and reading.found.order:
            labels = list(reading.found.order)
            return f"in another order of its outputs it would be {reading.best:.3f}: give teacher.in_order({labels})"
        order = [self.names[reading.found.order[label]] for label in self.order] if reading.found.order else []
        given = f"--class-order {shlex.join(order)} (teacher.class_order)"
        plain = self.in_folders and self.order == tuple(range(len(self.names)))
        given = f"write that to its classes.txt, one name per line, or give {given}" if plain else given
        return f"in the order {', '.join(order)} it would be {reading.best:.3f}: {given}"

    @property
    def sentence(self) -> str:
        """One sentence for the log about a teacher that is not refused."""
        found, caveat = self.found, ""
        share = f"{found.share:.1%} of {self.what} correctly (95 % interval {found.low:.1%} to {found.high:.1%})"
        if found.verdict != "known":
            caveat = f"; this does not prove that it recognises them: more than {found.least:.1%} would"
        text = f"the teacher classifies {share}{caveat}"
        if self.stated is not None:
            short = found.high < self.stated - SHORT
            text += f"; its card states {self.stated:.1%}" + short * ": the measured accuracy is far lower"
        if self.better is not None:
            text += f"; with {self._remedy(self.better)} it would be {self.better.best:.1%}"
        # Not an error in an accurate teacher, whose BN may be folded into the weights.
        fresh = f"{self._untrained_bn}; an inversion that matches BN statistics has nothing to match"
        return f"{text}; {fresh}" if self.fresh else text


@dataclass(frozen=True)
class PixelFindings:
    """Result of examining a segmentation teacher by the labels of pixels."""

    what: str
    """Description of the images."""
    outputs: Outputs
    """Range of the teacher's outputs for them."""
    found: float
    """Mean IoU over the classes that have pixels."""
    least: float
    """Mean IoU of the best constant prediction: what a teacher must exceed."""
    order: tuple[int, ...]
    """For each output of the network, the label of its class, in the order that fits best."""
    ordered: float
    """Mean IoU in that order."""
    better: Constants | None
    """Another normalisation whose mean IoU is higher by `REPORTED` or more; None if there is none."""
    normalised: float
    """Its mean IoU, in the order that fits best, on fewer images; 0 without one."""
    gain: float
    """Its gain in mean IoU on these images; 0 without one."""
    fresh: tuple[str, ...]
    layers: int
    """As in `Findings`."""
    names: tuple[str, ...]
    """Class names in the order of the data set."""
    stated: float | None
    """The test mean IoU that the teacher's card states."""
    in_python: bool = False

    @property
    def reordered(self) -> bool:
        """True if another order of the classes fits far better."""
        return self.ordered - self.found >= REFUSED

    @property
    def refused(self) -> bool:
        """True if the teacher must not be used as it is given."""
        return self.found <= self.least or self.reordered or self.gain >= REFUSED or self._far_below

    @property
    def _far_below(self) -> bool:
        return self.stated is not None and self.found - self.least < (self.stated - self.least) / 2

    @property
    def message(self) -> str:
        """Error message: what was found, what is accepted, the likely cause, and the flags that would help."""
        iou, least = _apart(self.found, self.least)
        wanted = f"more than {least}, that of the best constant prediction"
        if self.found > self.least and (self.reordered or self.gain >= REFUSED):
            wanted = "the classes in the teacher's order, and the normalisation it was trained with"
        stated = "" if self.stated is None else f", and near the {self.stated:.3f} that its card states"
        found = f"teacher's mean IoU on {self.what} is {iou}; accepted: {wanted}{stated}"
        return f"{found}; {self._cause}; or {FORCE}"

    @property
    def _cause(self) -> str:
        cause = CAUSES
        if self.better is not None:
            cause = f"another --mean and --std than it was trained with: {self._normalised}"
        elif self.reordered and self.ordered > self.least:
            cause = self._ordered
        cause = f"likely causes: {cause}"
        return f"{_untrained_bn(self.fresh, self.layers)}; {cause}" if self.fresh else cause

    @property
    def _normalised(self) -> str:
        assert self.better is not None
        return f"with {_setting(*self.better, self.in_python)} it would be {self.normalised:.3f}"

    @property
    def _ordered(self) -> str:
        names = [self.names[label] for label in self.order]
        remedy = f"--class-order {shlex.join(names)} (teacher.class_order)"
        remedy = f"teacher.in_order({list(self.order)})" if self.in_python else remedy
        return f"in another order of the classes it would be {self.ordered:.3f}: give {remedy}"

    @property
    def sentence(self) -> str:
        """One sentence for the log about a teacher that is not refused."""
        text = f"the teacher segments {self.what} with a mean IoU of {self.found:.3f} (best constant: {self.least:.3f})"
        if self.stated is not None:
            short = self.found < self.stated - SHORT
            text += f"; its card states {self.stated:.3f}" + short * ": the measured mean IoU is far lower"
        text += f"; {self._normalised}" if self.better is not None else ""
        return f"{text}; {_untrained_bn(self.fresh, self.layers)}" if self.fresh else text


def _apart(found: float, least: float) -> tuple[str, str]:
    """Return both numbers with three decimals, or with as many more, up to 9, as it takes to tell them apart."""
    texts = [(f"{found:.{digits}f}", f"{least:.{digits}f}") for digits in range(3, 10)]
    return next((pair for pair in texts if pair[0] != pair[1]), (f"{texts[0][0]}, not more", texts[0][1]))


def _untrained_bn(fresh: Sequence[str], layers: int) -> str:
    which = "its" if len(fresh) == layers else f"{len(fresh)} of its {layers}"
    cause = "the network was never trained, or its weights were saved without these statistics"
    return f"{which} BN layers have untrained statistics (running means 0, variances 1): {cause}"


def _setting(mean: Sequence[float], std: Sequence[float], in_python: bool) -> str:
    """Return the flags and config fields, or the arguments in Python, that set this normalisation."""
    if in_python:
        means, stds = ([float(f"{value:.6g}") for value in values] for values in (mean, std))
        return f"mean={means}, std={stds} of Teacher.from_module"
    means, stds = (" ".join(f"{value:.6g}" for value in values) for values in (mean, std))
    return f"--mean {means} --std {stds} (data.mean, data.std)"


def examine_pixels(
    teacher: Teacher,
    dataset: Dataset,
    *,
    what: str = "",
    order: Sequence[int] = (),
    in_folders: bool = False,
    stated: float | None = None,
    in_python: bool = False,
) -> PixelFindings:
    """Predict the pixels of some train images of `dataset` with a segmentation teacher, always of the same images.

    Arguments: as in `examine`; `stated` is a mean IoU.
    """
    side = math.prod(dataset.image_shape[1:])
    affordable = int(AFFORDABLE / cost(teacher.network, dataset.image_shape).multiply_adds)
    images = some(dataset.train, min(PIXELS, max(LEAST_DENSE, affordable) * side), seed=0)
    given = teacher.mean, teacher.std

    def counts(images: RealImages, constants: Constants) -> Tensor:
        return predicted_confusion(teacher.network, images, *constants, teacher.num_classes, teacher.device).cpu()

    with _outputs_of(teacher.network) as outputs:
        whole = counts(images, given)
    found, (labels, ordered) = mean_iou(whole).item(), best_order(whole)
    better, normalised, gain = None, 0.0, 0.0
    if ordered <= 1 - REPORTED:  # otherwise no normalisation can gain enough
        tried = images[: max(LEAST_DENSE_TRIED, min(len(images), affordable // 4))]
        others = {one: best_order(counts(tried, one))[1] for one in _usual(given, own_constants(dataset.train.pixels))}
        # The normalisations are sorted by likelihood: take the first of those that fit about equally well.
        best = next(one for one, iou in others.items() if iou > max(others.values()) - 0.01)
        more = others[best] - best_order(counts(tried, given))[1]
        better, normalised, gain = (best, others[best], more) if more >= REPORTED else (None, 0.0, 0.0)
    former = tuple(order) or tuple(range(teacher.num_classes))
    return PixelFindings(
        what=what or f"{len(images)} images of {dataset.name}",
        outputs=outputs,
        found=found,
        least=constant_iou(whole),
        order=tuple(labels[label] for label in former),
        ordered=ordered,
        better=better,
        normalised=normalised,
        gain=gain,
        fresh=fresh_bn(teacher),
        layers=len(teacher.bn_inputs),
        names=dataset.class_names,
        stated=stated,
        in_python=in_python,
    )


def examine(
    teacher: Teacher,
    dataset: Dataset,
    *,
    what: str = "",
    order: Sequence[int] = (),
    in_folders: bool = False,
    stated: float | None = None,
    in_python: bool = False,
) -> Findings:
    """Classify images of `dataset` with the teacher, always the same ones; train images unless a class has few of them.

    `what`: description of the images, if it is more than their number. `order`: for each output of the network, before
    the outputs were sorted, the label of its class. `in_folders`, `stated`, `in_python`: see `Findings`.
    """
    affordable = int(AFFORDABLE / cost(teacher.network, dataset.image_shape).multiply_adds)
    images = _chosen_images(dataset, max(LEAST, affordable))
    with _outputs_of(teacher.network) as outputs:
        given = _read(teacher, images, (teacher.mean, teacher.std))
    better, gain = None, 0.0
    if given.best <= 1 - REPORTED:  # otherwise no normalisation can gain enough
        few = max(1, min(TRIED, max(LEAST_TRIED, affordable // 4)) // teacher.num_classes)
        tried = images[choose(images.labels, few, seed=0)]
        better, gain = _better(teacher, tried, own_constants(dataset.train.pixels))
    return Findings(
        what=what or f"{len(images)} images of {dataset.name}",
        number=len(images),
        outputs=outputs,
        given=given,
        better=better,
        gain=gain,
        fresh=fresh_bn(teacher),
        layers=len(teacher.bn_inputs),
        names=dataset.class_names,
        order=tuple(order) or tuple(range(teacher.num_classes)),
        stated=stated,
        in_folders=in_folders,
        in_python=in_python,
    )


def check_known(teacher: Teacher, dataset: Dataset, *, force: bool, **about: object) -> str:
    """Return the log sentence about the teacher. Raises `InputError` if it must not be used.

    It is examined by `examine`, in segmentation by `examine_pixels`, and its outputs must not be probabilities. With
    `force` there is no error: the messages of the errors are returned instead.
    """
    find: Any = examine_pixels if is_dense(dataset.task) else examine
    findings: Findings | PixelFindings = find(teacher, dataset, **about)
    problems = [findings.message] if findings.refused else []
    if problem := findings.outputs.problem:
        problems.append(f"teacher's outputs for {findings.what} are {problem}; or {FORCE}")
    if not problems:
        return findings.sentence
    if not force:
        raise InputError(problems[0])
    taken = "; ".join(text.removesuffix(f"; or {FORCE}") for text in problems)
    return f"taken by force: {taken}"


def fresh_bn(teacher: Teacher) -> tuple[str, ...]:
    """Return the names of the BN layers with the statistics of a new network: mean 0 and variance 1 in all channels."""
    (mean, var), inside = teacher.bn
    fresh = ((inside == 0) | ((mean == 0) & (var == 1))).all(1).tolist()
    return tuple(name for name, new in zip(teacher.bn_inputs, fresh, strict=True) if new)


def _chosen_images(dataset: Dataset, most: int) -> RealImages:
    """Choose equally many images of each class, at least one, and at most `most` in total if that allows it."""
    train, test = dataset.train, dataset.test
    each = max_images_per_class(dataset.num_classes, most)
    if int(train.labels.bincount(minlength=dataset.num_classes).min()) < min(each, FEW_EACH):
        pixels, labels = (torch.cat(parts) for parts in ((train.pixels, test.pixels), (train.labels, test.labels)))
        train = RealImages(pixels, labels)
    return train[choose(train.labels, each, seed=0)]


def _read(teacher: Teacher, images: RealImages, constants: Constants) -> Reading:
    predicted = predicted_classes(teacher.network, images, *constants, teacher.device).cpu()
    return Reading(*constants, predicted, images.labels, teacher.num_classes)


def _better(teacher: Teacher, images: RealImages, own: Constants) -> tuple[Reading | None, float]:
    """Find a common normalisation that fits the images significantly better than the teacher's; return it and its gain.

    Returns (None, 0.0) if there is none.
    """
    given = _read(teacher, images, (teacher.mean, teacher.std))
    others = [_read(teacher, images, constants) for constants in _usual((teacher.mean, teacher.std), own)]
    most = max(other.best for other in others)
    # The normalisations are sorted by likelihood: take the first of those that fit about equally well.
    found = next(other for other in others if other.best > most - 0.01)
    won, lost = (int((one & ~two).sum()) for one, two in ((found.right, given.right), (given.right, found.right)))
    gain, recognised = found.best - given.best, found.best > found.found.least
    return (found, gain) if recognised and gain >= REPORTED and sign_test(won, lost, among=len(others)) else (None, 0.0)


def _usual(given: Constants, own: Constants) -> Sequence[Constants]:
    """Return common normalisations for this number of channels, the data's own first, without the given one."""
    channels = len(given[0])
    known = [constants for constants in (*CONSTANTS.values(), IMAGENET) if len(constants[0]) == channels]
    # Equal for all channels: for pixels in [-1, 1], in [0, 1] and in 0 to 255.
    flat: list[Constants] = [((m,) * channels, (s,) * channels) for m, s in ((0.5, 0.5), (0.0, 1.0), (0.0, 1 / 255))]
    own = own[0], tuple(max(std, 1e-3) for std in own[1])
    return [one for one in dict.fromkeys([own, *known, *flat]) if not _alike(one, given)]


def _alike(one: Constants, other: Constants) -> bool:
    return all(torch.allclose(torch.tensor(a), torch.tensor(b), atol=1e-3) for a, b in zip(one, other, strict=True))

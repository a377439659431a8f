"""Checks of a condensed set from elsewhere: whether the teacher can use it, and in what space its pixels are.

The pixels determine the space if their evidence suffices. Otherwise the teacher classifies the same images in each
space that the pixels leave open, and a space must give significantly more correct predictions, by a paired sign test. A
set that is certainly wrong is refused, with the cause that predictions or pixels support; doubts are reported with the
flag that resolves them. All of it is our choice. The teacher classifies no real image here, so nothing is chosen by
test images. Letters: N images, C channels, H W height and width, K classes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from condkd_ray.core.method import require
from condkd_ray.core.samples import Samples
from condkd_ray.data.condensed_sets import StoredSet
from condkd_ray.methods.condensation.condensation import class_table
from condkd_ray.methods.condensation.pixel_space import (
    CERTAIN,
    ImageStatistics,
    Space,
    evidence,
    image_statistics,
    known_spaces,
)
from condkd_ray.methods.recognition import Recognition, confusion_cycles, recognition, sign_test
from condkd_ray.models.teacher import Teacher

MAX_IMAGES, MAX_VALUES = 1000, 6_000_000
"""Limit of the set's images that the teacher classifies, equally many per class; limit of their pixel values that are
analysed."""
REFUTED = 12.0
"""Nats of evidence with which the pixels alone refute a space, even a declared one."""
GAINED = 0.05
"""Share of the images that another space must add to the correctly classified ones to be preferred."""
WHITENED = 0.8
"""Correlation of neighbouring pixels, as a share of real images', below which images count as whitened. CIFAR-10 after
ZCA has 0.24 to 0.69, depending on what is added to the eigenvalues; published sets that are not whitened have 0.83 or
more."""
UNUSUAL = 0.5, 2.5
"""Limits of the pixels' standard deviation, as a multiple of real images', outside which it is reported."""
MAX_LISTED = 20
"""Number of classes up to which an order is written out in full."""
FORCED = "or --force-condensed (in a config: space, mean, std, order and force of condensation)"


@dataclass(frozen=True)
class Subject:
    """Name of the checked set for messages, and the properties of the teacher it is for."""

    what: str
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()

    def called(self, k: int) -> str:
        """Return number and, if there is one, name of a class."""
        name = self.class_names[k] if self.class_names else str(k)
        return str(k) if name == str(k) else f"{k} ({name})"


@dataclass(frozen=True)
class ChosenSpace:
    """The space of a set, and sentences for the user."""

    space: Space
    notes: tuple[str, ...]


def choose_space(
    stored: StoredSet,
    subject: Subject,
    *,
    whole: Tensor | None = None,
    real: Samples | None = None,
    teacher: Teacher | None = None,
    declared: Space | None = None,
    order: tuple[int, ...] | None = None,
    force: bool = False,
) -> ChosenSpace:
    """Choose the space and compare the teacher's predictions with the labels; without `teacher`, use the pixels only.

    `whole`: the file's own pixels, if `stored` contains parts cut from them and enlarged. `real`: images in the
    teacher's space for comparison. `order`: the class order in which the labels were given. Raises `InputError`, unless
    `force`, if the set is certainly wrong: in another space than `declared`, normalised twice, its classes in another
    order, or unknown to the teacher.
    """
    pixels = stored.pixels if whole is None else whole
    analysis = _Analysis(stored, pixels, subject, _real_statistics(real, subject), teacher, declared)
    notes, refused = [], _against(analysis, declared)
    if stored.soft:
        notes.append(
            f"{subject.what}: only the largest class of its soft labels is used; soft targets are the teacher's"
        )
    space = analysis.space if declared is None or (refused and not force) else declared
    if teacher is None:
        summary = f"{subject.what}: read as {space.title}"
    else:
        found = analysis.recognition(space)
        refused = refused or _misordered(analysis, found, space, order) or _unknown(analysis, found, space)
        accuracy = f"the teacher classifies {found.share:.1%} correctly ({_interval(found)})"
        summary = f"{subject.what}: {accuracy}, read as {space.title}"
    if refused is not None:
        require(force, *refused)
        notes.append(f"{subject.what} is taken by force: {refused[0]} is {refused[1]}; {refused[2]}")
    return ChosenSpace(space, (summary + analysis.reason(space), *notes, *analysis.doubts(space)))


Refusal = tuple[str, object, str]
"""Arguments of `require`: what is wrong, its value, and what is accepted."""


@dataclass
class _Analysis:
    """The set's pixels and the teacher's predictions in each space, each computed once."""

    stored: StoredSet
    whole: Tensor
    subject: Subject
    real: ImageStatistics
    teacher: Teacher | None
    declared: Space | None
    _predictions: dict[Space, Tensor] = field(default_factory=dict)

    @cached_property
    def rows(self) -> Tensor:
        """Rows of the analysed images: equally many of each class."""
        labels, num_classes = self.stored.labels, self.subject.num_classes
        table, counts = class_table(labels, num_classes)
        columns = torch.arange(table.shape[1])
        each = max(1, MAX_IMAGES // num_classes)
        return table[(columns < counts[:, None]) & (columns < each)].sort().values

    @property
    def labels(self) -> Tensor:
        return self.stored.labels[self.rows]

    @cached_property
    def pixels(self) -> Tensor:
        """At most `MAX_VALUES` pixel values of some of the file's images."""
        most = max(1, MAX_VALUES // self.whole[0].numel())
        rows = (self.rows // (len(self.stored.labels) // len(self.whole))).unique()
        return self.whole[rows[:: -(-len(rows) // most)]]

    @cached_property
    def nats(self) -> dict[Space, float]:
        """The pixels' evidence for each space, the likeliest first."""
        spaces = known_spaces(self.subject.mean, self.subject.std)
        if self.declared is not None and all(_differ(self.declared, space) for space in spaces):
            spaces.append(self.declared)
        found = {s: evidence(self.pixels, s, self.real, self.subject.mean, self.subject.std) for s in spaces}
        return dict(sorted(found.items(), key=lambda pair: -pair[1]))

    def gap(self, space: Space) -> float:
        """Return the nats by which the evidence for the likeliest space exceeds that for `space`."""
        return max(self.nats.values()) - next(n for s, n in self.nats.items() if not _differ(s, space))

    @cached_property
    def likeliest(self) -> Space:
        return next(iter(self.nats))

    @property
    def lead(self) -> float:
        """Nats by which the likeliest space exceeds the next one that makes a difference to the teacher."""
        return min((self.gap(other) for other in self.unlike(self.likeliest)), default=float("inf"))

    def unlike(self, space: Space) -> list[Space]:
        """Return the other spaces that make a difference to the teacher, the likeliest first."""
        return [other for other in self.nats if other.differs(space, self.subject.std)]

    @cached_property
    def space(self) -> Space:
        """The likeliest space by the pixels, or one with significantly more correct predictions of the teacher."""
        if self.teacher is None:
            # Without a teacher, a second normalisation is assumed only if it is certain.
            sure = self.likeliest.name != "twice" or self.lead > REFUTED
            return self.likeliest if sure else next(space for space in self.nats if space.name != "twice")
        likely = self.recognition(self.likeliest)
        # With labels in another order the accuracy is below chance, so any other space would look better.
        if likely.order is not None:
            return self.likeliest
        near = [other for other in self.unlike(self.likeliest) if self.gap(other) < CERTAIN]
        if (found := self._preferred(near)) is not self.likeliest or likely.verdict == "known":
            return found
        open_ = [other for other in self.unlike(self.likeliest) if self.gap(other) < REFUTED]
        return self._preferred(other for other in open_ if self.recognition(other).verdict == "known")

    def _preferred(self, others: Iterable[Space]) -> Space:
        better = [other for other in others if self.certainly_better(other, self.likeliest)]
        return max(better, key=lambda space: self.recognition(space).share, default=self.likeliest)

    def predictions(self, space: Space) -> Tensor:
        """Return the teacher's classes (N,) of the analysed images."""
        assert self.teacher is not None
        if space not in self._predictions:
            images = space.convert(self.stored.pixels[self.rows], self.subject.mean, self.subject.std)
            self._predictions[space] = self.teacher.batched_logits(images.to(self.teacher.device)).argmax(1).cpu()
        return self._predictions[space]

    def recognition(self, space: Space) -> Recognition:
        return recognition(self.predictions(space), self.labels, self.subject.num_classes)

    def certainly_better(self, space: Space, other: Space) -> bool:
        """Return whether the teacher classifies significantly more images correctly in `space` than in `other`."""
        here, there = (self.predictions(s) == self.labels for s in (space, other))
        won, lost = int((here & ~there).sum()), int((there & ~here).sum())
        return won - lost >= GAINED * len(here) and sign_test(won, lost)

    @property
    def whitened(self) -> str:
        """Message about the sign of whitening, or an empty string."""
        found = image_statistics(self.pixels.float()).neighbours
        if found >= WHITENED * self.real.neighbours:
            return ""
        return (
            f"the correlation of neighbouring pixels is only {found:.2f}, in real images {self.real.neighbours:.2f}: "
            "ZCA-whitened (use the un-whitened copy), or noise"
        )

    def reason(self, space: Space) -> str:
        """Return why the set is read in this space."""
        if self.declared is not None and not _differ(space, self.declared):
            return ", as declared"
        if space is self.likeliest or self.teacher is None:
            near = [other for other in self.nats if _differ(other, space) and self.gap(other) < CERTAIN]
            alike = any(not other.differs(space, self.subject.std) for other in near)
            how = "probably, by its pixels" if self._rivals(space) else "by its pixels"
            return f", {how}{' (constants that hardly differ are indistinguishable)' if alike else ''}"
        likely = self.likeliest
        accuracy = f"as {likely.title} it would classify {self.recognition(likely).share:.1%} correctly"
        return f", by the teacher's predictions: {accuracy}"

    def _rivals(self, space: Space) -> list[Space]:
        """Return the other spaces that neither the pixels nor the teacher rule out."""
        near = [other for other in self.unlike(space) if self.gap(other) < CERTAIN]
        if self.teacher is None:
            return near
        return [other for other in near if space is self.likeliest and not self.certainly_better(space, other)]

    def doubts(self, space: Space) -> list[str]:
        """Return sentences about what remains uncertain."""
        found = self._space_doubts(space) + (self._label_doubts(space) if self.teacher is not None else [])
        found += [self.whitened] if self.whitened else []
        images = space.convert(self.pixels, self.subject.mean, self.subject.std)
        times = images.std().item() / self.real.spread
        if not UNUSUAL[0] < times < UNUSUAL[1]:
            found.append(f"the standard deviation of its pixels is {times:.1f} times that of real images")
        return [f"{self.subject.what}: {text}" for text in found]

    def _space_doubts(self, space: Space) -> list[str]:
        likely = self.space
        if self.declared is not None:
            # Constants that hardly differ are reported too, if the pixels' evidence for them is certain.
            sure = likely.differs(space, self.subject.std) or self.gap(space) > REFUTED
            return [f"it is more likely {likely.title} ({likely.flags})"] if sure and _differ(likely, space) else []
        may = " or ".join(f"{rival.title} ({rival.flags})" for rival in self._rivals(space))
        return [f"it may also be {may}; {space.flags} confirms this choice"] if may else []

    def _label_doubts(self, space: Space) -> list[str]:
        found, called = [], self.subject.called
        if self.recognition(space).verdict != "known":
            found.append("this accuracy is too low to show that the teacher recognises its images")
        right = self.labels[self.predictions(space) == self.labels].bincount(minlength=self.subject.num_classes)
        missed = [called(k) for k in (right == 0).nonzero().flatten().tolist()]
        if missed:
            more = ", ..." if len(missed) > MAX_LISTED else ""
            found.append(f"no image of these classes is classified correctly: {', '.join(missed[:MAX_LISTED])}{more}")
        for cycle in confusion_cycles(self.predictions(space), self.labels, self.subject.num_classes):
            pairs = zip(cycle, cycle[1:] + cycle[:1], strict=True)
            confused = ", ".join(f"{called(predicted)} for {called(k)}" for k, predicted in pairs)
            found.append(
                f"its most frequent predictions are {confused}: swapped labels? --condensed-order corrects them"
            )
        return found


def _differ(space: Space, other: Space) -> bool:
    return (space.mean, space.std) != (other.mean, other.std)


def _real_statistics(real: Samples | None, subject: Subject) -> ImageStatistics:
    """Return the statistics of `real`, or, if it is None, those of images normalised with their own constants."""
    usual = ImageStatistics(torch.zeros(len(subject.mean)), 1.1, 0.9)
    if real is None:
        return usual
    most = max(1, min(MAX_IMAGES, MAX_VALUES // real.images[0].numel()))
    found = image_statistics(real.images[:: -(-len(real) // most)].cpu())
    return found if found.spread > 0 else usual  # images of a single grey value have no statistics


def _interval(found: Recognition) -> str:
    return f"95 % interval {100 * max(found.low, 0):.0f} to {100 * min(found.high, 1):.0f} %"


def _against(analysis: _Analysis, declared: Space | None) -> Refusal | None:
    """Return the refusal if the space is certainly wrong."""
    what, space = f"space of {analysis.subject.what}", analysis.space
    if declared is None:
        twice = space.name == "twice" and (analysis.teacher is not None or analysis.lead > REFUTED)
        accepted = f"images normalised once; {space.flags} accepts them as they are; {FORCED}"
        return (what, space.title + analysis.reason(space), accepted) if twice else None
    if not space.differs(declared, analysis.subject.std):
        return None
    if analysis.teacher is not None and analysis.certainly_better(space, declared):
        shares = [f"{analysis.recognition(s).share:.1%}" for s in (space, declared)]
        why = f"in which the teacher classifies {shares[0]} correctly, in the declared one {shares[1]}"
    elif analysis.gap(declared) - analysis.gap(space) > REFUTED:
        why = "by its pixels"
    else:
        return None
    return what, declared.title, f"{space.title} ({space.flags}), {why}; {FORCED}"


def _misordered(analysis: _Analysis, found: Recognition, space: Space, given: tuple[int, ...] | None) -> Refusal | None:
    """Return the refusal if another order of the classes fits, with certainty."""
    if found.order is None:
        return None
    order, called = found.order, analysis.subject.called
    moved = [k for k, label in enumerate(order) if label != k]
    corrected = ", ".join(f"{order[k]} are {called(k)}" for k in moved[:MAX_LISTED])
    more = ", ..." if len(moved) > MAX_LISTED else ""
    # The order as the user must give it, for the labels of the file.
    whole = order if given is None else tuple(given[label] for label in order)
    spelled = " ".join(map(str, whole)) if len(whole) <= MAX_LISTED else "ORDER"
    accepted = (
        f"labels in the teacher's order; in another it classifies {found.ordered:.1%} correctly: the images labelled "
        f"{corrected}{more}; --condensed-order {spelled} corrects them; {FORCED}"
    )
    return f"teacher's accuracy on {analysis.subject.what}", round(found.share, 4), accepted


def _unknown(analysis: _Analysis, found: Recognition, space: Space) -> Refusal | None:
    """Return the refusal if the teacher does not recognise the images, with the causes that the pixels support."""
    if found.verdict != "unknown":
        return None
    causes = [analysis.whitened] if analysis.whitened else []
    causes.append("labels that fit in no order, or another data set than the teacher's")
    least = f"more than {found.least:.3f} ({found.num_classes} classes)"
    tried = f"read as {space.title}, and neither another space nor another order fits better"
    accepted = f"{least}; {tried}; likely causes: {'; '.join(causes)}; {FORCED}"
    what = f"teacher's accuracy on {analysis.subject.what}"
    return what, round(found.share, 4), accepted

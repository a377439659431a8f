"""Whether somebody else's condensed set is what a teacher can use, and in what space its pixels are.

The pixels decide where they tell; else the teacher does, by its answers to the same images in each space that they
leave open: it must name more of them right for certain, by a paired sign test. What is wrong for certain is refused
with the cause that the answers or the pixels support; what is in doubt is told, with the flag that decides. All of it
is our choice. No real image is named by the teacher here, so nothing is chosen by test images.
Letters: N images, C channels, H W height and width, K classes.
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
from condkd_ray.methods.condensation.pixel_space import CERTAIN, Looks, Space, evidence, known_spaces, looks
from condkd_ray.methods.recognition import Recognition, confusion_cycles, recognition, sign_test
from condkd_ray.models.teacher import Teacher

LOOKED_AT, VALUES = 1000, 6_000_000
"""Images of a set, as many of each class, that the teacher is asked about; the pixels of these that are looked at."""
REFUTED = 12.0
"""Nats by which the pixels alone refute a space, even one that a user has declared."""
GAINED = 0.05
"""Share of the images that another space must name right in addition, to be preferred for the teacher's answers."""
WHITENED = 0.8
"""Likeness of neighbours, as a share of real images', below which images look whitened. CIFAR-10 after ZCA has 0.24 to
0.69 by what is added to the eigenvalues, published sets that were not whitened 0.83 or more."""
UNUSUAL = 0.5, 2.5
"""Spreads that are told, as multiples of real images'."""
MANY = 20
"""Classes of which the whole order is spelled out."""
FORCED = "or --force-condensed (in a config: space, mean, std, order and force of condensation)"


@dataclass(frozen=True)
class Subject:
    """What is judged, as it is called in messages, and for what teacher."""

    what: str
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()

    def called(self, k: int) -> str:
        """Number and, where it has one, name of a class."""
        name = self.class_names[k] if self.class_names else str(k)
        return str(k) if name == str(k) else f"{k} ({name})"


@dataclass(frozen=True)
class Judged:
    """In what space a set is, and sentences for the user."""

    space: Space
    notes: tuple[str, ...]


def judge(
    stored: StoredSet,
    subject: Subject,
    *,
    whole: Tensor | None = None,
    real: Samples | None = None,
    teacher: Teacher | None = None,
    declared: Space | None = None,
    order: tuple[int, ...] | None = None,
    force: bool = False,
) -> Judged:
    """Choose the space and compare the teacher's answers with the labels, without `teacher` by the pixels alone.

    `whole`: the file's own pixels, where `stored` has the parts that these were cut into and blown up to. `real`:
    images in the teacher's space to compare with. `order`: that in which the labels were given. Raises
    `InputError`, unless `force`, where the set is wrong for certain: in another space than `declared`, normalised
    twice, its classes in another order, or unknown to the teacher.
    """
    pixels = stored.pixels if whole is None else whole
    look = _Look(stored, pixels, subject, _looks(real, subject), teacher, declared)
    notes, refused = [], _against(look, declared)
    if stored.soft:
        notes.append(f"{subject.what}: its soft labels are not used but for their largest; the teacher's answers are")
    space = look.space if declared is None or (refused and not force) else declared
    if teacher is None:
        told = f"{subject.what}: read as {space.title}"
    else:
        found = look.recognition(space)
        refused = refused or _misordered(look, found, space, order) or _unknown(look, found, space)
        told = f"{subject.what}: the teacher names {found.share:.1%} right ({_interval(found)}), read as {space.title}"
    if refused is not None:
        require(force, *refused)
        notes.append(f"{subject.what} is taken by force: {refused[0]} is {refused[1]}; {refused[2]}")
    return Judged(space, (told + look.because(space), *notes, *look.doubts(space)))


Refusal = tuple[str, object, str]
"""What is wrong, its value and what is accepted, as `require` takes them."""


@dataclass
class _Look:
    """The pixels and the teacher's answers in each space, each made once."""

    stored: StoredSet
    whole: Tensor
    subject: Subject
    real: Looks
    teacher: Teacher | None
    declared: Space | None
    _answers: dict[Space, Tensor] = field(default_factory=dict)

    @cached_property
    def rows(self) -> Tensor:
        """Of the images that are looked at: as many of each class."""
        labels, num_classes = self.stored.labels, self.subject.num_classes
        table, counts = class_table(labels, num_classes)
        places = torch.arange(table.shape[1])
        each = max(1, LOOKED_AT // num_classes)
        return table[(places < counts[:, None]) & (places < each)].sort().values

    @property
    def labels(self) -> Tensor:
        return self.stored.labels[self.rows]

    @cached_property
    def pixels(self) -> Tensor:
        """Of some of the file's images, no more than `VALUES`."""
        most = max(1, VALUES // self.whole[0].numel())
        rows = (self.rows // (len(self.stored.labels) // len(self.whole))).unique()
        return self.whole[rows[:: -(-len(rows) // most)]]

    @cached_property
    def nats(self) -> dict[Space, float]:
        """Evidence of the pixels for each space, the likeliest first."""
        spaces = known_spaces(self.subject.mean, self.subject.std)
        if self.declared is not None and all(_apart(self.declared, space) for space in spaces):
            spaces.append(self.declared)
        found = {s: evidence(self.pixels, s, self.real, self.subject.mean, self.subject.std) for s in spaces}
        return dict(sorted(found.items(), key=lambda pair: -pair[1]))

    def gap(self, space: Space) -> float:
        """Nats by which the pixels speak for the likeliest space rather than for this."""
        return max(self.nats.values()) - next(n for s, n in self.nats.items() if not _apart(s, space))

    @cached_property
    def likeliest(self) -> Space:
        return next(iter(self.nats))

    @property
    def lead(self) -> float:
        """Nats by which the likeliest space is ahead of the next that would make a difference."""
        return min((self.gap(other) for other in self.unlike(self.likeliest)), default=float("inf"))

    def unlike(self, space: Space) -> list[Space]:
        """Others that would make a difference to the teacher, the likeliest first."""
        return [other for other in self.nats if other.differs(space, self.subject.std)]

    @cached_property
    def space(self) -> Space:
        """The likeliest by the pixels, or the one in which the teacher names more right for certain."""
        if self.teacher is None:
            # Without a teacher nothing short of certainty undoes what may have been done once.
            sure = self.likeliest.name != "twice" or self.lead > REFUTED
            return self.likeliest if sure else next(space for space in self.nats if space.name != "twice")
        likely = self.recognition(self.likeliest)
        # Labels in another order are named right less often than by chance: in any other space, more often.
        if likely.order is not None:
            return self.likeliest
        near = [other for other in self.unlike(self.likeliest) if self.gap(other) < CERTAIN]
        if (found := self._preferred(near)) is not self.likeliest or likely.verdict == "known":
            return found
        open_ = [other for other in self.unlike(self.likeliest) if self.gap(other) < REFUTED]
        return self._preferred(other for other in open_ if self.recognition(other).verdict == "known")

    def _preferred(self, others: Iterable[Space]) -> Space:
        better = [other for other in others if self.surely(other, self.likeliest)]
        return max(better, key=lambda space: self.recognition(space).share, default=self.likeliest)

    def answers(self, space: Space) -> Tensor:
        """The teacher's classes (N,) of the images that are looked at."""
        assert self.teacher is not None
        if space not in self._answers:
            images = space.convert(self.stored.pixels[self.rows], self.subject.mean, self.subject.std)
            self._answers[space] = self.teacher.answers(images.to(self.teacher.device)).argmax(1).cpu()
        return self._answers[space]

    def recognition(self, space: Space) -> Recognition:
        return recognition(self.answers(space), self.labels, self.subject.num_classes)

    def surely(self, space: Space, other: Space) -> bool:
        """Whether the teacher names more right in `space` than in the other, for certain."""
        here, there = (self.answers(s) == self.labels for s in (space, other))
        won, lost = int((here & ~there).sum()), int((there & ~here).sum())
        return won - lost >= GAINED * len(here) and sign_test(won, lost)

    @property
    def whitened(self) -> str:
        """What speaks for whitening, or nothing."""
        found = looks(self.pixels.float()).neighbours
        if found >= WHITENED * self.real.neighbours:
            return ""
        return (
            f"neighbouring pixels correlate by {found:.2f} only, those of real images by {self.real.neighbours:.2f}: "
            "ZCA-whitened (use the un-whitened copy), or noise"
        )

    def because(self, space: Space) -> str:
        """Why it is read so."""
        if self.declared is not None and not _apart(space, self.declared):
            return ", as declared"
        if space is self.likeliest or self.teacher is None:
            near = [other for other in self.nats if _apart(other, space) and self.gap(other) < CERTAIN]
            alike = any(not other.differs(space, self.subject.std) for other in near)
            told = "make likely" if self._rivals(space) else "tell"
            return f", as its pixels {told}{' (constants that hardly differ look the same)' if alike else ''}"
        likely = self.likeliest
        return f", as the teacher's answers tell: as {likely.title} it would name {self.recognition(likely).share:.1%}"

    def _rivals(self, space: Space) -> list[Space]:
        """Others that neither the pixels nor the teacher rule out."""
        near = [other for other in self.unlike(space) if self.gap(other) < CERTAIN]
        if self.teacher is None:
            return near
        return [other for other in near if space is self.likeliest and not self.surely(space, other)]

    def doubts(self, space: Space) -> list[str]:
        """Sentences on what can not be told."""
        found = self._space_doubts(space) + (self._label_doubts(space) if self.teacher is not None else [])
        found += [self.whitened] if self.whitened else []
        images = space.convert(self.pixels, self.subject.mean, self.subject.std)
        times = images.std().item() / self.real.spread
        if not UNUSUAL[0] < times < UNUSUAL[1]:
            found.append(f"its pixels spread {times:.1f} times as wide as those of real images")
        return [f"{self.subject.what}: {text}" for text in found]

    def _space_doubts(self, space: Space) -> list[str]:
        likely = self.space
        if self.declared is not None:
            # Constants that hardly differ are told too, where the pixels are sure of them.
            sure = likely.differs(space, self.subject.std) or self.gap(space) > REFUTED
            return [f"it looks more like {likely.title} ({likely.flags})"] if sure and _apart(likely, space) else []
        may = " or ".join(f"{rival.title} ({rival.flags})" for rival in self._rivals(space))
        return [f"it may be {may} as well; {space.flags} settles it"] if may else []

    def _label_doubts(self, space: Space) -> list[str]:
        found, called = [], self.subject.called
        if self.recognition(space).verdict != "known":
            found.append("so few named right are no evidence that the teacher knows its images")
        right = self.labels[self.answers(space) == self.labels].bincount(minlength=self.subject.num_classes)
        missed = [called(k) for k in (right == 0).nonzero().flatten().tolist()]
        if missed:
            more = ", ..." if len(missed) > MANY else ""
            found.append(f"of these classes it names no image right: {', '.join(missed[:MANY])}{more}")
        for cycle in confusion_cycles(self.answers(space), self.labels, self.subject.num_classes):
            pairs = zip(cycle, cycle[1:] + cycle[:1], strict=True)
            places = ", ".join(f"{called(k)} as {called(named)}" for k, named in pairs)
            found.append(f"it names {places} most often: if they changed places, --condensed-order takes them so")
        return found


def _apart(space: Space, other: Space) -> bool:
    return (space.mean, space.std) != (other.mean, other.std)


def _looks(real: Samples | None, subject: Subject) -> Looks:
    """Of real images, or what those have whose own constants are the teacher's."""
    usual = Looks(torch.zeros(len(subject.mean)), 1.1, 0.9)
    if real is None:
        return usual
    most = max(1, min(LOOKED_AT, VALUES // real.images[0].numel()))
    found = looks(real.images[:: -(-len(real) // most)].cpu())
    return found if found.spread > 0 else usual  # there is nothing to be seen on images of one grey


def _interval(found: Recognition) -> str:
    return f"95 % interval {100 * max(found.low, 0):.0f} to {100 * min(found.high, 1):.0f} %"


def _against(look: _Look, declared: Space | None) -> Refusal | None:
    """Why the space is wrong for certain."""
    what, space = f"space of {look.subject.what}", look.space
    if declared is None:
        twice = space.name == "twice" and (look.teacher is not None or look.lead > REFUTED)
        accepted = f"images normalised once; {space.flags} takes them as they are; {FORCED}"
        return (what, space.title + look.because(space), accepted) if twice else None
    if not space.differs(declared, look.subject.std):
        return None
    if look.teacher is not None and look.surely(space, declared):
        shares = [f"{look.recognition(s).share:.1%}" for s in (space, declared)]
        why = f"in which the teacher names {shares[0]} right, in the declared one {shares[1]}"
    elif look.gap(declared) - look.gap(space) > REFUTED:
        why = "as its pixels tell"
    else:
        return None
    return what, declared.title, f"{space.title} ({space.flags}), {why}; {FORCED}"


def _misordered(look: _Look, found: Recognition, space: Space, given: tuple[int, ...] | None) -> Refusal | None:
    """Another order of the classes fits for certain."""
    if found.order is None:
        return None
    order, called = found.order, look.subject.called
    moved = [k for k, label in enumerate(order) if label != k]
    places = ", ".join(f"{order[k]} are {called(k)}" for k in moved[:MANY])
    more = ", ..." if len(moved) > MANY else ""
    # As a user has to give it: for the labels of the file.
    whole = order if given is None else tuple(given[label] for label in order)
    spelled = " ".join(map(str, whole)) if len(whole) <= MANY else "ORDER"
    accepted = (
        f"labels in the teacher's order: in another it names {found.ordered:.1%} right: the images labelled "
        f"{places}{more}; --condensed-order {spelled} takes them so; {FORCED}"
    )
    return f"teacher's accuracy on {look.subject.what}", round(found.share, 4), accepted


def _unknown(look: _Look, found: Recognition, space: Space) -> Refusal | None:
    """The teacher hardly knows the images; with the causes that the pixels support."""
    if found.verdict != "unknown":
        return None
    causes = [look.whitened] if look.whitened else []
    causes.append("labels in no order that fits, or another data set than the teacher's")
    least = f"more than {found.least:.3f} ({found.num_classes} classes)"
    tried = f"read as {space.title}, and neither another space nor another order fits better"
    accepted = f"{least}; {tried}; likely causes: {'; '.join(causes)}; {FORCED}"
    what = f"teacher's accuracy on {look.subject.what}"
    return what, round(found.share, 4), accepted

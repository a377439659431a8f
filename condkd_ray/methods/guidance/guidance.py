"""The contract of the guidances, and the guide: a guidance bound to its state, the condensed set and the teacher.

In segmentation the features are those of regions: an image and a class that it shows, with the mean of a feature map
under the class's mask, see `regions`. Each image of a batch gives `Guidance.regions` of them, so that a guidance
receives B R features with as many labels in place of B, and needs no case for the task.

Letters: B batch, H W height and width, D features of all compared layers, K classes, M images held out, N condensed
images, R regions of an image.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import signature
from typing import ClassVar, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from condkd_ray.core.method import Meter, Method, Schedule, require, require_rates, require_weights
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples
from condkd_ray.core.task import BOTH, is_dense
from condkd_ray.data.augment import dsa, split_labels, with_labels
from condkd_ray.methods.guidance.from_guides import FromGuides, Start
from condkd_ray.methods.guidance.regions import (
    class_masks,
    draw_regions,
    match_regions,
    own_or_other,
    region_means,
    region_numbers,
    shown_classes,
)
from condkd_ray.models.observation import PENULTIMATE, Observation
from condkd_ray.models.teacher import Teacher

State = TypeVar("State")
Augmentation = Literal["host", "condensed", "dsa"]
Alignment = Literal["class", "marginal"]
HostAugment = Callable[[Tensor, torch.Generator], Tensor]
MAX_INIT_FEATURES = 4096
"""Upper limit of features from which a state is initialised: some guidances compare all pairs, and the condensed set
can be all real images."""
OBSERVED, OBSERVED_PIXELS = 512, 2**19
"""Limits of a forward pass over condensed images: their number in classification, their pixels in segmentation. They
only limit memory."""
MAX_STAGES = 4
"""Largest accepted number of stages."""
NEGLIGIBLE = 1e-8
"""Squared distances below this share of the squared norms count as 0, because of rounding."""
MAX_VIEWS, ENOUGH_IMAGES = 16, 256
"""Limit of the views of each held-out image on which a guidance is evaluated; about 256 views are enough in all."""


class Guide(Protocol):
    """A guidance bound to its state, the condensed set and the teacher; an inversion uses only these members.

    The inversion method that a guide is attached to is its host. In each step, a host observes its augmented images
    once with `layers`, adds `penalty` to its loss, and calls `update` after its step. `images` (B, C, H, W) are not
    augmented; `observation` holds the teacher's outputs for the augmented images; `labels` are (B,), in segmentation
    (B, H, W), moved as the augmentation moved the pixels. `observation.bn` is empty if the host reads no BN statistics.
    """

    @property
    def layers(self) -> tuple[str, ...]:
        """Teacher layers that the host must observe for the guide."""
        ...

    def penalty(self, images: Tensor, observation: Observation, labels: Tensor) -> Tensor:
        """Return the weighted penalty, a scalar, differentiable in `images` directly or through `observation`."""
        ...

    def update(self, images: Tensor, observation: Observation, labels: Tensor) -> None:
        """Update the guidance on a batch that the host has just made; `images` get no gradient."""
        ...

    def start(self, labels: Tensor) -> Start | None:
        """Return starting images for the first images of a batch of `labels` (B,); None for the host's own start.

        A guide without this method counts as one that returns None.
        """
        ...


@dataclass(frozen=True)
class Layout:
    """Arrangement of features in a tensor: columns of the compared layers side by side, views one after another."""

    widths: tuple[int, ...] = ()
    """Number of columns of each layer, `layer` first; empty if it is the only one."""
    views: int = 1

    def split(self, features: Tensor) -> tuple[Tensor, ...]:
        """Split features (..., D) into the columns of each layer."""
        return features.split(self.widths, -1) if self.widths else (features,)


ONE_LAYER = Layout()
"""Layout of one layer and one view."""


@dataclass(kw_only=True)
class GuidanceState:
    """Base class of the states. `Guidance.start` measures the factors and deviations if the settings need them."""

    units: Tensor | None = None
    """(D,): factors that scale each layer to a spread of 1 among the condensed images; None without `stages`."""
    jitter: Tensor | None = None
    """(D,): standard deviations of noise as large as each layer's spread; None if not needed."""


@dataclass(frozen=True, kw_only=True)
class Guidance(Method, ABC, Generic[State]):
    """Contract of the guidances: a penalty on the features of synthetic images (fakes), and an update of the state.

    Penalty and update get features (B, D) only; the bound guide draws, augments, observes and scales the images. In
    segmentation a row is a region of an image; there are B R rows.
    """

    uses_condensed_batches: ClassVar[bool] = True
    """True if `update` needs features of a condensed batch in each step; otherwise `update` gets an empty tensor."""

    weight: float = 1.0
    """Factor of the penalty in the host's loss (lambda_FA); 0 gives the same numbers, bit for bit, as no guidance,
    unless `from_guides` has a share."""
    augment: Augmentation = "host"
    """`host`: the fakes as the host augments them; the condensed images get the host's augmentation too. `dsa`: fakes
    and condensed images under DSA, for the guide only; the host's own loss does not use DSA. `condensed`: as `host`,
    with DSA on the condensed batch as well, so that the two sides differ even if their images are equal. Under `dsa`,
    one batch gets one DSA operation, drawn separately for each side."""
    layer: str = PENULTIMATE
    """The layer whose features are compared: `penultimate` (as in the paper), or the name of a teacher's module,
    averaged over space."""
    stages: int = 0
    """Number of the teacher's last stages, 0 to 4, whose output channel means are compared in addition to `layer`. A
    last stage whose means are the penultimate features is not counted. With 1 or more, each layer is scaled by its
    spread among the condensed images: the root mean squared distance from the class mean if a class has two images,
    else from the overall mean."""
    stages_weight: float = 1.0
    """Weight of each stage relative to `layer`; for a discriminator, the square of the factor of its features."""
    alignment: Alignment = "class"
    """`class`: within each class. `marginal`: the batch as a whole, with condensed images in the class proportions of
    the batch's labels; with hosts that use no labels, and take the teacher's argmax instead, no image then has a target
    class."""
    mixup: float = 0.0
    """Condensed features are mixed with others of their class in the batch; the share of the other is uniform between 0
    and this value, at most 1. Mixing narrows the condensed distribution: at 1 the variance about the class mean falls
    to two thirds on average, and so the spread to 0.82."""
    noise: float = 0.0
    """Gaussian noise on the condensed features only, in units of each layer's spread (see `stages`)."""
    schedule: Schedule = Schedule()
    """Factor of the weight over the rounds: a warm-up (`start: 0`) or a curriculum (`end: 0`)."""
    from_guides: FromGuides = FromGuides()
    """Share of each batch that starts at condensed images, independently of the weight; by default the whole batch
    starts at the host's noise."""
    regions: int = 4
    """In segmentation, number of regions of each synthetic image whose features are compared: classes drawn uniformly
    among those that the image shows on at least 1 % of its pixels and that a condensed image shows too; repeated if
    there are fewer. Without effect in classification."""

    def __post_init__(self) -> None:
        require_weights(self, "guidance")
        require_rates(self, "guidance")
        require(0 <= self.stages <= MAX_STAGES, "guidance stages", self.stages, f"an integer, 0 to {MAX_STAGES}")
        require(0 <= self.mixup <= 1, "guidance mixup", self.mixup, "0 to 1")
        require(0 <= self.noise < math.inf, "guidance noise", self.noise, "a number >= 0")
        require(self.regions >= 1, "guidance regions", self.regions, "an integer >= 1")

    @property
    def layers(self) -> tuple[str, ...]:
        """Teacher layers that are named in the settings; the penultimate features are always observed."""
        return () if self.layer == PENULTIMATE else (self.layer,)

    def tapped_layers(self, teacher: Teacher) -> tuple[str, ...]:
        """Return all layers of this teacher whose outputs are needed: the named ones, then the last stages in order."""
        ends = teacher.stage_outputs
        return self.layers + ends[len(ends) - self.stages :]

    @property
    def views(self) -> int:
        """Number of augmented views of each condensed image for `init`; 0: each image once, without augmentation."""
        return 0

    def check(self, teacher: Teacher) -> None:
        """Raise `InputError` if the teacher lacks a layer that is compared, or a setting does not suit its task."""
        teacher.check_layers(self.layers)
        if is_dense(teacher.task):
            self.check_dense()
        ends = teacher.stage_outputs
        found = f"in addition to its features this teacher has {', '.join(ends) or 'none'}"
        there = f"0 to {min(len(ends), MAX_STAGES)}; {found}"
        require(self.stages <= len(ends), "guidance stages", self.stages, there)
        beside = self.tapped_layers(teacher)[len(self.layers) :]
        others = f"{PENULTIMATE}, or a layer other than the stages compared with it, {', '.join(beside)}"
        require(self.layer not in beside, f"guidance layer with stages {self.stages}", self.layer, others)

    def check_dense(self) -> None:
        """Raise `InputError` if a setting does not suit segmentation."""
        accepted = "host: DSA would move the pixels without their labels"
        require(self.augment == "host", "guidance augment in segmentation", self.augment, accepted)
        share, accepted = self.from_guides.share, "0: the labels of a batch are not those of condensed images"
        require(share == 0, "from_guides share in segmentation", share, accepted)

    def check_use(self, teacher: Teacher, ipc: int, batch: int, host_augment: HostAugment) -> None:
        """Raise `InputError` if `ipc` augmented condensed images, or the host's `batch`, are too few.

        `ipc` is per class, in segmentation in all.
        """

    @property
    def class_conditional(self) -> bool:
        """True if the penalty depends on the labels, so that it pulls each image towards its class."""
        return self.alignment == "class"

    @property
    def idle(self) -> tuple[str, ...]:
        """Settings without effect, each with the reason.

        A search opens such a field together with those it depends on.
        """
        covariances = getattr(self, "stage_covariances", False)
        compared = getattr(self, "covariance", "pooled") != "none" and getattr(self, "covariance_weight", 1.0) > 0
        found = {
            f"stages_weight {self.stages_weight:g} without stages": self.stages_weight != 1 and not self.stages,
            "stage_covariances without stages": covariances and not self.stages,
            "stage_covariances although no covariance is compared": covariances and self.stages and not compared,
        }
        return tuple(f"guidance {what}" for what, without_effect in found.items() if without_effect)

    @property
    def held_out(self) -> float:
        """Share of each class's condensed images that the guidance must not learn from, rounded down.

        In segmentation the share of all of them.
        """
        return 0.0

    @abstractmethod
    def init(
        self, teacher: Teacher, condensed: Tensor, labels: Tensor, rng: Streams, layout: Layout = ONE_LAYER
    ) -> State:
        """Return a new state from features `condensed` (N, D) of the images to learn from, with classes `labels` (N,).

        With several views, N is the number of views times the number of images, which are in the same order in each
        view.
        """

    @abstractmethod
    def penalty(self, state: State, fake: Tensor, labels: Tensor, *, rng: torch.Generator) -> Tensor:
        """Return the penalty, a scalar without the weight, differentiable in `fake`."""

    @abstractmethod
    def update(
        self, state: State, fake: Tensor, real: Tensor, labels: Tensor, *, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Learn from fakes and as many condensed images of the same `labels` (B,); returns the terms to record.

        `real` is empty if the guidance does not use condensed batches.
        """

    def evaluate_held_out(
        self, state: State, learnt: Tensor, held_out: Tensor, fakes: Tensor, labels: Tensor, *, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Return terms, recorded once per round, on condensed images held out from learning; the state is unchanged.

        `held_out` (M, D): features of the held-out images under the condensed side's augmentation. `fakes` (M, D): the
        same images under the fakes' augmentation, as a perfect generator would make them. `learnt` (M, D): images that
        the guidance learns from. All have the classes `labels` (M,).
        """
        return {}

    def start(
        self,
        teacher: Teacher,
        condensed: Samples | None,
        rng: Streams,
        host_augment: HostAugment = lambda images, stream: images,
    ) -> State:
        """Return `init` on the observed condensed set, which is thinned evenly if large.

        Views are drawn according to `augment` from stream `augment/guide`; `host_augment` is the host's augmentation.
        In segmentation `init` gets all regions of the condensed images. A view that shows no more of a region, because
        the augmentation has moved it out, has the features of the region in the image without augmentation. Raises
        `InputError` if there is no condensed set, or as `check` does.
        """
        require(condensed is not None, "condensed set of a guided run", None, "a condensation (or guidance none)")
        assert condensed is not None
        learnt, _ = self.hold_out(condensed, teacher.num_classes)
        self.check(teacher)
        learnt = learnt[:: -(-len(learnt) // MAX_INIT_FEATURES)]
        with torch.no_grad():
            if learnt.labels.ndim > 1:
                return self._start_with_regions(teacher, learnt, rng, host_augment)
            views = [learnt.images]
            if self.views:
                count = max(1, min(self.views, MAX_INIT_FEATURES // max(1, len(learnt))))
                views = [self.view(learnt.images, teacher, host_augment, rng) for _ in range(count)]
            observed = [self.layer_features(teacher, view) for view in views]
            parts = [torch.cat(layer) for layer in zip(*observed, strict=True)]
            return self.init_from_features(teacher, parts, learnt.labels.repeat(len(views)), rng, len(views))

    def _start_with_regions(self, teacher: Teacher, learnt: Samples, rng: Streams, host_augment: HostAugment) -> State:
        """Return `init` on the regions of the images `learnt`, thinned evenly if there are many."""
        classes = teacher.num_classes
        known = region_numbers(shown_classes(learnt.labels, classes))
        require(len(known) > 0, "labelled pixels of the condensed set", 0, "at least 1, so that a class is known")
        known = known[:: -(-len(known) // MAX_INIT_FEATURES)]
        still = [part[known] for part in self.layer_features(teacher, learnt.images, learnt.labels)]
        observed = [] if self.views else [still]
        for _ in range(max(1, min(self.views, MAX_INIT_FEATURES // len(known))) if self.views else 0):
            images, labels = self.labelled_view(learnt.images, learnt.labels, teacher, host_augment, rng)
            there = shown_classes(labels, classes).flatten()[known, None]
            moved = self.layer_features(teacher, images, labels)
            observed.append([torch.where(there, one[known], base) for one, base in zip(moved, still, strict=True)])
        parts = [torch.cat(layer) for layer in zip(*observed, strict=True)]
        return self.init_from_features(teacher, parts, (known % classes).repeat(len(observed)), rng, len(observed))

    def init_from_features(
        self, teacher: Teacher, parts: list[Tensor], labels: Tensor, rng: Streams, views: int
    ) -> State:
        """Return `init` on the features (N, D) of each layer; several layers are scaled by their spread first.

        `parts` hold `views` of all condensed images, view after view, with `labels` (N,). Raises `InputError` if the
        settings need a `GuidanceState`, or a fifth parameter of `init`, and the class has none.
        """
        if not self.stages and not self.noise:
            return self._init(teacher, side_by_side(parts), labels, rng, Layout((), views))
        widths = tuple(part.shape[1] for part in parts)
        spreads = [spread(part, labels, teacher.num_classes) for part in parts]

        def columns(values: list[Tensor]) -> Tensor:
            return torch.cat([value.expand(width) for value, width in zip(values, widths, strict=True)])

        features, layout, units = side_by_side(parts), Layout((), views), None
        if self.stages:
            units, layout = 1 / columns(spreads), Layout(widths, views)
            features, spreads = features * units, [torch.ones_like(one) for one in spreads]
        state = self._init(teacher, features, labels, rng, layout)
        extends, name = isinstance(state, GuidanceState), getattr(self, "name", type(self).__name__)
        accepted = "a subclass of GuidanceState; or stages 0 and noise 0"
        require(extends, f"state of guidance {name} with stages or noise", type(state).__name__, accepted)
        assert isinstance(state, GuidanceState)
        state.units = units
        state.jitter = columns([one / width**0.5 for one, width in zip(spreads, widths, strict=True)])
        return state

    def _init(self, teacher: Teacher, features: Tensor, labels: Tensor, rng: Streams, layout: Layout) -> State:
        """Call `init`. Raises `InputError` if a layout is needed and `init` has no parameter for it."""
        given = (teacher, features, labels, rng)
        try:
            signature(self.init).bind(*given, layout)
        except TypeError:
            name = getattr(self, "name", type(self).__name__)
            what = f"layers and views of guidance {name}, whose init has no parameter layout,"
            one = "1 and 1: no stages, and no views; or an init with a fifth parameter, layout"
            require(layout == ONE_LAYER, what, (max(1, len(layout.widths)), layout.views), one)
            return self.init(*given)
        return self.init(*given, layout)

    def layer_features(self, teacher: Teacher, images: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        """Return unscaled features (B, D) of each compared layer for images (B, C, H, W) as they are.

        With `labels` (B, H, W), the features (B K, D) of all regions, by their numbers.
        """
        layers = self.tapped_layers(teacher)
        if labels is None:
            parts = images.split(OBSERVED)
            observed = [self.pooled_features(teacher.observe(part, layers, bn=False), layers) for part in parts]
        else:
            size = max(1, OBSERVED_PIXELS // labels[0].numel())
            observed = [
                self.region_features(teacher.observe(part, layers, bn=False), layers, masks, teacher.num_classes)
                for part, masks in zip(images.split(size), labels.split(size), strict=True)
            ]
        return [torch.cat(layer) for layer in zip(*observed, strict=True)]

    def pooled_features(self, observation: Observation, tapped: tuple[str, ...]) -> list[Tensor]:
        """Return unscaled features (B, D) of each compared layer from an observation of the layers `tapped`."""
        return [observation.pooled(name) for name in (self.layer, *tapped[len(self.layers) :])]

    def region_features(
        self, observation: Observation, tapped: tuple[str, ...], labels: Tensor, num_classes: int
    ) -> list[Tensor]:
        """Return unscaled features (B K, D) of all regions, by their numbers, given the labels (B, H, W) of the images.

        As `pooled_features`, but each mean of a map is over one class's pixels; it is 0 if there are none.
        """
        masks = class_masks(labels, num_classes)
        names = (self.layer, *tapped[len(self.layers) :])
        return [region_means(observation.maps(name), masks) for name in names]

    def scaled_features(self, state: State, parts: list[Tensor]) -> Tensor:
        """Return the features of all layers side by side, (B, D), scaled as `init` and all later calls expect them."""
        if not self.stages:
            return parts[0]
        assert isinstance(state, GuidanceState)
        assert state.units is not None
        return side_by_side(parts) * state.units

    def perturbed(self, state: State, real: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        """Return a step's condensed features (B, D) with `noise`, and `mixup` within their classes `labels` (B,)."""
        if self.mixup:
            partner = real[same_class_rows(labels, labels, rng)]
            real = real.lerp(partner, self.mixup * torch.rand(len(real), 1, generator=rng, device=real.device))
        if self.noise:
            assert isinstance(state, GuidanceState)
            assert state.jitter is not None
            draw = torch.randn(real.shape, generator=rng, device=real.device)
            real = real + self.noise * state.jitter * draw
        return real

    def view(self, images: Tensor, teacher: Teacher, host_augment: HostAugment, rng: Streams) -> Tensor:
        """Return condensed images (B, C, H, W) augmented according to `augment`, from stream `augment/guide`."""
        if self.augment != "dsa":
            images = host_augment(images, rng["augment/guide"])
        return images if self.augment == "host" else augmented_by_dsa(images, teacher, rng)

    def labelled_view(
        self, images: Tensor, labels: Tensor, teacher: Teacher, host_augment: HostAugment, rng: Streams
    ) -> tuple[Tensor, Tensor]:
        """Return condensed images (B, C, H, W) augmented as `view` does, and their labels (B, H, W), moved alike."""
        return split_labels(self.view(with_labels(images, labels), teacher, host_augment, rng))

    def bind(
        self,
        state: State,
        *,
        teacher: Teacher,
        condensed: Samples | None,
        host_augment: HostAugment,
        rng: Streams,
        progress: float = 0.0,
    ) -> Guide:
        """Return the guide for one round, at `progress` of the trial (0: first round, 1: last)."""
        assert condensed is not None
        learnt, held_out = self.hold_out(condensed, teacher.num_classes)
        weight = self.weight * self.schedule.at(progress)
        return BoundGuide(self, state, teacher, learnt, held_out, host_augment, rng, weight)

    def read(self, guide: Guide) -> dict[str, float]:
        """Return the means over the round of the terms of `update`, and the terms of `evaluate_held_out`."""
        assert isinstance(guide, BoundGuide)
        return guide.read()

    def hold_out(self, condensed: Samples, num_classes: int) -> tuple[Samples, Samples]:
        """Return (images to learn from, images held out: the last of each class, in segmentation the last)."""
        if not self.held_out:
            return condensed, condensed[:0]
        if condensed.labels.ndim > 1:
            kept = len(condensed) - int(len(condensed) * self.held_out)
            return condensed[:kept], condensed[kept:]
        counts = torch.bincount(condensed.labels, minlength=num_classes)
        hot = torch.nn.functional.one_hot(condensed.labels, num_classes)
        rank = (hot.cumsum(0) * hot).sum(1)
        learnt = rank <= (counts - (counts * self.held_out).long())[condensed.labels]
        return condensed[learnt], condensed[~learnt]


@dataclass
class BoundGuide:
    """One guidance for one round. See `Guide`."""

    guidance: Guidance
    state: object
    teacher: Teacher
    condensed: Samples
    held_out: Samples
    host_augment: HostAugment
    rng: Streams
    weight: float
    meter: Meter = field(default_factory=lambda: Meter("guidance"))
    _last: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        if self.condensed.labels.ndim > 1:
            shown = shown_classes(self.condensed.labels, self.teacher.num_classes)
            # Here and not in a step, because it waits for the device.
            self._known, self._regions = shown.any(0), region_numbers(shown)

    @property
    def layers(self) -> tuple[str, ...]:
        """The teacher's layers that the guidance reads."""
        return self.guidance.tapped_layers(self.teacher)

    def penalty(self, images: Tensor, observation: Observation, labels: Tensor) -> Tensor:
        """Return the weighted penalty; under `dsa` with an observation of the guide's own."""
        fake, labels = self._fake(images, observation, labels)
        self._last = fake.detach(), labels
        penalty = self.weight * self.guidance.penalty(self.state, fake, labels, rng=self.rng["augment/guide"])
        # Even a gradient of zeros can change the memory layout of the host's gradient, and so its last bits.
        return penalty if self.weight else penalty.detach()

    def update(self, images: Tensor, observation: Observation, labels: Tensor) -> None:
        """Update the guidance on condensed images of the same labels, and on the fakes that `penalty` last received."""
        fake, labels = self._fake(images, observation, labels) if self._last is None else self._last
        self._last = None
        fake = fake.detach()
        if not self.guidance.uses_condensed_batches:
            real = fake[:0]
        elif self.condensed.labels.ndim == 1:
            real = self.real_features(labels)
        else:
            matched, real = self.real_regions(labels)
            fake, labels = fake[matched], labels[matched]
        with torch.enable_grad():
            terms = self.guidance.update(self.state, fake, real, labels, rng=self.rng["augment/guide"])
        self.meter.add(**terms)

    def start(self, labels: Tensor) -> Start | None:
        """Return condensed images as the start, drawn from stream `start` among those to learn from."""
        from_guides = self.guidance.from_guides
        count = from_guides.count(len(labels))
        if not count:
            return None
        rng = self.rng["start"]
        rows = same_class_rows(self.condensed.labels, labels[:count], rng)
        return from_guides.start(self.condensed.images[rows], rng)

    @torch.no_grad()
    def real_features(self, labels: Tensor) -> Tensor:
        """Return features (B, D) of views of condensed images of the classes `labels` (B,), drawn for one update."""
        rng = self.rng["augment/guide"]
        rows = same_class_rows(self.condensed.labels, labels, rng)
        real = self._features(self._view(self.condensed.images[rows]))
        return self.guidance.perturbed(self.state, real, labels, rng)

    @torch.no_grad()
    def real_regions(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B R, D) of regions of condensed images for the classes `labels` (B R,), for one update.

        They are regions of B views, each of an image that shows the first of R classes: as many views as there are
        fakes. A class that no view shows, because the augmentation has moved it out or no drawn image shows it, is
        replaced by another of `labels`. The first tensor (B R,) holds the rows of `labels` that the features belong to.
        """
        rng = self.rng["augment/guide"]
        matched, real = self._matched(labels)
        return matched, self.guidance.perturbed(self.state, real, labels[matched], rng)

    def _matched(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows and features as `real_regions` does, without noise and mixup."""
        rng, classes = self.rng["augment/guide"], self.teacher.num_classes
        first = labels[:: self.guidance.regions].contiguous()
        drawn = self._regions[same_class_rows(self._regions % classes, first, rng)]
        views, masks = self._labelled_view(self.condensed[drawn // classes])
        regions, exists = match_regions(shown_classes(masks, classes), labels, rng)
        matched = own_or_other(exists, rng)
        return matched, self._features(views, masks)[regions[matched]]

    def read(self) -> dict[str, float]:
        """Return the recorded means, with the terms on held-out images."""
        if len(self.held_out):
            self.meter.add(**self._examine())
        return self.meter.read()

    @torch.no_grad()
    def _examine(self) -> dict[str, Tensor]:
        """Return the guidance's terms for several views of the held-out images and of as many images it learns from."""
        images, labels, rng = self.held_out.images, self.held_out.labels, self.rng["augment/guide"]
        views = range(min(MAX_VIEWS, -(-ENOUGH_IMAGES // len(images))))
        if labels.ndim > 1:
            return self._examine_regions(len(views))
        rows = [same_class_rows(self.condensed.labels, labels, rng) for _ in views]

        def features(batches: list[Tensor]) -> Tensor:
            return self._features(torch.cat(batches))

        learnt = features([self._view(self.condensed.images[drawn]) for drawn in rows])
        held_out = fakes = features([self._view(images) for _ in views])
        if self.guidance.augment == "condensed":
            fakes = features([self.host_augment(images, rng) for _ in views])
        return self.guidance.evaluate_held_out(self.state, learnt, held_out, fakes, labels.repeat(len(views)), rng=rng)

    def _examine_regions(self, views: int) -> dict[str, Tensor]:
        """Return the terms of `_examine` for regions of `views` of the held-out images."""
        rng = self.rng["augment/guide"]
        rows = torch.arange(len(self.held_out), device=self.held_out.labels.device).repeat(views)
        images, masks = self._labelled_view(self.held_out[rows])
        regions = self._drawn(masks)
        labels = regions % self.teacher.num_classes
        matched, learnt = self._matched(labels)
        held_out = self._features(images, masks)[regions[matched]]
        return self.guidance.evaluate_held_out(self.state, learnt, held_out, held_out, labels[matched], rng=rng)

    def _fake(self, images: Tensor, observation: Observation, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of the fakes, augmented according to `augment`, and their labels.

        In segmentation they are the features of drawn regions, (B R, D), with their classes (B R,): see `draw_regions`.
        """
        if self.guidance.augment == "dsa":
            observation = self.teacher.observe(augmented_by_dsa(images, self.teacher, self.rng), self.layers, bn=False)
        if labels.ndim == 1:
            parts = self.guidance.pooled_features(observation, self.layers)
            return self.guidance.scaled_features(self.state, parts), labels
        regions, classes = self._drawn(labels), self.teacher.num_classes
        parts = [part[regions] for part in self.guidance.region_features(observation, self.layers, labels, classes)]
        return self.guidance.scaled_features(self.state, parts), regions % classes

    def _drawn(self, labels: Tensor) -> Tensor:
        """Return the numbers (B R,) of drawn regions of images with labels (B, H, W), of classes that guides show."""
        shown = shown_classes(labels, self.teacher.num_classes) & self._known
        return draw_regions(shown, self.guidance.regions, self.rng["augment/guide"])

    def _features(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the features of images without further augmentation; with `labels` (B, H, W) of all their regions."""
        parts = self.guidance.layer_features(self.teacher, images, labels)
        return self.guidance.scaled_features(self.state, parts)

    def _view(self, images: Tensor) -> Tensor:
        """Return condensed images augmented according to `augment`."""
        return self.guidance.view(images, self.teacher, self.host_augment, self.rng)

    def _labelled_view(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Return segmented condensed images and their labels, augmented."""
        given = samples.images, samples.labels
        return self.guidance.labelled_view(*given, self.teacher, self.host_augment, self.rng)


def augmented_by_dsa(images: Tensor, teacher: Teacher, rng: Streams) -> Tensor:
    """Return images (B, C, H, W) under DSA from stream `augment/guide`."""
    name = "augment/guide"
    return dsa(images, rng=rng[name], choice=rng.host(name), flip=teacher.flip_ok)


def side_by_side(parts: list[Tensor]) -> Tensor:
    """Return the features (B, D) of each layer as one tensor (B, sum of D)."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def spread(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return the root mean squared distance of features (N, D) from their class mean, by degrees of freedom; a scalar.

    If no class has two different images, it is the distance from the overall mean; if all features are equal, it is 1.
    """
    hot = torch.nn.functional.one_hot(labels, num_classes).to(features.dtype)
    counts = hot.sum(0)
    means = hot.T @ features / counts.clamp_min(1)[:, None]
    scatter = (features - means[labels]).square().sum()
    total = (features - features.mean(0)).square().sum()
    within = scatter / (counts - 1).clamp_min(0).sum().clamp_min(1)
    overall = total / max(1, len(features) - 1)
    level = NEGLIGIBLE * features.square().sum()
    squared = torch.where(scatter > level, within, torch.where(total > level, overall, torch.ones_like(overall)))
    return squared.sqrt()


def same_class_rows(known: Tensor, wanted: Tensor, rng: torch.Generator) -> Tensor:
    """Return for each label of `wanted` (B,) a random row of `known` (N,) with this label; any row if there is none."""
    # By binary search, because counting the labels would wait for the device.
    sorted_labels, order = known.sort(stable=True)
    first = torch.searchsorted(sorted_labels, wanted)
    counts = torch.searchsorted(sorted_labels, wanted, right=True) - first
    uniform = torch.rand(len(wanted), generator=rng, device=wanted.device)
    return order[(first + (uniform * counts).long()).clamp(max=len(known) - 1)]


class Unguided:
    """The `Guide` of a host that runs as published: its penalty is 0, and its update does nothing."""

    layers: tuple[str, ...] = ()

    def penalty(self, images: Tensor, observation: Observation, labels: Tensor) -> Tensor:
        """Return 0, a scalar."""
        return observation.logits.new_zeros(())

    def update(self, images: Tensor, observation: Observation, labels: Tensor) -> None:
        """Do nothing."""

    def start(self, labels: Tensor) -> Start | None:
        """Return None: the host's own start."""
        return None


@dataclass(frozen=True, kw_only=True)
class NoGuidance(Method):
    """No guidance: a member of the family, so that other code needs no case for it."""

    tasks = BOTH
    name: Literal["none"] = "none"
    layers: ClassVar[tuple[str, ...]] = ()
    from_guides: ClassVar[FromGuides] = FromGuides()
    weight: ClassVar[float] = 0.0
    schedule: ClassVar[Schedule] = Schedule()
    class_conditional: ClassVar[bool] = False
    idle: ClassVar[tuple[str, ...]] = ()

    def check(self, teacher: Teacher) -> None:
        """Do nothing: no layers are compared."""

    def check_dense(self) -> None:
        """Do nothing: there are no settings."""

    def check_use(self, teacher: Teacher, ipc: int, batch: int, host_augment: HostAugment) -> None:
        """Do nothing: any number of images is enough."""

    def start(self, teacher: Teacher, condensed: Samples | None, rng: Streams, host_augment: object = None) -> None:
        """Return None: there is no state."""

    def bind(self, state: None, **_: object) -> Guide:
        """Return a guide without effect."""
        return Unguided()

    def read(self, guide: Guide) -> dict[str, float]:
        """Return no terms."""
        return {}

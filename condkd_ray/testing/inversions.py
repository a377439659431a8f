"""Checks of the contract `condkd_ray.methods.inversion.inversion.Inversion`, over toy images."""

from typing import Any

import torch
from torch import Tensor, nn

from condkd_ray.core.method import Metrics, NonFiniteError
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import UNLABELLED, Codec, Samples, to_unit
from condkd_ray.methods.guidance.guidance import Unguided
from condkd_ray.methods.inversion import Inversion
from condkd_ray.methods.targets import Balanced
from condkd_ray.methods.weighing import Weigh, equal_weights
from condkd_ray.models.observation import Observation
from condkd_ray.models.teacher import Teacher
from condkd_ray.testing.states import expect, frozen, opened, pointers, reloaded, same, tensors
from condkd_ray.testing.world import IMAGE_SHAPE, make_student, make_teacher

FOREIGN_STREAMS = {"augment/guide", "augment/student", "draw", "condensed", "init/student", "reservoir", "replay"}
"""Streams of other parts of a trial, whose draws must not depend on the inversion."""


class Puller:
    """A guide that favours dark images with small teacher features, and stores all that it is given.

    Its penalty is NaN at the call `breaks_at`, counted from 1.
    """

    layers = ()

    def __init__(self, breaks_at: int | None = None) -> None:
        self.calls: list[str] = []
        self.shown: list[tuple[Tensor, Observation, Tensor]] = []
        self.learnt: list[tuple[Tensor, Observation, Tensor]] = []
        self.breaks_at = breaks_at

    def penalty(self, images: Tensor, seen: Observation, labels: Tensor) -> Tensor:
        """A scalar, differentiable in images and features."""
        self.calls.append("penalty")
        self.shown.append((images, seen, labels))
        value = images.square().mean() + seen.features.square().mean()
        return value * float("nan") if len(self.shown) == self.breaks_at else value

    def update(self, images: Tensor, seen: Observation, labels: Tensor) -> None:
        """Store the values."""
        self.calls.append("update")
        self.learnt.append((images, seen, labels))


def synthesize(
    inversion: Inversion,
    state: Any = None,
    *,
    seed: int = 0,
    rng: Streams | None = None,
    teacher: Teacher | None = None,
    student: nn.Module | None = None,
    guide: Any = None,
    weigh: Weigh = equal_weights,
) -> tuple[Samples, Metrics]:
    """One round from a fresh state, unless one is given with its streams."""
    teacher, rng = teacher or make_teacher(), rng or Streams(seed)
    state = inversion.init(teacher, rng) if state is None else state
    return inversion.synthesize(
        state,
        Balanced().sample(inversion.images_per_round, teacher, rng=rng),
        teacher=teacher,
        student=student or make_student(),
        guide=guide or Unguided(),
        weigh=weigh,
        rng=rng,
    )


def check_inversion(inversion: Inversion) -> None:
    """All checks of this module; choose few steps and images, as each check makes some."""
    for check in (
        check_images,
        check_pixels,
        check_guide_is_followed,
        check_guide_learns,
        check_weights_count,
        check_networks_stay,
        check_seed,
        check_streams,
        check_checkpoint,
        check_nan_is_named,
    ):
        check(inversion)


def check_images(inversion: Inversion) -> None:
    """It returns one finite image for each target, with the target's label unless the teacher labels its images."""
    teacher = make_teacher()
    made, _ = synthesize(inversion, teacher=teacher)
    count = inversion.images_per_round
    expect(made.images.shape == (count, *IMAGE_SHAPE), f"images have shape {(count, *IMAGE_SHAPE)}")
    expect(made.labels.shape == (count,), "there is a label for each image")
    expect((made.images.dtype, made.labels.dtype) == (torch.float32, torch.int64), "float32 images, int64 labels")
    expect(bool(made.images.isfinite().all()), "images are finite")
    expect(not made.images.requires_grad, "images have no gradient")
    expect(made.logits.shape == (count, 0), "images come without logits: `unseen`")
    if inversion.labels_by_teacher:
        expect(bool(made.labels.eq(UNLABELLED).all()), "images that the teacher labels later are unlabelled")
        return
    wanted = Balanced().sample(count, teacher, rng=Streams(0)).labels
    expect(torch.equal(made.labels.sort().values, wanted.sort().values), "labels are those of the targets")


def check_pixels(inversion: Inversion) -> None:
    """Images lie in the space in which stores keep them, so that encoding loses no more than rounding."""
    teacher = make_teacher()
    made, _ = synthesize(inversion, teacher=teacher)
    if inversion.pixel_space == "unit":
        pixels = to_unit(made.images, teacher.mean, teacher.std)
        expect(bool(pixels.min() >= -1e-5) and bool(pixels.max() <= 1 + 1e-5), "unit pixels lie in [0, 1]")
    code = Codec(inversion.pixel_space, teacher.mean, teacher.std)
    kept = code.decode(code.encode(made)).images
    # Half a grey level, or half precision.
    torch.testing.assert_close(kept, made.images, rtol=1e-3, atol=0.5 / 255 / teacher.std[0] + 1e-5)


def check_guide_is_followed(inversion: Inversion) -> None:
    """The guide's penalty has gradients at images and features, and changes the images."""
    guide = Puller()
    guided, _ = synthesize(inversion, guide=guide)
    plain, _ = synthesize(inversion)
    expect(not torch.equal(guided.images, plain.images), "the guide's penalty changes the images")
    for images, seen, labels in guide.shown:
        expect(images.requires_grad, "the guide is given images with a gradient")
        expect(seen.features.requires_grad and seen.logits.requires_grad, "and an observation with a gradient")
        expect(len(images) == len(seen.logits) == len(labels), "of as many images as labels")


def check_guide_learns(inversion: Inversion) -> None:
    """After each penalty the guide is updated with the detached values that it judged."""
    guide = Puller()
    synthesize(inversion, guide=guide)
    steps = len(guide.shown)
    expect(guide.calls == ["penalty", "update"] * steps and steps > 0, "calls alternate: penalty, update")
    for (images, seen, labels), (learnt, looked, named) in zip(guide.shown, guide.learnt, strict=True):
        values = (learnt, looked.logits, looked.features, looked.bn)
        expect(not any(one.requires_grad for one in values), "update is given values without gradient")
        expect(torch.equal(looked.features, seen.features), "update is given the observation of the penalty")
        expect(torch.equal(named, labels) and learnt.shape == images.shape, "and the images and labels of the penalty")


def check_weights_count(inversion: Inversion) -> None:
    """The weights of images count in the loss."""
    halved, _ = synthesize(inversion, weigh=lambda observation, labels: torch.arange(len(labels)) % 2.0)
    plain, _ = synthesize(inversion)
    expect(not torch.equal(halved.images, plain.images), "the weights of images change the images")


def check_networks_stay(inversion: Inversion) -> None:
    """Teacher and student are left as they were, without gradients."""
    teacher, student = make_teacher(), make_student()
    before = frozen(teacher.network), frozen(student)
    synthesize(inversion, teacher=teacher, student=student, guide=Puller())
    expect(same(before, (frozen(teacher.network), frozen(student))), "teacher and student stay as they were")


def check_seed(inversion: Inversion) -> None:
    """The seed alone decides the images."""
    first, again, other = (synthesize(inversion, seed=seed)[0] for seed in (0, 0, 1))
    expect(torch.equal(first.images, again.images) and torch.equal(first.labels, again.labels), "a seed repeats")
    expect(not torch.equal(first.images, other.images), "another seed gives other images")


def check_streams(inversion: Inversion) -> None:
    """It draws neither from the global generator nor from streams of other parts of a trial."""
    teacher, rng, before = make_teacher(), Streams(0), torch.random.get_rng_state()
    state = inversion.init(teacher, rng)
    for _ in range(2):
        synthesize(inversion, state, rng=rng, teacher=teacher, guide=Puller())
    foreign = {stream for stream in opened(rng) if stream.partition("/")[2] in FOREIGN_STREAMS}
    expect(not foreign, f"it draws from no stream of other parts: {sorted(foreign)}")
    expect(torch.equal(torch.random.get_rng_state(), before), "the global generator is left alone")


def check_checkpoint(inversion: Inversion) -> None:
    """A saved and loaded state continues bit for bit."""
    teacher, rng = make_teacher(), Streams(0)
    live = inversion.init(teacher, rng)
    synthesize(inversion, live, rng=rng, teacher=teacher)
    # Of the same seed: networks built in a later round take theirs from it and the round's number.
    fresh = Streams(0)
    loaded, continued = reloaded(live, rng, inversion.init(teacher, fresh), fresh)
    expect(len(pointers(loaded)) == len(list(tensors(loaded))), "no two tensors of a state are one")
    for _ in range(2):
        wanted, metrics = synthesize(inversion, live, rng=rng, teacher=teacher)
        found, others = synthesize(inversion, loaded, rng=continued, teacher=teacher)
        expect(torch.equal(found.images, wanted.images) and metrics == others, "a loaded state continues bit for bit")


def check_nan_is_named(inversion: Inversion) -> None:
    """A NaN in the guide's penalty ends the round with a `NonFiniteError` that names a term."""
    try:
        synthesize(inversion, guide=Puller(breaks_at=1))
    except NonFiniteError as error:
        expect("inversion/" in str(error), f"the error names a term of the inversion: {error}")
    else:
        raise AssertionError("a NaN of the guide raises NonFiniteError")

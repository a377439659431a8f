"""Checks of the contract `condkd_ray.methods.inversion.inversion.Inversion`, on toy images of each task."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from condkd_ray.core.method import Metrics, NonFiniteError
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import UNLABELLED, Codec, Samples, to_unit
from condkd_ray.core.task import Task
from condkd_ray.methods.guidance.guidance import Unguided
from condkd_ray.methods.inversion import Inversion
from condkd_ray.methods.targets import Balanced
from condkd_ray.methods.weighing import Weigh, equal_weights
from condkd_ray.models.observation import Observation
from condkd_ray.models.teacher import Teacher
from condkd_ray.testing.scenes import make_dense_student, make_dense_teacher
from condkd_ray.testing.states import expect, pointers, reloaded, same, snapshot, tensors, used_streams
from condkd_ray.testing.world import make_student, make_teacher

FOREIGN_STREAMS = {"augment/guide", "augment/student", "draw", "condensed", "init/student", "reservoir", "replay"}
"""Random streams of other parts of a trial, from which an inversion must not draw."""


TEACHERS: dict[Task, Callable[[], Teacher]] = {"classification": make_teacher, "segmentation": make_dense_teacher}
STUDENTS: dict[Task, Callable[[], nn.Module]] = {"classification": make_student, "segmentation": make_dense_student}


class RecordingGuide:
    """A guide that records the arguments of all calls. Its penalty favours dark images with small teacher features.

    The penalty of call number `nan_at`, counted from 1, is NaN.
    """

    layers = ()

    def __init__(self, nan_at: int | None = None) -> None:
        self.calls: list[str] = []
        self.penalty_calls: list[tuple[Tensor, Observation, Tensor]] = []
        self.update_calls: list[tuple[Tensor, Observation, Tensor]] = []
        self.nan_at = nan_at

    def penalty(self, images: Tensor, seen: Observation, labels: Tensor) -> Tensor:
        """Record the arguments and return a scalar that is differentiable in images and features."""
        self.calls.append("penalty")
        self.penalty_calls.append((images, seen, labels))
        value = images.square().mean() + seen.features.square().mean()
        return value * float("nan") if len(self.penalty_calls) == self.nan_at else value

    def update(self, images: Tensor, seen: Observation, labels: Tensor) -> None:
        """Record the arguments."""
        self.calls.append("update")
        self.update_calls.append((images, seen, labels))


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
    """Run one round from a new state, or from the given `state` and `rng`, and return its images and metrics.

    The task is that of the `teacher`, by default classification.
    """
    teacher, rng = teacher or make_teacher(), rng or Streams(seed)
    student = student or STUDENTS[teacher.task]()
    state = inversion.init(teacher, rng) if state is None else state
    return inversion.synthesize(
        state,
        Balanced().sample(inversion.images_per_round, teacher, rng=rng),
        teacher=teacher,
        student=student,
        guide=guide or Unguided(),
        weigh=weigh,
        rng=rng,
    )


def check_inversion(inversion: Inversion) -> None:
    """Run all checks of this module for each task that the inversion works for.

    Choose few steps and images, because each check runs rounds; but enough steps that a host that keeps the images of
    its best step keeps other images than the first. Raises `AssertionError` with the rule that is broken.
    """
    for task in inversion.tasks:
        for check in CHECKS:
            check(inversion, task)


def check_images(inversion: Inversion, task: Task = "classification") -> None:
    """Check that there is one finite image for each target.

    Its label is the target's label, or `UNLABELLED` if the teacher labels the images; in segmentation the labels of its
    pixels are.
    """
    teacher = TEACHERS[task]()
    made, _ = synthesize(inversion, teacher=teacher)
    count = inversion.images_per_round
    expect(made.images.shape == (count, *teacher.image_shape), f"images have shape {(count, *teacher.image_shape)}")
    wanted = Balanced().sample(count, teacher, rng=Streams(0)).labels
    expect(made.labels.shape == wanted.shape, "there is one label for each image, in segmentation for each pixel")
    expect(
        (made.images.dtype, made.labels.dtype) == (torch.float32, torch.int64), "images are float32, labels are int64"
    )
    expect(bool(made.images.isfinite().all()), "images are finite")
    expect(not made.images.requires_grad, "images have no gradient")
    expect(made.logits.shape == (count, 0), "images have no logits, as from `unseen`")
    if inversion.labels_by_teacher:
        expect(bool(made.labels.eq(UNLABELLED).all()), "images that the teacher labels later have the label UNLABELLED")
        return
    expect(torch.equal(made.labels.sort().values, wanted.sort().values), "labels are those of the targets")


def check_pixels(inversion: Inversion, task: Task = "classification") -> None:
    """Check that pixels lie in the range of `pixel_space`, so that stores change them only by rounding."""
    teacher = TEACHERS[task]()
    made, _ = synthesize(inversion, teacher=teacher)
    if inversion.pixel_space == "unit":
        pixels = to_unit(made.images, teacher.mean, teacher.std)
        expect(bool(pixels.min() >= -1e-5) and bool(pixels.max() <= 1 + 1e-5), "unit pixels lie in [0, 1]")
    code = Codec(inversion.pixel_space, teacher.mean, teacher.std)
    kept = code.decode(code.encode(made)).images
    # Half a grey level, or the rounding of half precision.
    torch.testing.assert_close(kept, made.images, rtol=1e-3, atol=0.5 / 255 / teacher.std[0] + 1e-5)


def check_guide_changes_images(inversion: Inversion, task: Task = "classification") -> None:
    """Check that the guide's penalty changes the images and receives tensors with gradients."""
    guide = RecordingGuide()
    guided, _ = synthesize(inversion, teacher=TEACHERS[task](), guide=guide)
    plain, _ = synthesize(inversion, teacher=TEACHERS[task]())
    expect(not torch.equal(guided.images, plain.images), "the guide's penalty changes the images")
    for images, seen, labels in guide.penalty_calls:
        expect(images.requires_grad, "penalty receives images with a gradient")
        expect(
            seen.features.requires_grad and seen.logits.requires_grad, "penalty receives an observation with a gradient"
        )
        expect(len(images) == len(seen.logits) == len(labels), "images, observation and labels have equal lengths")


def check_guide_updates(inversion: Inversion, task: Task = "classification") -> None:
    """Check that each penalty is followed by an update with the same values, detached."""
    guide = RecordingGuide()
    synthesize(inversion, teacher=TEACHERS[task](), guide=guide)
    steps = len(guide.penalty_calls)
    expect(guide.calls == ["penalty", "update"] * steps and steps > 0, "calls of penalty and update alternate")
    for (images, seen, labels), (detached, repeated, same_labels) in zip(
        guide.penalty_calls, guide.update_calls, strict=True
    ):
        values = (detached, repeated.logits, repeated.features, repeated.bn)
        expect(not any(one.requires_grad for one in values), "update receives values without gradient")
        expect(torch.equal(repeated.features, seen.features), "update receives the observation of the penalty")
        expect(
            torch.equal(same_labels, labels) and detached.shape == images.shape,
            "update receives the labels of the penalty",
        )


def check_image_weights(inversion: Inversion, task: Task = "classification") -> None:
    """Check that the weights of images have an effect on the loss."""
    halved, _ = synthesize(
        inversion, teacher=TEACHERS[task](), weigh=lambda observation, labels: torch.arange(len(labels)) % 2.0
    )
    plain, _ = synthesize(inversion, teacher=TEACHERS[task]())
    expect(not torch.equal(halved.images, plain.images), "the weights of images change the images")


def check_networks_unchanged(inversion: Inversion, task: Task = "classification") -> None:
    """Check that a round does not change teacher and student, and sets no gradients."""
    teacher, student = TEACHERS[task](), STUDENTS[task]()
    before = snapshot(teacher.network), snapshot(student)
    synthesize(inversion, teacher=teacher, student=student, guide=RecordingGuide())
    expect(same(before, (snapshot(teacher.network), snapshot(student))), "teacher and student are unchanged")


def check_seed(inversion: Inversion, task: Task = "classification") -> None:
    """Check that the images depend on the seed, and on nothing else that is random."""
    first, again, other = (synthesize(inversion, teacher=TEACHERS[task](), seed=seed)[0] for seed in (0, 0, 1))
    expect(
        torch.equal(first.images, again.images) and torch.equal(first.labels, again.labels),
        "equal seeds give equal images",
    )
    expect(not torch.equal(first.images, other.images), "different seeds give different images")


def check_streams(inversion: Inversion, task: Task = "classification") -> None:
    """Check that the inversion uses neither the global random generator nor streams of other parts of a trial."""
    teacher, rng, before = TEACHERS[task](), Streams(0), torch.random.get_rng_state()
    state = inversion.init(teacher, rng)
    for _ in range(2):
        synthesize(inversion, state, rng=rng, teacher=teacher, guide=RecordingGuide())
    foreign = {stream for stream in used_streams(rng) if stream.partition("/")[2] in FOREIGN_STREAMS}
    expect(not foreign, f"streams of other parts of a trial are not used, but {sorted(foreign)} are")
    expect(torch.equal(torch.random.get_rng_state(), before), "the global random generator is unchanged")


def check_checkpoint(inversion: Inversion, task: Task = "classification") -> None:
    """Check that a saved and loaded state continues bit for bit."""
    teacher, rng = TEACHERS[task](), Streams(0)
    live = inversion.init(teacher, rng)
    synthesize(inversion, live, rng=rng, teacher=teacher)
    # With the same seed, because networks built in a later round are seeded by it and the round's number.
    fresh = Streams(0)
    loaded, continued = reloaded(live, rng, inversion.init(teacher, fresh), fresh)
    expect(len(pointers(loaded)) == len(list(tensors(loaded))), "no two tensors of a state share memory")
    for _ in range(2):
        wanted, metrics = synthesize(inversion, live, rng=rng, teacher=teacher)
        found, others = synthesize(inversion, loaded, rng=continued, teacher=teacher)
        expect(torch.equal(found.images, wanted.images) and metrics == others, "a loaded state continues bit for bit")


def check_nan_is_reported(inversion: Inversion, task: Task = "classification") -> None:
    """Check that a NaN in the guide's penalty raises `NonFiniteError` that names a term of the inversion."""
    try:
        synthesize(inversion, teacher=TEACHERS[task](), guide=RecordingGuide(nan_at=1))
    except NonFiniteError as error:
        expect("inversion/" in str(error), f"the error names a term of the inversion: {error}")
    else:
        raise AssertionError("a NaN in the guide's penalty raises NonFiniteError")


CHECKS = (
    check_images,
    check_pixels,
    check_guide_changes_images,
    check_guide_updates,
    check_image_weights,
    check_networks_unchanged,
    check_seed,
    check_streams,
    check_checkpoint,
    check_nan_is_reported,
)
"""The checks that `check_inversion` runs."""

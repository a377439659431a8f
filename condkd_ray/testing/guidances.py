"""Checks of the contract `condkd_ray.methods.guidance.guidance.Guidance`, on toy images of each task."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples, to_model
from condkd_ray.core.task import Task, is_dense
from condkd_ray.data.augment import black_of, shift_flip
from condkd_ray.methods.guidance import Guidance
from condkd_ray.models.teacher import Teacher
from condkd_ray.testing.scenes import SCENE_SHAPE, make_dense_teacher, scenes
from condkd_ray.testing.states import expect, reloaded, same, snapshot, tensors, used_streams
from condkd_ray.testing.world import MEAN, NUM_CLASSES, STD, blobs, make_teacher, samples

LABELS = torch.arange(16) % NUM_CLASSES


def identity(images: Tensor, stream: Any) -> Tensor:
    """Return the images unchanged: the augmentation of a host without augmentation."""
    return images


def bound(
    guidance: Guidance,
    *,
    rng: Streams | None = None,
    teacher: Teacher | None = None,
    condensed: Samples | None = None,
    host_augment: Any = identity,
    carried: Any = None,
    progress: float = 0.0,
) -> tuple[Any, Any]:
    """Return a guide with two condensed images per class, or 8 segmented ones, and the guidance's state."""
    rng, teacher = rng or Streams(0), teacher or make_teacher()
    real = scenes if is_dense(teacher.task) else blobs
    condensed = condensed or real(8, seed=4).samples(teacher.mean, teacher.std)
    carried = guidance.start(teacher, condensed, rng, host_augment) if carried is None else carried
    guide = guidance.bind(
        carried, teacher=teacher, condensed=condensed, host_augment=host_augment, rng=rng, progress=progress
    )
    return guide, carried


def fakes(seed: int = 0) -> Tensor:
    """Return random images with the labels `LABELS`."""
    return samples(len(LABELS), seed, LABELS).images


def dense_fakes(seed: int = 0) -> Tensor:
    """Return random images (16, 1, 12, 16) of the size of the toy scenes."""
    pixels = torch.rand(len(LABELS), *SCENE_SHAPE, generator=torch.Generator().manual_seed(seed))
    return to_model(pixels, MEAN, STD)


@dataclass(frozen=True)
class World:
    """Toy images of one task, from which guides are made."""

    make_teacher: Callable[[], Teacher]
    fakes: Callable[[int], Tensor]
    labels: Tensor
    """The labels that a host passes for all batches of fakes."""
    host_augment: Any
    augmentations: tuple[Any, ...]
    """Values of `Guidance.augment` that the task accepts."""


def shifted(images: Tensor, stream: Any) -> Tensor:
    """Shift scenes, with their labels if they are one more channel, as the hosts do."""
    black = black_of(torch.tensor(MEAN).view(1, -1, 1, 1).neg() / torch.tensor(STD).view(1, -1, 1, 1), images)
    return shift_flip(images, rng=stream, share=0.25, flip=True, black=black)


WORLDS: dict[Task, World] = {
    "classification": World(make_teacher, fakes, LABELS, identity, ("host", "condensed", "dsa")),
    "segmentation": World(make_dense_teacher, dense_fakes, scenes(16, seed=5).labels.long(), shifted, ("host",)),
}


def step(guide: Any, images: Tensor, teacher: Teacher) -> tuple[Tensor, Tensor]:
    """Call the guide as a host does in one step, and return the penalty and its gradient with respect to the images."""
    labels = WORLDS[teacher.task].labels
    images = images.clone().requires_grad_()
    observation = teacher.observe(images, guide.layers)
    penalty = guide.penalty(images, observation, labels)
    (gradient,) = torch.autograd.grad(penalty + 0 * images.sum(), images)
    guide.update(images.detach(), observation.detach(), labels)
    return penalty.detach(), gradient


def check_guidance(guidance: Guidance) -> None:
    """Run all checks of this module, for each task that the guidance works for, with each augmentation.

    Raises `AssertionError` with the rule that is broken.
    """
    check_condensed_set_is_needed(guidance)
    for task in guidance.tasks:
        world = WORLDS[task]
        for augment in world.augmentations:
            each = replace(guidance, augment=augment)
            for check in (check_gradient, check_weight, check_only_own_state_changes, check_streams, check_checkpoint):
                check(each, world)


def check_gradient(guidance: Guidance, world: World = WORLDS["classification"]) -> None:
    """Check that the penalty's gradient is finite, and non-zero at every image."""
    teacher = world.make_teacher()
    guide, _ = bound(guidance, teacher=teacher, host_augment=world.host_augment)
    for _ in range(2):
        _, gradient = step(guide, world.fakes(0), teacher)
        expect(bool(gradient.isfinite().all()), "the gradient is finite")
        expect(bool((gradient.flatten(1).abs().amax(1) > 0).all()), "the gradient is non-zero at every image")


def check_weight(guidance: Guidance, world: World = WORLDS["classification"]) -> None:
    """Check that penalty and gradient are proportional to the weight."""
    found = []
    for weight in (0.0, 1.0, 3.0):
        teacher = world.make_teacher()
        guide, _ = bound(replace(guidance, weight=weight), teacher=teacher, host_augment=world.host_augment)
        found.append(step(guide, world.fakes(0), teacher))
    (penalty, gradient), once, thrice = found
    expect(bool(penalty == 0) and bool((gradient == 0).all()), "at weight 0, penalty and gradient are 0")
    torch.testing.assert_close(thrice, tuple(3 * value for value in once))


def check_only_own_state_changes(guidance: Guidance, world: World = WORLDS["classification"]) -> None:
    """Check that `update` changes only the state of the guidance, if it changes anything."""
    teacher = world.make_teacher()
    guide, carried = bound(guidance, teacher=teacher, host_augment=world.host_augment)
    images = world.fakes(0).requires_grad_()
    observation = teacher.observe(images, guide.layers)
    before = [one.clone() for one in tensors(carried)]
    kept = (
        snapshot(teacher.network),
        *(one.detach().clone() for one in (images, observation.features, guide.condensed.images)),
    )
    guide.update(images.detach(), observation.detach(), world.labels)
    now = snapshot(teacher.network), images.detach(), observation.features.detach(), guide.condensed.images
    expect(same(kept, now), "update does not change teacher, images, observation and condensed images")
    expect(images.grad is None, "update does not set a gradient of the images")
    if not guidance.uses_condensed_batches:
        expect(
            same(before, list(tensors(carried))),
            "without `uses_condensed_batches`, update does not change the state",
        )


def check_streams(guidance: Guidance, world: World = WORLDS["classification"]) -> None:
    """Check that the guidance draws random numbers only from the stream `augment/guide`."""
    rng, teacher, before = Streams(0), world.make_teacher(), torch.random.get_rng_state()
    guide, _ = bound(guidance, rng=rng, teacher=teacher, host_augment=world.host_augment)
    step(guide, world.fakes(0), teacher)
    expect(
        used_streams(rng) <= {"device/augment/guide", "host/augment/guide"},
        f"only augment/guide is used, not {sorted(used_streams(rng))}",
    )
    expect(torch.equal(torch.random.get_rng_state(), before), "the global random generator is unchanged")


def check_checkpoint(guidance: Guidance, world: World = WORLDS["classification"]) -> None:
    """Check that a saved and loaded state continues bit for bit."""
    teacher, rng = world.make_teacher(), Streams(0)
    given: dict[str, Any] = {"teacher": teacher, "host_augment": world.host_augment}
    guide, live = bound(guidance, rng=rng, **given)
    step(guide, world.fakes(0), teacher)
    _, fresh = bound(guidance, rng=Streams(9), **given)
    loaded, continued = reloaded(live, rng, fresh, Streams(9))
    other, _ = bound(guidance, rng=continued, carried=loaded, **given)
    for seed in (1, 2):
        alike = same(step(guide, world.fakes(seed), teacher), step(other, world.fakes(seed), teacher))
        expect(alike, "a loaded state continues bit for bit")
    expect(guidance.read(other).keys() == guidance.read(guide).keys(), "a loaded state logs the same terms")


def check_condensed_set_is_needed(guidance: Guidance) -> None:
    """Check that a missing condensed set raises `InputError`."""
    try:
        guidance.start(make_teacher(), None, Streams(0))
    except InputError as error:
        expect("condensed set of a guided run" in str(error), f"the message names the condensed set: {error}")
    else:
        raise AssertionError("a guidance without a condensed set raises InputError")

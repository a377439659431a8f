"""Checks of the contract `condkd_ray.methods.guidance.guidance.Guidance`, on toy images."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.methods.guidance import Guidance
from condkd_ray.models.teacher import Teacher
from condkd_ray.testing.states import expect, reloaded, same, snapshot, tensors, used_streams
from condkd_ray.testing.world import NUM_CLASSES, blobs, make_teacher, samples

LABELS = torch.arange(16) % NUM_CLASSES


def identity(images: Tensor, stream: Any) -> Tensor:
    """Return the images unchanged: the augmentation of a host without augmentation."""
    return images


def bound(
    guidance: Guidance,
    *,
    rng: Streams | None = None,
    teacher: Teacher | None = None,
    condensed: Any = None,
    host_augment: Any = identity,
    carried: Any = None,
    progress: float = 0.0,
) -> tuple[Any, Any]:
    """Return a guide with two condensed images per class, and the guidance's state."""
    rng, teacher = rng or Streams(0), teacher or make_teacher()
    condensed = condensed or blobs(8, seed=4).samples(teacher.mean, teacher.std)
    carried = guidance.start(teacher, condensed, rng, host_augment) if carried is None else carried
    guide = guidance.bind(
        carried, teacher=teacher, condensed=condensed, host_augment=host_augment, rng=rng, progress=progress
    )
    return guide, carried


def fakes(seed: int = 0) -> Tensor:
    """Return random images with the labels `LABELS`."""
    return samples(len(LABELS), seed, LABELS).images


def step(guide: Any, images: Tensor, teacher: Teacher) -> tuple[Tensor, Tensor]:
    """Call the guide as a host does in one step, and return the penalty and its gradient with respect to the images."""
    images = images.clone().requires_grad_()
    observation = teacher.observe(images, guide.layers)
    penalty = guide.penalty(images, observation, LABELS)
    (gradient,) = torch.autograd.grad(penalty + 0 * images.sum(), images)
    guide.update(images.detach(), observation.detach(), LABELS)
    return penalty.detach(), gradient


def check_guidance(guidance: Guidance) -> None:
    """Run all checks of this module, with each augmentation.

    Raises `AssertionError` with the rule that is broken.
    """
    check_condensed_set_is_needed(guidance)
    for augment in ("host", "condensed", "dsa"):
        each = replace(guidance, augment=augment)
        for check in (check_gradient, check_weight, check_only_own_state_changes, check_streams, check_checkpoint):
            check(each)


def check_gradient(guidance: Guidance) -> None:
    """Check that the penalty's gradient is finite, and non-zero at every image."""
    teacher = make_teacher()
    guide, _ = bound(guidance, teacher=teacher)
    for _ in range(2):
        _, gradient = step(guide, fakes(), teacher)
        expect(bool(gradient.isfinite().all()), "the gradient is finite")
        expect(bool((gradient.flatten(1).abs().amax(1) > 0).all()), "the gradient is non-zero at every image")


def check_weight(guidance: Guidance) -> None:
    """Check that penalty and gradient are proportional to the weight."""
    found = []
    for weight in (0.0, 1.0, 3.0):
        teacher = make_teacher()
        guide, _ = bound(replace(guidance, weight=weight), teacher=teacher)
        found.append(step(guide, fakes(), teacher))
    (penalty, gradient), once, thrice = found
    expect(bool(penalty == 0) and bool((gradient == 0).all()), "at weight 0, penalty and gradient are 0")
    torch.testing.assert_close(thrice, tuple(3 * value for value in once))


def check_only_own_state_changes(guidance: Guidance) -> None:
    """Check that `update` changes only the state of the guidance, if it changes anything."""
    teacher = make_teacher()
    guide, carried = bound(guidance, teacher=teacher)
    images = fakes().requires_grad_()
    observation = teacher.observe(images, guide.layers)
    before = [one.clone() for one in tensors(carried)]
    kept = (
        snapshot(teacher.network),
        *(one.detach().clone() for one in (images, observation.features, guide.condensed.images)),
    )
    guide.update(images.detach(), observation.detach(), LABELS)
    now = snapshot(teacher.network), images.detach(), observation.features.detach(), guide.condensed.images
    expect(same(kept, now), "update does not change teacher, images, observation and condensed images")
    expect(images.grad is None, "update does not set a gradient of the images")
    if not guidance.uses_condensed_batches:
        expect(
            same(before, list(tensors(carried))),
            "without `uses_condensed_batches`, update does not change the state",
        )


def check_streams(guidance: Guidance) -> None:
    """Check that the guidance draws random numbers only from the stream `augment/guide`."""
    rng, teacher, before = Streams(0), make_teacher(), torch.random.get_rng_state()
    guide, _ = bound(guidance, rng=rng, teacher=teacher)
    step(guide, fakes(), teacher)
    expect(
        used_streams(rng) <= {"device/augment/guide", "host/augment/guide"},
        f"only augment/guide is used, not {sorted(used_streams(rng))}",
    )
    expect(torch.equal(torch.random.get_rng_state(), before), "the global random generator is unchanged")


def check_checkpoint(guidance: Guidance) -> None:
    """Check that a saved and loaded state continues bit for bit."""
    teacher, rng = make_teacher(), Streams(0)
    guide, live = bound(guidance, rng=rng, teacher=teacher)
    step(guide, fakes(), teacher)
    _, fresh = bound(guidance, rng=Streams(9), teacher=teacher)
    loaded, continued = reloaded(live, rng, fresh, Streams(9))
    other, _ = bound(guidance, rng=continued, teacher=teacher, carried=loaded)
    for seed in (1, 2):
        alike = same(step(guide, fakes(seed), teacher), step(other, fakes(seed), teacher))
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

"""Checks of the contracts of targets, weighing, memory and condensation, on toy images of each claimed task.

A check raises `AssertionError` with the rule that is broken.
"""

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F

from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import UNLABELLED, Codec, Samples, unseen
from condkd_ray.core.task import Task, is_dense
from condkd_ray.methods.condensation import Condensation
from condkd_ray.methods.condensation.condensation import first_per_class
from condkd_ray.methods.memory import LocalStore, ReplayMemory
from condkd_ray.methods.targets import TargetSource
from condkd_ray.methods.weighing import Weighing
from condkd_ray.models.teacher import Teacher
from condkd_ray.testing.scenes import make_dense_teacher, scenes
from condkd_ray.testing.states import expect, reloaded, same, snapshot, tensors, used_streams
from condkd_ray.testing.world import MEAN, NUM_CLASSES, STD, blobs, make_teacher


def _teacher(task: Task) -> Teacher:
    return make_dense_teacher() if is_dense(task) else make_teacher()


def check_targets(source: TargetSource) -> None:
    """Check a source of targets for each task that it works for.

    Targets are classes, or probabilities together with the most probable class, in segmentation one class per pixel,
    and are drawn only from the stream `targets`.
    """
    for task in source.tasks:
        _check_targets(source, _teacher(task))


def _check_targets(source: TargetSource, teacher: Teacher) -> None:
    dense, rng = is_dense(teacher.task), Streams(0)
    condensed = (scenes if dense else blobs)(8, seed=4).samples(MEAN, STD)
    given: dict[str, Any] = {"condensed": condensed} if source.needs_condensed else {}
    source.check(teacher)
    drawn = [source.sample(64, teacher, rng=rng, **given) for _ in range(2)]
    again, other = (source.sample(64, teacher, rng=Streams(seed), **given) for seed in (0, 1))
    targets = drawn[0]
    expect(len(source.sample(0, teacher, rng=Streams(0), **given)) == 0, "0 targets can be drawn")
    shape = (64, *teacher.image_shape[1:]) if dense else (64,)
    expect(
        targets.labels.shape == shape and targets.labels.dtype == torch.int64,
        "labels are int64, one for each target, in segmentation one for each pixel of each target",
    )
    least = UNLABELLED if dense else 0
    expect(bool(((targets.labels >= least) & (targets.labels < NUM_CLASSES)).all()), "labels are class indices")
    expect(used_streams(rng) == {"device/targets"}, "targets are drawn only from the stream `targets`")
    expect(torch.equal(targets.cross_entropy_target, again.cross_entropy_target), "equal seeds give equal targets")
    expect(
        not torch.equal(targets.cross_entropy_target, other.cross_entropy_target),
        "different seeds give different targets",
    )
    expect(not torch.equal(targets.cross_entropy_target, drawn[1].cross_entropy_target), "two successive draws differ")
    expect((targets.soft is not None) == source.soft, "there are soft targets if and only if `soft` is true")
    if targets.soft is not None:
        torch.testing.assert_close(targets.soft.sum(1), torch.ones(64))
        expect(bool((targets.soft >= 0).all()) and not targets.soft.requires_grad, "soft targets are probabilities")
        expect(torch.equal(targets.labels, targets.soft.argmax(1)), "labels are the most probable classes")
        expect(targets.temperature > 0, "the temperature of soft targets is above 0")


def check_weighing(weighing: Weighing) -> None:
    """Check a weighing for each task that it works for.

    There is one finite weight >= 0 for each image, not all are 0, and they do not depend on the order of the images.
    Class counts and teacher are unchanged.
    """
    for task in weighing.tasks:
        labels = scenes(12).labels.long() if is_dense(task) else torch.arange(12) % NUM_CLASSES
        _check_weighing(weighing, _teacher(task), labels)


def _check_weighing(weighing: Weighing, teacher: Teacher, labels: torch.Tensor) -> None:
    images = torch.randn(12, *teacher.image_shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    seen = teacher.observe(images)
    before = snapshot(teacher.network)
    for held in (torch.tensor([9, 1, 0, 2]), torch.zeros(NUM_CLASSES, dtype=torch.int64)):
        counts = held.clone()
        weigh = weighing.bind(counts)
        weights = weigh(seen, labels)
        expect(weights.shape == (12,) and weights.dtype == torch.float32, "weights are float32, one for each image")
        expect(bool(weights.isfinite().all()) and bool((weights >= 0).all()), "weights are finite and >= 0")
        expect(bool(weights.sum() > 0), "weights are not all 0")
        order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
        other = type(seen)(seen.logits[order], seen.features[order], seen.bn)
        torch.testing.assert_close(weigh(other, labels[order]), weights[order])
        expect(torch.equal(counts, held), "class counts are unchanged")
    expect(same(before, snapshot(teacher.network)), "the teacher is unchanged")


class _MemoryRun:
    """A memory with its store, its state and its random streams."""

    def __init__(self, memory: ReplayMemory, teacher: Any, seed: int = 0) -> None:
        self.memory, self.teacher, self.rng = memory, teacher, Streams(seed)
        self.state = memory.init(teacher, self.rng)
        self.store = LocalStore(Codec("unit", (0.0,), (1.0,), not is_dense(teacher.task)), NUM_CLASSES)

    def add(self, count: int) -> None:
        """Add a round of `count` images whose first two pixels encode their ids."""
        ids = torch.arange(self.store.num_ids, self.store.num_ids + count)
        images = torch.zeros(count, *self.teacher.image_shape)
        images[:, 0, 0, 0], images[:, 0, 0, 1] = ids % 256 / 255, ids // 256 / 255
        labels = ids % NUM_CLASSES
        if is_dense(self.teacher.task):
            made = unseen(images, labels[:, None, None].expand(count, *images.shape[2:]).contiguous())
        else:
            made = Samples(images, labels, F.one_hot(labels, NUM_CLASSES).float())
        self.memory.add(self.state, self.store, made, teacher=self.teacher, rng=self.rng)

    def draw(self, count: int) -> Any:
        """Draw `count` samples as a student step does, and report a loss for each."""
        drawn = self.memory.draw(self.state, self.store, count, teacher=self.teacher, rng=self.rng)
        self.memory.feedback(self.state, drawn.ids, 0.1 + drawn.samples.images.flatten(1)[:, 0])
        return drawn


def check_memory(memory: ReplayMemory) -> None:
    """Check a replay memory for each task that it works for.

    It draws only live samples of the store, reports dropped samples to the store, leaves the global random generator
    unchanged, and continues bit for bit from a saved state.
    """
    for task in memory.tasks:
        _check_memory(memory, _teacher(task))


def _check_memory(memory: ReplayMemory, teacher: Teacher) -> None:
    # In segmentation each pixel of an image has the class of the image here.
    each = math.prod(teacher.image_shape[1:]) if is_dense(teacher.task) else 1
    before = torch.random.get_rng_state()
    run = _MemoryRun(memory, teacher)
    for size in (9, 7, 8):
        run.add(size)
        drawn, live = run.draw(5), set(memory.live(run.state).tolist())
        stored = drawn.ids >= 0
        wanted = drawn.ids[stored] % NUM_CLASSES
        expect(
            len(drawn.ids) == len(drawn.weights) == len(drawn.samples) == 5,
            "a draw of 5 has 5 samples, ids and weights",
        )
        expect(set(drawn.ids[stored].tolist()) <= live, "drawn ids of the store are live")
        expect(
            torch.equal(drawn.samples.labels[stored].view(len(wanted), -1), wanted[:, None].expand(-1, each)),
            "drawn samples belong to the drawn ids",
        )
        counts = torch.bincount(torch.tensor(sorted(live)) % NUM_CLASSES, minlength=NUM_CLASSES)
        expect(
            torch.equal(run.store.class_counts, each * counts),
            "the memory drops from the store exactly the ids that are no longer live",
        )
    expect(torch.equal(torch.random.get_rng_state(), before), "the global random generator is unchanged")
    other = copy.copy(run)
    other.store, fresh = copy.deepcopy(run.store), Streams(5)
    other.state, other.rng = reloaded(run.state, run.rng, memory.init(teacher, Streams(0)), fresh)
    for size in (4, 6):
        one, two = run.draw(5), other.draw(5)
        expect(torch.equal(one.ids, two.ids) and torch.equal(one.weights, two.weights), "a loaded state draws the same")
        run.add(size)
        other.add(size)
        expect(
            same(list(tensors(other.state)), list(tensors(run.state))), "a loaded state stays equal to the saved one"
        )


def check_condensation(condensation: Condensation) -> None:
    """Check a condensation for each task that it works for.

    It returns `ipc` finite images of each class, sorted by class and without logits; in segmentation `ipc` images.
    Equal seeds give equal images, and a smaller `ipc` gives a prefix of each class, in segmentation of the set.
    """
    for task in condensation.tasks:
        _check_condensation(condensation, task)


def _check_condensation(condensation: Condensation, task: Task) -> None:
    teacher = _teacher(task)
    real = (scenes if is_dense(task) else blobs)(80, seed=3).samples(MEAN, STD)
    given: dict[str, Any] = {"num_classes": NUM_CLASSES, "mean": MEAN, "std": STD, "flip_ok": False}
    given |= {"teacher": teacher} if condensation.needs_teacher else {}
    kept, before = real.images.clone(), torch.random.get_rng_state()
    made, again = (condensation.condense(real, **given, rng=Streams(0)) for _ in range(2))
    if is_dense(task):
        shape = (condensation.ipc, *teacher.image_shape[1:])
        expect(made.labels.shape == shape, "there are ipc images with a label for each pixel")
    else:
        classes = torch.arange(NUM_CLASSES).repeat_interleave(condensation.ipc)
        expect(torch.equal(made.labels, classes), "there are ipc images of each class, sorted by class")
    expect(
        made.images.shape[1:] == teacher.image_shape and bool(made.images.isfinite().all()),
        "images are finite and have the shape of the real images",
    )
    expect(
        made.logits.shape == (len(made), 0) and not made.images.requires_grad,
        "images have neither logits nor a gradient",
    )
    expect(torch.equal(made.images, again.images), "equal seeds give equal images")
    expect(torch.equal(real.images, kept), "real images are unchanged")
    expect(torch.equal(torch.random.get_rng_state(), before), "the global random generator is unchanged")
    whole = condensation.cached_config().condense(real, **given, rng=Streams(0))
    prefix = first_per_class(whole, condensation.ipc, NUM_CLASSES)
    expect(
        torch.equal(prefix.images, made.images) and torch.equal(prefix.labels, made.labels),
        "the images of each class are the first ones in the set of `cached_config`",
    )

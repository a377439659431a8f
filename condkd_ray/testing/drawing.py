"""Checks of the contracts of targets, weighing, memory and condensation, over toy images."""

import copy
from typing import Any

import torch
import torch.nn.functional as F

from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Codec, Samples
from condkd_ray.methods.condensation import Condensation
from condkd_ray.methods.condensation.condensation import first_per_class
from condkd_ray.methods.memory import LocalStore, ReplayMemory
from condkd_ray.methods.targets import TargetSource
from condkd_ray.methods.weighing import Weighing
from condkd_ray.testing.states import expect, frozen, opened, reloaded, same, tensors
from condkd_ray.testing.world import IMAGE_SHAPE, MEAN, NUM_CLASSES, STD, blobs, make_teacher


def check_targets(source: TargetSource) -> None:
    """Targets are classes, or probabilities with their largest class, drawn from the stream `targets` alone."""
    teacher, rng = make_teacher(), Streams(0)
    source.check(teacher)
    drawn = [source.sample(64, teacher, rng=rng) for _ in range(2)]
    again, other = (source.sample(64, teacher, rng=Streams(seed)) for seed in (0, 1))
    targets = drawn[0]
    expect(len(source.sample(0, teacher, rng=Streams(0))) == 0, "0 targets can be drawn")
    expect(targets.labels.shape == (64,) and targets.labels.dtype == torch.int64, "int64 labels, one each")
    expect(bool(((targets.labels >= 0) & (targets.labels < NUM_CLASSES)).all()), "labels are numbers of classes")
    expect(opened(rng) == {"device/targets"}, "they are drawn from the stream `targets` alone")
    expect(torch.equal(targets.cross_entropy_target, again.cross_entropy_target), "a seed repeats")
    expect(
        not torch.equal(targets.cross_entropy_target, other.cross_entropy_target), "another seed gives other targets"
    )
    expect(not torch.equal(targets.cross_entropy_target, drawn[1].cross_entropy_target), "two draws differ")
    expect((targets.soft is not None) == source.soft, "`soft` says whether there are soft targets")
    if targets.soft is not None:
        torch.testing.assert_close(targets.soft.sum(1), torch.ones(64))
        expect(bool((targets.soft >= 0).all()) and not targets.soft.requires_grad, "soft targets are probabilities")
        expect(torch.equal(targets.labels, targets.soft.argmax(1)), "labels are the largest classes")
        expect(targets.temperature > 0, "at a temperature above 0")


def check_weighing(weighing: Weighing) -> None:
    """Weights are finite, >= 0 and not all 0, one an image, whatever the order; counts and teacher stay."""
    teacher = make_teacher()
    images = torch.randn(12, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(0)).requires_grad_()
    seen, labels = teacher.observe(images), torch.arange(12) % NUM_CLASSES
    before = frozen(teacher.network)
    for held in (torch.tensor([9, 1, 0, 2]), torch.zeros(NUM_CLASSES, dtype=torch.int64)):
        counts = held.clone()
        weigh = weighing.bind(counts)
        weights = weigh(seen, labels)
        expect(weights.shape == (12,) and weights.dtype == torch.float32, "float32 weights, one an image")
        expect(bool(weights.isfinite().all()) and bool((weights >= 0).all()), "weights are finite and >= 0")
        expect(bool(weights.sum() > 0), "weights are not all 0")
        order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
        other = type(seen)(seen.logits[order], seen.features[order], seen.bn)
        torch.testing.assert_close(weigh(other, labels[order]), weights[order])
        expect(torch.equal(counts, held), "the counts stay as they were")
    expect(same(before, frozen(teacher.network)), "the teacher stays as it was")


class _Played:
    """A memory over a store."""

    def __init__(self, memory: ReplayMemory, teacher: Any, seed: int = 0) -> None:
        self.memory, self.teacher, self.rng = memory, teacher, Streams(seed)
        self.state = memory.init(teacher, self.rng)
        self.store = LocalStore(Codec("unit", (0.0,), (1.0,)), NUM_CLASSES)

    def add(self, count: int) -> None:
        """A round of images whose first two pixels spell their id."""
        ids = torch.arange(self.store.num_ids, self.store.num_ids + count)
        images = torch.zeros(count, *IMAGE_SHAPE)
        images[:, 0, 0, 0], images[:, 0, 0, 1] = ids % 256 / 255, ids // 256 / 255
        labels = ids % NUM_CLASSES
        made = Samples(images, labels, F.one_hot(labels, NUM_CLASSES).float())
        self.memory.add(self.state, self.store, made, teacher=self.teacher, rng=self.rng)

    def draw(self, count: int) -> Any:
        """A student step's draw, with feedback."""
        drawn = self.memory.draw(self.state, self.store, count, teacher=self.teacher, rng=self.rng)
        self.memory.feedback(self.state, drawn.ids, 0.1 + drawn.samples.images.flatten(1)[:, 0])
        return drawn


def check_memory(memory: ReplayMemory) -> None:
    """It draws what is in the store and live, repeats by seed, and a saved state continues bit for bit."""
    teacher, before = make_teacher(), torch.random.get_rng_state()
    played = _Played(memory, teacher)
    for size in (9, 7, 8):
        played.add(size)
        drawn, live = played.draw(5), set(memory.live(played.state).tolist())
        stored = drawn.ids >= 0
        expect(len(drawn.ids) == len(drawn.weights) == len(drawn.samples) == 5, "5 samples, ids and weights are drawn")
        expect(set(drawn.ids[stored].tolist()) <= live, "ids of the store are live ones")
        expect(torch.equal(drawn.samples.labels[stored], drawn.ids[stored] % NUM_CLASSES), "with the samples of these")
        counts = torch.bincount(torch.tensor(sorted(live)) % NUM_CLASSES, minlength=NUM_CLASSES)
        expect(torch.equal(played.store.class_counts, counts), "the store is told which ids fell out")
    expect(torch.equal(torch.random.get_rng_state(), before), "the global generator is left alone")
    other = copy.copy(played)
    other.store, fresh = copy.deepcopy(played.store), Streams(5)
    other.state, other.rng = reloaded(played.state, played.rng, memory.init(teacher, Streams(0)), fresh)
    for size in (4, 6):
        one, two = played.draw(5), other.draw(5)
        expect(torch.equal(one.ids, two.ids) and torch.equal(one.weights, two.weights), "a loaded state draws the same")
        played.add(size)
        other.add(size)
        expect(same(list(tensors(other.state)), list(tensors(played.state))), "and stays the same")


def check_condensation(condensation: Condensation) -> None:
    """`ipc` finite images a class, sorted by class, without logits; by seed; nested over `ipc`."""
    real, teacher = blobs(80, seed=3).samples(MEAN, STD), make_teacher()
    given: dict[str, Any] = {"num_classes": NUM_CLASSES, "mean": MEAN, "std": STD, "flip_ok": False}
    given |= {"teacher": teacher} if condensation.needs_teacher else {}
    kept, before = real.images.clone(), torch.random.get_rng_state()
    made, again = (condensation.condense(real, **given, rng=Streams(0)) for _ in range(2))
    classes = torch.arange(NUM_CLASSES).repeat_interleave(condensation.ipc)
    expect(torch.equal(made.labels, classes), "ipc images of each class, class after class")
    expect(made.images.shape[1:] == IMAGE_SHAPE and bool(made.images.isfinite().all()), "finite images")
    expect(made.logits.shape == (len(made), 0) and not made.images.requires_grad, "without logits and gradient")
    expect(torch.equal(made.images, again.images), "a seed repeats")
    expect(torch.equal(real.images, kept), "real images stay as they were")
    expect(torch.equal(torch.random.get_rng_state(), before), "the global generator is left alone")
    whole = condensation.cached_config().condense(real, **given, rng=Streams(0))
    prefix = first_per_class(whole, condensation.ipc, NUM_CLASSES)
    expect(torch.equal(prefix.images, made.images), "sets are prefixes of the one of `cached_config`")

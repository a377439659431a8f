"""What every guidance keeps to, alone and in a whole trial. Read `condkd_ray.guidance.guidance`."""

from dataclasses import dataclass, replace
from typing import get_args

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from reference import losses as reference
from toy import IMAGE_SHAPE, NUM_CLASSES, blobs, make_prepared, make_teacher, samples, toy_config

from condkd_ray import config, state
from condkd_ray.distiller import Distiller
from condkd_ray.guidance import AnyGuidance, Discriminator, Guidance, Mmd, NoGuidance
from condkd_ray.guidance.guidance import same_class_rows
from condkd_ray.inversion import Fast
from condkd_ray.memory import LocalStore
from condkd_ray.method import InputError
from condkd_ray.samples import unseen
from condkd_ray.streams import Streams
from condkd_ray.trial import codec, run_round, start
from contracts.toy_methods import INVERTERS, frozen, pointers, same, small, snake, tensors

GUIDES = [kind for kind in get_args(AnyGuidance) if kind is not NoGuidance]
each_guidance = pytest.mark.parametrize("kind", GUIDES, ids=lambda kind: kind.__name__)
each_augmentation = pytest.mark.parametrize("augment", ["host", "condensed", "dsa"])
LABELS = torch.arange(16) % NUM_CLASSES


def identity(images, stream):
    return images


def bound(guidance, *, rng=None, teacher=None, condensed=None, host_augment=identity, carried=None):
    """A guide over two condensed images a class, and its state."""
    rng, teacher = rng or Streams(0), teacher or make_teacher()
    condensed = condensed or blobs(8, seed=4).samples(teacher.mean, teacher.std)
    carried = guidance.start(teacher, condensed, rng) if carried is None else carried
    guide = guidance.bind(carried, teacher=teacher, condensed=condensed, host_augment=host_augment, rng=rng)
    return guide, carried


def fakes(seed=0):
    return samples(len(LABELS), seed, LABELS).images


def step(guide, images, teacher):
    """What a host does with a guide, once; the penalty and its gradient at the images."""
    images = images.clone().requires_grad_()
    seen = teacher.observe(images, guide.layers)
    penalty = guide.penalty(images, seen, LABELS)
    (gradient,) = torch.autograd.grad(penalty + 0 * images.sum(), images)
    guide.update(images.detach(), seen.detach(), LABELS)
    return penalty.detach(), gradient


@each_guidance
@each_augmentation
def test_the_penalty_pulls_at_every_image(kind, augment):
    teacher = make_teacher()
    guide, _ = bound(small(kind, augment=augment), teacher=teacher)
    for _ in range(2):
        _, gradient = step(guide, fakes(), teacher)
        assert gradient.isfinite().all()
        assert (gradient.flatten(1).abs().amax(1) > 0).all()


@each_guidance
@each_augmentation
def test_weight_0_pulls_at_nothing(kind, augment):
    teacher = make_teacher()
    guide, _ = bound(small(kind, augment=augment, weight=0.0), teacher=teacher)
    penalty, gradient = step(guide, fakes(), teacher)
    assert penalty == 0
    assert (gradient == 0).all()


@each_guidance
@each_augmentation
def test_the_weight_is_a_factor(kind, augment):
    found = []
    for weight in (1.0, 3.0):
        teacher = make_teacher()
        guide, _ = bound(small(kind, augment=augment, weight=weight), teacher=teacher)
        found.append(step(guide, fakes(), teacher))
    for once, thrice in zip(*found, strict=True):
        torch.testing.assert_close(3 * once, thrice)


@each_guidance
@each_augmentation
def test_learning_changes_its_state_and_nothing_else(kind, augment):
    teacher = make_teacher()
    guide, carried = bound(small(kind, augment=augment), teacher=teacher)
    images = fakes().requires_grad_()
    seen = teacher.observe(images)
    before = [t.clone() for t in tensors(carried)]
    outside = frozen(teacher.network), images.detach().clone(), seen.features.detach().clone(), guide.condensed.images
    outside = [*outside[:3], outside[3].clone()]
    guide.update(images.detach(), seen.detach(), LABELS)
    assert not same(before, list(tensors(carried)))
    assert same(outside, [frozen(teacher.network), images.detach(), seen.features.detach(), guide.condensed.images])
    assert images.grad is None


@each_guidance
@each_augmentation
def test_it_draws_from_its_own_stream_alone(kind, augment):
    rng, teacher, before = Streams(0), make_teacher(), torch.random.get_rng_state()
    guide, _ = bound(small(kind, augment=augment), rng=rng, teacher=teacher)
    assert rng.state_dict() == {"device": {}, "host": {}}
    step(guide, fakes(), teacher)
    opened = rng.state_dict()
    assert opened["device"].keys() == {"augment/guide"}
    assert opened["host"].keys() <= {"augment/guide"}
    assert torch.equal(torch.random.get_rng_state(), before)


@each_guidance
@each_augmentation
def test_a_saved_state_goes_on_bit_for_bit(kind, augment, tmp_path):
    guidance, teacher, rng = small(kind, augment=augment), make_teacher(), Streams(0)
    guide, live = bound(guidance, rng=rng, teacher=teacher)
    step(guide, fakes(), teacher)
    state.save(live, tmp_path / "state")
    state.save(rng, tmp_path / "streams")
    continued = state.load(Streams(9), tmp_path / "streams")
    _, fresh = bound(guidance, rng=Streams(9), teacher=teacher)
    loaded = state.load(fresh, tmp_path / "state")
    assert same(list(tensors(loaded)), list(tensors(live)))
    assert not pointers(loaded) & pointers(live)
    other, _ = bound(guidance, rng=continued, teacher=teacher, carried=loaded)
    for seed in (1, 2):
        assert same(step(guide, fakes(seed), teacher), step(other, fakes(seed), teacher))
    assert guidance.read(other).keys() == guidance.read(guide).keys()


@each_guidance
def test_without_a_condensed_set_it_is_refused(kind):
    with pytest.raises(InputError, match="condensed set of a guided run"):
        small(kind).start(make_teacher(), None, Streams(0))
    with pytest.raises(InputError, match="guidance without a condensation"):
        toy_config(condensation=None, guidance=small(kind), distiller=Distiller(condensed_share=0.0))


@pytest.mark.parametrize("kind", get_args(AnyGuidance), ids=lambda kind: kind.__name__)
def test_config_survives_yaml_and_the_name_is_the_files(kind):
    complete = toy_config(guidance=small(kind))
    assert config.from_tree(yaml.safe_load(config.dump(complete))) == complete
    stem = kind.__module__.rpartition(".")[2]
    assert snake(kind.__name__) == stem
    assert kind().name in (stem, "none")


def test_no_guidance_says_nothing():
    teacher, rng = make_teacher(), Streams(0)
    none = NoGuidance()
    carried = none.start(teacher, None, rng)
    guide = none.bind(carried, teacher=teacher, condensed=None, host_augment=identity, rng=rng)
    seen = teacher.observe(fakes())
    assert guide.penalty(fakes(), seen, LABELS) == 0
    guide.update(fakes(), seen, LABELS)
    assert none.read(guide) == {}


# Which condensed images a guide looks at, and how both sides are augmented.


@given(
    known=st.lists(st.integers(0, 6), min_size=1, max_size=30),
    wanted=st.lists(st.integers(0, 6), max_size=30),
    seed=st.integers(0, 2**32),
)
def test_rows_are_of_the_wanted_class_where_it_has_any(known, wanted, seed):
    known, wanted = torch.tensor(known), torch.tensor(wanted, dtype=torch.int64)
    rows = same_class_rows(known, wanted, torch.Generator().manual_seed(seed))
    assert rows.shape == wanted.shape
    found = known[rows]
    assert ((found == wanted) | ~torch.isin(wanted, known)).all()


def test_rows_of_a_class_are_drawn_equally_often():
    known = torch.tensor([2, 0, 1, 0, 2, 0, 0])
    rows = same_class_rows(known, torch.zeros(8000, dtype=torch.int64), torch.Generator().manual_seed(0))
    counts = torch.bincount(rows, minlength=7)
    assert counts[[0, 2, 4]].sum() == 0
    assert ((counts[[1, 3, 5, 6]] - 2000).abs() < 4 * (8000 * 0.25 * 0.75) ** 0.5).all()


@dataclass
class Shown:
    pairs: list


@dataclass(frozen=True, kw_only=True)
class Witness(Guidance[Shown]):
    """A guidance that writes down what it is shown."""

    name: str = "witness"

    def init(self, teacher, condensed, labels, rng):
        return Shown([])

    def penalty(self, state, fake, labels, *, rng):
        return fake.mean()

    def update(self, state, fake, real, labels, *, rng):
        state.pairs.append((fake, real))
        return {}


# One image a class, each of one colour, in the teacher's space.
FLAT = unseen(torch.linspace(-1, 2, NUM_CLASSES).view(-1, 1, 1, 1).expand(-1, *IMAGE_SHAPE), torch.arange(NUM_CLASSES))


def looked_at(augment, host_augment=identity):
    """(features of fakes as the host saw them, as the guide saw them, of condensed images) in one step."""
    teacher = make_teacher()
    guide, carried = bound(Witness(augment=augment), teacher=teacher, condensed=FLAT, host_augment=host_augment)
    step(guide, fakes(), teacher)
    ((fake, real),) = carried.pairs
    return teacher.observe(fakes()).features, fake, real


def expected(images):
    return make_teacher().observe(images).features


def test_the_real_side_has_the_classes_of_the_fakes():
    _, _, real = looked_at("host")
    torch.testing.assert_close(real, expected(FLAT.images[LABELS]))


def test_host_shows_fakes_as_the_host_saw_them_and_condensed_under_its_augmentation():
    host, fake, real = looked_at("host", lambda images, stream: images.flip(2) * 0.5 + 3)
    assert torch.equal(fake, host)
    torch.testing.assert_close(real, expected(FLAT.images[LABELS].flip(2) * 0.5 + 3))


def test_condensed_augments_the_condensed_side_besides():
    host, fake, real = looked_at("condensed", lambda images, stream: images + 1)
    assert torch.equal(fake, host)
    assert not torch.allclose(real, looked_at("host", lambda images, stream: images + 1)[2])


def test_dsa_looks_itself_and_leaves_the_hosts_augmentation_out():
    def never(images, stream):
        raise AssertionError("the host's augmentation was asked for")

    host, fake, real = looked_at("dsa", never)
    assert fake.shape == host.shape
    assert not torch.allclose(fake, host)
    assert not torch.allclose(real, looked_at("host")[2])


def test_the_hosts_augmentation_of_condensed_images_draws_from_the_guides_stream():
    rng = Streams(0)

    def noisy(images, stream):
        assert stream is rng["augment/guide"]
        return images + torch.randn(images.shape, generator=stream)

    teacher = make_teacher()
    guide, _ = bound(Witness(), rng=rng, teacher=teacher, host_augment=noisy)
    step(guide, fakes(), teacher)


def accuracy_against(shift, steps=50):
    """Mean accuracy of a discriminator on batches it has not yet learnt from; fakes are condensed images, shifted."""
    teacher, rng = make_teacher(), Streams(0)
    condensed = blobs(40, seed=4).samples(teacher.mean, teacher.std)
    guidance = Discriminator(hidden=32, lr=3e-3)
    guide, _ = bound(guidance, rng=rng, teacher=teacher, condensed=condensed)
    for _ in range(steps):
        rows = same_class_rows(condensed.labels, LABELS, rng["fakes"])
        images = condensed.images[rows] + shift
        guide.update(images, teacher.observe(images), LABELS)
    return guidance.read(guide)["guidance/accuracy"]


def test_a_discriminator_stays_at_chance_on_equal_images_and_learns_a_difference():
    two_errors = 2 * 0.5 / (50 * 2 * len(LABELS)) ** 0.5
    assert abs(accuracy_against(0.0) - 0.5) < two_errors
    assert accuracy_against(1.0) > 0.8


# In a whole trial.


def trial(settings, prepared):
    """(final state, store) of a whole trial."""
    live = start(settings, prepared)
    store = LocalStore(codec(settings, prepared.teacher), NUM_CLASSES)
    for _ in range(settings.rounds):
        run_round(settings, prepared, live, store)
    return live, store


@pytest.mark.parametrize("inverter", INVERTERS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("augment", ["host", "dsa"])
@each_guidance
def test_weight_0_is_the_mixed_run_bit_for_bit(kind, inverter, augment):
    prepared, runs = make_prepared(), []
    for guidance in (NoGuidance(), small(kind, weight=0.0, augment=augment)):
        live, store = trial(toy_config(inversion=small(inverter), guidance=guidance, rounds=2), prepared)
        history = [
            {name: value for name, value in round.items() if not name.startswith(("time/", "guidance/"))}
            for round in live.history
        ]
        student = live.distiller.student
        runs.append((history, student(prepared.proxy.images), frozen(student), store.gather(live.memory.ids).images))
    assert same(*runs)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_guided_images_lie_nearer_to_the_condensed_than_in_the_mixed_run(seed):
    """Class by class and in the teacher's features. So it was by 8 % or more for each of the seeds 0 to 9."""
    prepared = make_prepared()
    mixed = toy_config(
        seed=seed,
        inversion=Fast(steps=8, batch=32, latent=16, width=8, lr=5e-3, lr_latent=0.02),
        distiller=Distiller(steps=1, batch=8, condensed_share=0.25),
        rounds=4,
        evaluate_every=4,
    )

    def features(images):
        return prepared.teacher.observe(images).features.double().tolist()

    condensed, labels = features(prepared.condensed.images), prepared.condensed.labels.tolist()
    median = reference.median_distance(condensed)

    def distance(guidance):
        live, store = trial(replace(mixed, guidance=guidance), prepared)
        last = store.gather(live.memory.ids[-32:])
        return reference.class_mmd(features(last.images), last.labels.tolist(), condensed, labels, median)

    unguided = distance(NoGuidance())
    assert distance(Discriminator(hidden=64, lr=2e-3, weight=10.0)) < unguided
    assert distance(Mmd(weight=30.0)) < unguided

"""The condensed images that a guide reads, the augmentation of both sides, and the held-out images."""

from dataclasses import dataclass, fields
from typing import get_args

import pytest
import torch
from contracts.toy_guides import CONDITIONS, LABELS, bound, fakes, identity, step
from contracts.toy_methods import same, tensors
from hypothesis import given
from hypothesis import strategies as st
from toy import IMAGE_SHAPE, MEAN, NUM_CLASSES, STD, blobs, make_prepared, make_teacher

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples, unseen
from condkd_ray.methods.guidance import AnyGuidance, Discriminator, Gaussian, Guidance, Mmd, Moments, NoGuidance
from condkd_ray.methods.guidance import guidance as guidance_module
from condkd_ray.methods.guidance.guidance import same_class_rows
from condkd_ray.models import observation


@given(
    known=st.lists(st.integers(0, 6), min_size=1, max_size=30),
    wanted=st.lists(st.integers(0, 6), max_size=30),
    seed=st.integers(0, 2**32),
)
def test_rows_are_of_the_wanted_class_if_it_has_any(known, wanted, seed):
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


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("kind", [kind for kind in get_args(AnyGuidance) if kind is not NoGuidance])
def test_weights_are_finite_and_not_negative(kind, value):
    names = [field.name for field in fields(kind) if field.name.endswith("weight")]
    assert {"weight", "stages_weight"} <= set(names)
    for name in names:
        with pytest.raises(InputError, match=f"guidance {name} is {value}; accepted: >= 0, and finite"):
            kind(**{name: value})


@pytest.mark.parametrize(
    ("guidance", "idle"),
    [
        (NoGuidance(), ()),
        (Mmd(stages=1, stages_weight=2.0), ()),
        (Moments(stages=1, stage_covariances=True), ()),
        (Mmd(stages_weight=2.0), ("guidance stages_weight 2 without stages",)),
        (Gaussian(stage_covariances=True), ("guidance stage_covariances without stages",)),
        (
            Moments(stages=1, stage_covariances=True, covariance_weight=0.0),
            ("guidance stage_covariances although no covariance is compared",),
        ),
        (
            Gaussian(stages=1, stage_covariances=True, covariance="none"),
            ("guidance stage_covariances although no covariance is compared",),
        ),
    ],
    ids=str,
)
def test_idle_lists_settings_without_effect(guidance, idle):
    assert guidance.idle == idle


@dataclass
class Recorded:
    pairs: list


@dataclass(frozen=True, kw_only=True)
class Witness(Guidance[Recorded]):
    """A guidance that records its arguments."""

    name: str = "witness"

    def init(self, teacher, condensed, labels, rng, layout):
        return Recorded([(condensed, labels)])

    def penalty(self, state, fake, labels, *, rng):
        return fake.mean()

    def update(self, state, fake, real, labels, *, rng):
        state.pairs.append((fake, real))
        return {}


@dataclass(frozen=True, kw_only=True)
class Older(Witness):
    """A guidance of the older interface, without layouts."""

    def init(self, teacher, condensed, labels, rng):
        return Recorded([(condensed, labels)])


def test_a_guidance_without_layouts_works_but_is_refused_with_stages_or_noise():
    teacher = make_teacher()
    guide, carried = bound(Older(), teacher=teacher)
    step(guide, fakes(), teacher)
    assert len(carried.pairs) == 2
    message = (
        r"layers and views of guidance witness, whose init has no parameter layout, is \(3, 1\); accepted: 1 and 1: no "
        "stages"
    )
    with pytest.raises(InputError, match=message):
        bound(Older(stages=2), teacher=teacher)
    for kind in (Older, Witness):
        with pytest.raises(
            InputError, match="state of guidance witness with stages or noise is 'Recorded'; accepted: a sub"
        ):
            bound(kind(noise=0.5), teacher=teacher)


# One image a class, each of one colour, in the teacher's space.
FLAT = unseen(torch.linspace(-1, 2, NUM_CLASSES).view(-1, 1, 1, 1).expand(-1, *IMAGE_SHAPE), torch.arange(NUM_CLASSES))


def step_features(augment, host_augment=identity):
    """Return one step's features of fakes in the host's view, of fakes in the guide's view, and of condensed images."""
    teacher = make_teacher()
    guide, carried = bound(Witness(augment=augment), teacher=teacher, condensed=FLAT, host_augment=host_augment)
    step(guide, fakes(), teacher)
    _, (fake, real) = carried.pairs
    return teacher.observe(fakes()).features, fake, real


def expected(images):
    return make_teacher().observe(images).features


@pytest.mark.parametrize(("limit", "rows"), [(8, slice(None)), (7, slice(0, 8, 2)), (3, slice(0, 8, 3))])
def test_the_initial_features_are_of_the_whole_condensed_set_unless_it_is_large(monkeypatch, limit, rows):
    monkeypatch.setattr(guidance_module, "MAX_INIT_FEATURES", limit)
    condensed = condensed_set(2)
    _, carried = bound(Witness(), condensed=condensed)
    ((features, labels),) = carried.pairs
    torch.testing.assert_close(features, expected(condensed.images)[rows])
    assert torch.equal(labels, condensed.labels[rows])
    assert len(labels) <= limit


def test_the_real_side_has_the_classes_of_the_fakes():
    _, _, real = step_features("host")
    torch.testing.assert_close(real, expected(FLAT.images[LABELS]))


def test_augment_host_compares_fakes_and_condensed_images_under_the_hosts_augmentation():
    host, fake, real = step_features("host", lambda images, stream: images.flip(2) * 0.5 + 3)
    assert torch.equal(fake, host)
    torch.testing.assert_close(real, expected(FLAT.images[LABELS].flip(2) * 0.5 + 3))


def test_augment_condensed_also_augments_the_condensed_side():
    host, fake, real = step_features("condensed", lambda images, stream: images + 1)
    assert torch.equal(fake, host)
    assert not torch.allclose(real, step_features("host", lambda images, stream: images + 1)[2])


def test_augment_dsa_replaces_the_hosts_augmentation():
    def never(images, stream):
        raise AssertionError("the host's augmentation was called")

    host, fake, real = step_features("dsa", never)
    assert fake.shape == host.shape
    assert not torch.allclose(fake, host)
    assert not torch.allclose(real, step_features("host")[2])


def test_the_hosts_augmentation_of_condensed_images_draws_from_the_guides_stream():
    rng = Streams(0)

    def noisy(images, stream):
        assert stream is rng["augment/guide"]
        return images + torch.randn(images.shape, generator=stream)

    teacher = make_teacher()
    guide, _ = bound(Witness(), rng=rng, teacher=teacher, host_augment=noisy)
    step(guide, fakes(), teacher)


# Held-out images.


def condensed_set(ipc):
    return blobs(ipc * NUM_CLASSES, seed=4).samples(MEAN, STD)


@given(
    labels=st.lists(st.integers(0, NUM_CLASSES - 1), min_size=1, max_size=60),
    held_out=st.floats(0, 0.95),
)
def test_the_last_images_of_each_class_are_held_out_in_any_order_of_labels(labels, held_out):
    images = unseen(torch.arange(len(labels)).view(-1, 1, 1, 1).float(), torch.tensor(labels))
    shown, kept = Discriminator(held_out=held_out).hold_out(images, NUM_CLASSES)
    for label in range(NUM_CLASSES):
        places = [place for place, other in enumerate(labels) if other == label]
        few = [int(x) for x in kept.images[kept.labels == label].flatten()]
        assert abs(len(few) - held_out * len(places)) < 1.001
        assert len(few) <= held_out * len(places) * (1 + 1e-6)
        assert few == places[len(places) - len(few) :]
    rows = torch.cat([shown.images, kept.images]).flatten().sort().values
    assert torch.equal(rows, torch.arange(len(labels)).float())


@pytest.mark.parametrize(("ipc", "held_out"), [(1, 0), (5, 0), (9, 0), (10, 1), (25, 2)])
def test_metrics_of_held_out_images_are_logged_only_if_there_are_any(ipc, held_out):
    guidance, teacher = Discriminator(hidden=8), make_teacher()
    guide, _ = bound(guidance, teacher=teacher, condensed=condensed_set(ipc))
    assert len(guide.held_out) == held_out * NUM_CLASSES
    assert len(guide.condensed) == (ipc - held_out) * NUM_CLASSES
    step(guide, fakes(), teacher)
    metrics = guidance.read(guide)
    for name in ("held_out_accuracy", "perfect_accuracy"):
        assert (f"guidance/{name}" in metrics) == (held_out > 0)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_the_content_of_held_out_images_has_no_effect_on_training(condition):
    teacher, found = make_teacher(), []
    few = condensed_set(10)
    for offset in (0.0, 1e3):
        images = few.images.clone()
        images[-NUM_CLASSES:] += offset
        guidance = Discriminator(hidden=8, condition=condition, held_out=0.1)
        guide, carried = bound(guidance, teacher=teacher, condensed=Samples(images, few.labels, few.logits))
        assert torch.equal(guide.held_out.images, images[-NUM_CLASSES:])
        steps = [step(guide, fakes(seed), teacher) for seed in range(3)]
        guidance.read(guide)
        found.append([steps, [t.clone() for t in tensors(carried)]])
    assert same(*found)


@dataclass(frozen=True, kw_only=True)
class Examiner(Witness):
    """A guidance that records the arguments of its evaluation."""

    held_out: float = 0.5

    def evaluate_held_out(self, state, shown, held_out, fakes, labels, *, rng):
        state.pairs.append((shown, held_out, fakes, labels))
        return {}


def examined(augment, host_augment, condensed):
    """Return the arguments of one evaluation, and the held-out images.

    The arguments are the features of training images, of held-out images, of these in the role of fakes, and labels.
    """
    teacher = make_teacher()
    guidance = Examiner(augment=augment)
    guide, carried = bound(guidance, teacher=teacher, condensed=condensed, host_augment=host_augment)
    guidance.read(guide)
    return carried.pairs[-1], guide.held_out


@pytest.mark.parametrize("augment", ["host", "condensed", "dsa"])
def test_held_out_images_in_the_role_of_fakes_have_the_augmentation_of_fakes(augment):
    def darker(images, stream):
        return images * 0.5 - 0.2

    (shown, held_out, fakes, labels), kept = examined(augment, darker, condensed_set(2))
    views = len(labels) // len(kept)
    assert torch.equal(labels, kept.labels.repeat(views))
    as_host = expected(darker(kept.images, None)).repeat(views, 1)
    assert torch.equal(held_out, fakes) == (augment != "condensed")
    if augment == "dsa":
        assert not torch.allclose(fakes, as_host)
    else:
        torch.testing.assert_close(fakes, as_host)
    if augment == "host":
        # One image of each class is held out here, and one is not.
        others = condensed_set(2).images[:NUM_CLASSES]
        torch.testing.assert_close(shown, expected(darker(others, None)).repeat(views, 1))
    else:
        assert not torch.allclose(held_out, as_host)


@pytest.mark.parametrize(("classes", "views"), [(NUM_CLASSES, 16), (1, 16)])
def test_few_held_out_images_are_evaluated_in_several_different_views(classes, views):
    rng = torch.Generator().manual_seed(0)
    few = condensed_set(2)
    few = few[few.labels < classes]
    (_, held_out, _, labels), kept = examined("host", lambda x, _: x + torch.randn(x.shape, generator=rng), few)
    assert len(labels) == views * len(kept)
    assert len(held_out.unique(dim=0)) == len(held_out)


@pytest.mark.parametrize(("ipc", "views"), [(128, 1), (32, 4)])
def test_many_held_out_images_are_evaluated_in_few_views(ipc, views):
    (_, held_out, _, labels), kept = examined("host", identity, condensed_set(ipc))
    assert len(kept) == ipc * NUM_CLASSES // 2
    assert len(held_out) == len(labels) == views * len(kept)


@pytest.mark.parametrize("augment", ["host", "condensed", "dsa"])
def test_a_guide_computes_no_bn_statistics(augment, monkeypatch):
    teacher, computed = make_teacher(), []
    real = observation.moments
    monkeypatch.setattr(observation, "moments", lambda x: (computed.append(1), real(x))[1])
    guide, _ = bound(Examiner(augment=augment), teacher=teacher)
    assert not computed
    seen = teacher.observe(fakes())
    assert len(computed) == len(teacher.bn_inputs)
    guide.guidance.start(teacher, guide.condensed, Streams(0))
    guide.penalty(fakes(), seen, LABELS)
    guide.update(fakes(), seen, LABELS)
    guide.read()
    assert len(computed) == len(teacher.bn_inputs)


# Equal augmentation of both sides.


def noisy(images, stream):
    """An example of a host's augmentation."""
    return images + 0.3 * torch.randn(images.shape, generator=stream)


def accuracies(augment, condition, shift=0.0, steps=60):
    """Return a discriminator's accuracy on each batch before it learns from it. Fakes are shifted condensed images."""
    teacher, rng = make_teacher(), Streams(0)
    few = condensed_set(10)
    guidance = Discriminator(hidden=32, lr=3e-3, condition=condition, augment=augment, held_out=0.0)
    guide, _ = bound(guidance, rng=rng, teacher=teacher, condensed=few, host_augment=noisy)
    found = []
    for _ in range(steps):
        rows = same_class_rows(few.labels, LABELS, rng["fakes"])
        images = few.images[rows] + shift
        guide.meter = type(guide.meter)("guidance")
        guide.update(images, teacher.observe(noisy(images, rng["fakes"])), LABELS)
        found.append(guidance.read(guide)["guidance/accuracy"])
    return torch.tensor(found, dtype=torch.float64)


def test_by_default_dsa_is_on_neither_side(monkeypatch):
    monkeypatch.setattr(guidance_module, "dsa", None)
    teacher = make_teacher()
    guide, _ = bound(Discriminator(hidden=8), teacher=teacher, condensed=condensed_set(10), host_augment=noisy)
    step(guide, fakes(), teacher)
    assert "guidance/perfect_accuracy" in guide.read()


@pytest.mark.parametrize("augment", ["host", "dsa"])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_discriminator_stays_at_chance_on_equal_images_and_learns_a_difference(augment, condition):
    equal = accuracies(augment, condition)
    # All images of a batch get the same kind of DSA, so the standard error is that of batch means.
    error = equal.std() / len(equal) ** 0.5
    assert error < 0.03
    assert abs(equal.mean() - 0.5) < 3 * error
    assert accuracies(augment, condition, shift=1.0)[20:].mean() > 0.7


def test_no_guidance_has_no_penalty_and_draws_nothing():
    prepared, rng = make_prepared(), Streams(0)
    images = torch.randn(4, 1, 8, 8, requires_grad=True)
    seen = prepared.teacher.observe(images)
    guide = NoGuidance().bind(None, teacher=prepared.teacher, condensed=None, host_augment=lambda x, _: x, rng=rng)
    labels = torch.arange(4)
    assert guide.penalty(images, seen, labels) == 0
    assert not guide.penalty(images, seen, labels).requires_grad
    guide.update(images, seen, labels)
    assert guide.layers == ()
    assert NoGuidance().read(guide) == {}
    assert rng.state_dict() == {"device": {}, "host": {}}

"""What every inversion keeps to. Read `condkd_ray.inversion.inversion`."""

from dataclasses import replace
from itertools import combinations
from typing import get_args

import pytest
import torch
import yaml
from toy import IMAGE_SHAPE, NUM_CLASSES, make_teacher, toy_config, wrap

from condkd_ray import config, state
from condkd_ray.distiller import Distiller
from condkd_ray.inversion import AnyInversion, NoInversion
from condkd_ray.method import NonFiniteError
from condkd_ray.samples import UNLABELLED, Codec, to_unit
from condkd_ray.streams import Streams
from contracts.toy_methods import (
    INVERTERS,
    Breaking,
    Puller,
    frozen,
    make_student,
    pointers,
    same,
    small,
    snake,
    synthesize,
    tensors,
    weights_of,
)

each_inverter = pytest.mark.parametrize("kind", INVERTERS, ids=lambda kind: kind.__name__)
each_term = pytest.mark.parametrize(
    ("kind", "term"),
    [pytest.param(kind, term, id=f"{kind.__name__}-{term}") for kind in INVERTERS for term in weights_of(kind)],
)


@each_inverter
@pytest.mark.parametrize("steps", [1, 3])
def test_gives_one_labelled_finite_image_for_each_wanted(kind, steps):
    inversion, teacher = small(kind, steps=steps), make_teacher()
    made, _ = synthesize(inversion, teacher=teacher)
    assert made.images.shape == (inversion.images_per_round, *IMAGE_SHAPE)
    assert made.labels.shape == (inversion.images_per_round,)
    assert (made.images.dtype, made.labels.dtype) == (torch.float32, torch.int64)
    assert made.images.isfinite().all()
    assert not made.images.requires_grad
    assert made.logits.shape == (len(made), 0)
    if inversion.labels_by_teacher:
        assert made.labels.eq(UNLABELLED).all()
    else:
        assert (torch.bincount(made.labels, minlength=NUM_CLASSES) * NUM_CLASSES == len(made)).all()


@each_inverter
@pytest.mark.parametrize("steps", [1, 3])
def test_pixels_lie_in_the_space_in_which_they_are_kept(kind, steps):
    inversion, teacher = small(kind, steps=steps), make_teacher()
    made, _ = synthesize(inversion, teacher=teacher)
    if inversion.pixel_space == "unit":
        pixels = to_unit(made.images, teacher.mean, teacher.std)
        assert pixels.min() >= -1e-5
        assert pixels.max() <= 1 + 1e-5
    code = Codec(inversion.pixel_space, teacher.mean, teacher.std)
    kept = code.decode(code.encode(made)).images
    # Half a grey level, or half precision.
    torch.testing.assert_close(kept, made.images, rtol=1e-3, atol=0.5 / 255 / teacher.std[0] + 1e-5)


@each_term
def test_every_loss_term_alone_moves_the_images(kind, term):
    off = small(kind, steps=6, **{f"{name}_weight": 0.0 for name in weights_of(kind)})
    default = getattr(small(kind), f"{term}_weight")
    on = replace(off, **{f"{term}_weight": default or 0.1})
    second = []
    for inversion in (off, on):
        rng, teacher = Streams(0), make_teacher()
        carried = inversion.init(teacher, rng)
        # The second round: a meta generator has moved by then, even where the first iterate was the best.
        for _ in range(2):
            made, _ = synthesize(inversion, carried, rng=rng, teacher=teacher)
        second.append(made.images)
    assert not torch.equal(*second)


@each_inverter
def test_the_loss_is_the_weighted_sum_of_the_logged_terms(kind):
    inversion = small(kind, steps=2)
    _, metrics = synthesize(inversion, guide=Puller())
    terms = weights_of(kind)
    total = sum(getattr(inversion, f"{term}_weight") * metrics[f"inversion/{term}"] for term in terms)
    assert metrics["inversion/loss"] == pytest.approx(total + metrics["inversion/guide"], rel=1e-4)
    assert metrics.keys() == {f"inversion/{name}" for name in [*terms, "guide", "loss"]}


@each_inverter
def test_the_guide_is_heard_with_gradients(kind):
    guide, inversion = Puller(), small(kind, steps=6)
    guided, _ = synthesize(inversion, guide=guide)
    plain, _ = synthesize(inversion)
    assert not torch.equal(guided.images, plain.images)
    for images, seen, labels in guide.shown:
        assert images.requires_grad
        assert seen.features.requires_grad
        assert seen.logits.requires_grad
        assert len(images) == len(seen.logits) == len(labels)


@each_inverter
def test_the_guide_learns_after_each_step_from_the_values_it_judged(kind):
    guide = Puller()
    synthesize(small(kind), guide=guide)
    assert guide.calls == ["penalty", "update"] * 3
    for (images, seen, labels), (learnt, looked, named) in zip(guide.shown, guide.learnt, strict=True):
        assert not any(t.requires_grad for t in (learnt, looked.logits, looked.features, *looked.bn[0]))
        assert torch.equal(looked.features, seen.features)
        assert torch.equal(named, labels)
        assert learnt.shape == images.shape


@each_inverter
def test_the_weights_of_samples_are_heard(kind):
    inversion = small(kind)
    halved, _ = synthesize(inversion, weigh=lambda seen, labels: torch.arange(len(labels)) % 2.0)
    plain, _ = synthesize(inversion)
    assert not torch.equal(halved.images, plain.images)


@each_inverter
def test_teacher_and_student_are_left_as_they_were(kind):
    teacher, student = make_teacher(), make_student()
    before = frozen(teacher.network), frozen(student)
    synthesize(small(kind), teacher=teacher, student=student, guide=Puller())
    assert same(before, (frozen(teacher.network), frozen(student)))


@each_inverter
def test_the_seed_alone_decides(kind):
    first, again, other = (synthesize(small(kind), seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, other.images)


@each_inverter
def test_only_its_own_streams_are_drawn_from(kind):
    inversion, teacher = small(kind), make_teacher()
    rng, before = Streams(0), torch.random.get_rng_state()
    carried = inversion.init(teacher, rng)
    for _ in range(2):
        synthesize(inversion, carried, rng=rng, teacher=teacher, guide=Puller())
    opened = rng.state_dict()
    assert opened["device"].keys() <= {"targets", "latents", "augment/inversion", "negatives"}
    assert not opened["host"]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_any_two_inversions_differ():
    for left, right in combinations([synthesize(small(kind))[0].images[:16] for kind in INVERTERS], 2):
        assert not torch.equal(left, right)


@each_inverter
def test_a_saved_state_goes_on_bit_for_bit(kind, tmp_path):
    inversion, teacher, rng = small(kind), make_teacher(), Streams(0)
    live = inversion.init(teacher, rng)
    synthesize(inversion, live, rng=rng, teacher=teacher)
    state.save(live, tmp_path / "state")
    state.save(rng, tmp_path / "streams")
    # Of the same seed: networks built in a later round take theirs from it and the round's number.
    continued = Streams(0)
    loaded = state.load(inversion.init(teacher, continued), tmp_path / "state")
    continued = state.load(continued, tmp_path / "streams")
    assert same(list(tensors(loaded)), list(tensors(live)))
    assert not pointers(loaded) & pointers(live)
    assert len(pointers(loaded)) == len(list(tensors(loaded)))
    for _ in range(2):
        wanted, metrics = synthesize(inversion, live, rng=rng, teacher=teacher)
        found, same_metrics = synthesize(inversion, loaded, rng=continued, teacher=teacher)
        assert torch.equal(found.images, wanted.images)
        assert same_metrics == metrics


@pytest.mark.parametrize("kind", get_args(AnyInversion), ids=lambda kind: kind.__name__)
def test_config_survives_yaml(kind):
    distiller = Distiller(condensed_share=1.0)
    complete = toy_config(inversion=small(kind), distiller=distiller)
    read = config.from_tree(yaml.safe_load(config.dump(complete)))
    assert read == complete
    assert hash(read) == hash(complete)


@pytest.mark.parametrize("kind", get_args(AnyInversion), ids=lambda kind: kind.__name__)
def test_file_class_and_name_are_one(kind):
    stem = kind.__module__.rpartition(".")[2]
    assert snake(kind.__name__) == stem
    assert kind().name in (stem, "none")
    assert (kind().name == "none") == (kind is NoInversion)


@each_inverter
def test_a_nan_of_the_guide_is_named(kind):
    with pytest.raises(NonFiniteError, match="inversion/guide is not finite at step 3"):
        synthesize(small(kind, steps=5), guide=Puller(breaks_at=3))


@each_inverter
def test_a_nan_of_the_teacher_is_named_by_a_term_that_asks_it(kind):
    network, guide = Breaking(make_teacher().network), Puller()
    teacher = wrap(network)
    network.arm(3)
    with pytest.raises(NonFiniteError) as caught:
        synthesize(small(kind, steps=5), teacher=teacher, guide=guide)
    # A host that looks at two views a step gets its third answer in the second.
    broken = [bool(seen.logits.isnan().any()) for _, seen, _ in guide.shown].index(True)
    term = "oh" if "oh" in weights_of(kind) else "adv"
    assert f"inversion/{term} is not finite at step {broken + 1}" in str(caught.value)
    assert broken > 0


def test_no_inversion_makes_nothing():
    made, metrics = synthesize(NoInversion())
    assert made.images.shape == (0, *IMAGE_SHAPE)
    assert len(made) == 0
    assert metrics == {}

"""The contract of all inversions (`condkd_ray.methods.inversion.inversion`)."""

from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import get_args

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from reference import losses as reference
from torch.optim import Adam
from toy import IMAGE_SHAPE, make_teacher, toy_config, wrap

from condkd_ray.core.method import InputError, NonFiniteError
from condkd_ray.core.rng import Streams
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.guidance.guidance import Unguided
from condkd_ray.methods.inversion import (
    AnyInversion,
    Cmi,
    DeepInversion,
    Dfad,
    Dfq,
    Fast,
    Nayer,
    NoInversion,
    PreDfkd,
    Zskt,
)
from condkd_ray.methods.inversion.unconditional import Unconditional
from condkd_ray.models.teacher import Teacher
from condkd_ray.testing.inversions import (
    check_checkpoint,
    check_guide_changes_images,
    check_guide_updates,
    check_image_weights,
    check_images,
    check_networks_unchanged,
    check_pixels,
    check_seed,
)
from condkd_ray.trial import config
from contracts.toy_methods import (
    INVERTERS,
    NanNetwork,
    RecordingGuide,
    small,
    snake,
    synthesize,
    weights_of,
)

each_inverter = pytest.mark.parametrize("kind", INVERTERS, ids=lambda kind: kind.__name__)
each_term = pytest.mark.parametrize(
    ("kind", "term"),
    [pytest.param(kind, term, id=f"{kind.__name__}-{term}") for kind in INVERTERS for term in weights_of(kind)],
)

OWN_PRIOR = {Dfad, Dfq, Zskt}
"""Hosts without a class prior in their paper: at the default weight of 0 it is not computed."""
TEACHER_DETACHED = {PreDfkd}
"""Hosts whose adversarial term detaches the teacher's logits, as the authors' released code does."""


@each_inverter
@pytest.mark.parametrize("steps", [1, 3])
def test_there_is_one_finite_labelled_image_for_each_target(kind, steps):
    check_images(small(kind, steps=steps))


@each_inverter
def test_fused_optimiser_steps_equal_plain_ones(kind, monkeypatch):
    """A fused optimiser gives wrong results without an error if memory layouts of weight and gradient differ."""
    inversion, teacher, made = small(kind, steps=3), make_teacher(), []
    for optimizer in (Adam, partial(plain, Adam)):
        monkeypatch.setattr(torch.optim, "Adam", optimizer)
        made.append(synthesize(inversion, teacher=teacher))
    (images, terms), (wanted, wanted_terms) = made
    torch.testing.assert_close(images.images, wanted.images, rtol=1e-3, atol=1e-4)
    assert terms == pytest.approx(wanted_terms, rel=1e-4, abs=1e-6)


def plain(optimizer, *args, fused, **settings):
    """Return the optimiser without `fused`, after checking that the host requested it."""
    assert fused
    return optimizer(*args, **settings)


@each_inverter
@pytest.mark.parametrize("steps", [1, 3])
def test_pixels_are_in_the_range_in_which_stores_keep_them(kind, steps):
    check_pixels(small(kind, steps=steps))


@each_term
def test_every_loss_term_alone_changes_the_images(kind, term):
    # A learning rate at which even CMI's generator, which is new in each round, improves on its first images.
    off = small(kind, steps=6, lr=0.05, **{f"{name}_weight": 0.0 for name in weights_of(kind)})
    default = getattr(small(kind), f"{term}_weight")
    on = replace(off, **{f"{term}_weight": default or 0.1})
    second = []
    for inversion in (off, on):
        rng, teacher = Streams(0), make_teacher()
        carried = inversion.init(teacher, rng)
        # Two rounds, because a meta generator changes after a round even if the first iterate was the best.
        for _ in range(2):
            made, _ = synthesize(inversion, carried, rng=rng, teacher=teacher)
        second.append(made.images)
    assert not torch.equal(*second)


@each_inverter
def test_the_loss_is_the_weighted_sum_of_the_logged_terms(kind):
    published, terms = small(kind, steps=2), weights_of(kind)
    _, metrics = synthesize(published, guide=RecordingGuide())
    assert ("inversion/oh" in metrics) == (kind not in OWN_PRIOR)
    inversion = replace(published, oh_weight=published.oh_weight or 0.3)
    _, metrics = synthesize(inversion, guide=RecordingGuide())
    total = sum(getattr(inversion, f"{term}_weight") * metrics[f"inversion/{term}"] for term in terms)
    assert metrics["inversion/loss"] == pytest.approx(total + metrics["inversion/guide"], rel=1e-4)
    assert metrics.keys() == {f"inversion/{name}" for name in [*terms, "guide", "loss"]}


@each_inverter
def test_the_class_prior_uses_logits_divided_by_the_temperature(kind):
    """Compared with the logits and labels of the only step, which the guide receives."""
    found, made = {}, {}
    for temperature in (1.0, 8.0):
        inversion, guide = small(kind, steps=1, oh_weight=0.3, oh_temperature=temperature), RecordingGuide()
        _, metrics = synthesize(inversion, guide=guide)
        (_, seen, labels), *_ = guide.penalty_calls
        assert (labels == seen.logits.argmax(1)).all() or not issubclass(kind, Unconditional)
        expected = reference.mean(reference.class_prior(seen.logits.tolist(), labels.tolist(), temperature))
        assert metrics["inversion/oh"] == pytest.approx(expected, rel=1e-4)
        found[temperature] = metrics["inversion/oh"]
    assert found[1.0] != pytest.approx(found[8.0], rel=1e-2)
    for temperature in (1.0, 8.0):
        changes = {"steps": 6, "lr": 0.05, "oh_weight": 3.0, "oh_temperature": temperature}
        inversion, rng, teacher = small(kind, **changes), Streams(0), make_teacher()
        carried = inversion.init(teacher, rng)
        for _ in range(2):
            made[temperature] = synthesize(inversion, carried, rng=rng, teacher=teacher)[0].images
    assert not torch.equal(made[1.0], made[8.0])


@each_inverter
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_a_class_prior_needs_a_temperature_above_0(kind, temperature):
    with pytest.raises(InputError, match=f"inversion oh_temperature is {temperature}; accepted: a number > 0"):
        small(kind, oh_temperature=temperature)


@each_inverter
@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_weights_are_finite_and_not_negative(kind, value):
    assert weights_of(kind)
    for term in weights_of(kind):
        with pytest.raises(InputError, match=f"inversion {term}_weight is {value}; accepted: >= 0, and finite"):
            small(kind, **{f"{term}_weight": value})


@each_inverter
def test_a_temperature_without_a_class_prior_is_rejected(kind):
    with pytest.raises(InputError, match=r"oh_temperature with oh_weight 0 is 8\.0; accepted: 1, or an oh_weight > 0"):
        small(kind, oh_weight=0.0, oh_temperature=8.0)


@each_inverter
def test_class_prior_and_temperature_are_marked_as_our_choice(kind):
    assert "oh_temperature" in kind.ours
    assert kind().oh_temperature == 1
    assert ("oh_weight" in kind.ours) == (kind().oh_weight == 0) == (kind in OWN_PRIOR)


@each_inverter
def test_the_guides_penalty_changes_the_images(kind):
    check_guide_changes_images(small(kind, steps=6))


@each_inverter
def test_the_guide_is_updated_after_each_penalty_with_the_same_values(kind):
    check_guide_updates(small(kind))
    guide = RecordingGuide()
    synthesize(small(kind), guide=guide)
    assert guide.calls == ["penalty", "update"] * 3


@each_inverter
def test_bn_statistics_are_computed_only_for_hosts_that_read_them(kind):
    guide, reads = RecordingGuide(), kind in {Cmi, DeepInversion, Dfq, Fast, Nayer}
    synthesize(small(kind), guide=guide)
    assert kind.reads_bn == reads
    assert [seen.bn.numel() > 0 for _, seen, _ in guide.penalty_calls] == [reads] * len(guide.penalty_calls)


@each_inverter
def test_the_weights_of_images_change_the_result(kind):
    check_image_weights(small(kind))


@each_inverter
def test_teacher_and_student_are_unchanged(kind):
    check_networks_unchanged(small(kind))


@pytest.mark.parametrize("kind", [kind for kind in INVERTERS if "adv" in weights_of(kind)], ids=lambda k: k.__name__)
def test_the_adversarial_gradient_goes_through_the_teacher_as_in_the_released_code(kind):
    """The student's logits are detached, so that only the teacher's logits can change the images."""
    off = small(kind, steps=6, **{f"{name}_weight": 0.0 for name in weights_of(kind)})
    last = []
    for weight in (0.0, 1.0):
        inversion, rng, teacher, guide = replace(off, adv_weight=weight), Streams(0), make_teacher(), LastImages()
        carried = inversion.init(teacher, rng)
        for _ in range(2):
            synthesize(inversion, carried, rng=rng, teacher=teacher, student=DetachedStudent(teacher), guide=guide)
        last.append(guide.last)
    assert torch.equal(*last) == (kind in TEACHER_DETACHED)


class LastImages(Unguided):
    """A guide without a penalty that stores the images of the last step."""

    def penalty(self, images, seen, labels):
        self.last = images.detach().clone()
        return super().penalty(images, seen, labels)


class DetachedStudent(torch.nn.Module):
    """A student with half the teacher's logits and without a gradient."""

    def __init__(self, teacher):
        super().__init__()
        self.teacher = teacher

    def forward(self, images):
        return 0.5 * self.teacher.logits(images).detach()


@each_inverter
def test_the_images_depend_only_on_the_seed(kind):
    check_seed(small(kind))


@each_inverter
def test_random_numbers_come_only_from_its_own_streams(kind):
    inversion, teacher = small(kind), make_teacher()
    rng, before = Streams(0), torch.random.get_rng_state()
    carried = inversion.init(teacher, rng)
    for _ in range(2):
        synthesize(inversion, carried, rng=rng, teacher=teacher, guide=RecordingGuide())
    streams = rng.state_dict()
    assert streams["device"].keys() <= {"targets", "latents", "augment/inversion", "negatives"}
    assert not streams["host"]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_any_two_inversions_give_different_images():
    for left, right in combinations([synthesize(small(kind))[0].images[:16] for kind in INVERTERS], 2):
        assert not torch.equal(left, right)


@each_inverter
def test_a_saved_state_continues_bit_for_bit(kind):
    check_checkpoint(small(kind))


@pytest.mark.parametrize("kind", get_args(AnyInversion), ids=lambda kind: kind.__name__)
def test_config_is_equal_after_yaml(kind):
    distiller = Distiller(condensed_share=1.0)
    complete = toy_config(inversion=small(kind), distiller=distiller)
    read = config.from_tree(yaml.safe_load(config.dump(complete)))
    assert read == complete
    assert hash(read) == hash(complete)


@pytest.mark.parametrize("kind", get_args(AnyInversion), ids=lambda kind: kind.__name__)
def test_method_name_matches_class_and_file(kind):
    stem = kind.__module__.rpartition(".")[2]
    if kind is not NoInversion:
        assert snake(kind.__name__) == stem
    assert kind().name in (stem, "none")
    assert (kind().name == "none") == (kind is NoInversion)


def teacher_with(mean, std, side=8):
    """Return a teacher with this normalisation and image size; its network does not matter."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(side * side, 2))
    options = {"num_classes": 2, "image_shape": (1, side, side), "train_size": 1, "flip_ok": True}
    return Teacher(network, mean=(mean,), std=(std,), **options)


@each_inverter
@given(mean=st.floats(0.05, 0.95), std=st.floats(0.05, 0.5), seed=st.integers(0, 999))
def test_augmentation_does_not_depend_on_the_normalisation(kind, mean, std, seed):
    """Shifts fill with black or wrap around, which gives equal pixels before and after normalisation."""
    pixels = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(seed))

    def augmented(images, teacher):
        return small(kind).augment(images, teacher=teacher, rng=torch.Generator().manual_seed(seed))

    teacher = teacher_with(mean, std)
    before, after = augmented(pixels, teacher_with(0.0, 1.0)), augmented(teacher.normalise(pixels), teacher)
    assert torch.equal(teacher.normalise(before), after)


@pytest.mark.parametrize("kind", [kind for kind in INVERTERS if hasattr(kind, "shift")], ids=lambda kind: kind.__name__)
@given(side=st.integers(4, 40), share=st.none() | st.floats(1e-3, 0.2))
def test_a_shift_is_at_least_one_pixel_at_every_image_size(kind, side, share):
    inversion, teacher = small(kind, **{} if share is None else {"shift": share}), teacher_with(0.5, 0.5, side)
    images = teacher.normalise(torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(0)))
    rng = torch.Generator().manual_seed(0)
    # Each of the 20 shifts is drawn independently and is zero with a probability of at most 1/9.
    assert any(not same_up_to_a_mirror(inversion.augment(images, teacher=teacher, rng=rng), images) for _ in range(20))


def same_up_to_a_mirror(left, right):
    return torch.equal(left, right) or torch.equal(left, right.flip(3))


@pytest.mark.parametrize("kind", [kind for kind in INVERTERS if hasattr(kind, "shift")], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_shift_outside_0_to_1_is_rejected(kind, share):
    with pytest.raises(InputError, match=f"inversion shift is {share}; accepted: 0 to 1, a share of the side"):
        small(kind, shift=share)


@each_inverter
def test_a_nan_in_the_guides_penalty_is_reported(kind):
    with pytest.raises(NonFiniteError, match="inversion/guide is not finite at step 3"):
        synthesize(small(kind, steps=5), guide=RecordingGuide(nan_at=3))


@each_inverter
def test_a_nan_in_the_teachers_logits_is_reported_with_a_term_that_uses_them(kind):
    network, guide = NanNetwork(make_teacher().network), RecordingGuide()
    teacher = wrap(network)
    network.nan_in(3)
    with pytest.raises(NonFiniteError) as caught:
        synthesize(small(kind, steps=5), teacher=teacher, guide=guide)
    # A host with two views per step computes its third logits in the second step.
    broken = [bool(seen.logits.isnan().any()) for _, seen, _ in guide.penalty_calls].index(True)
    term = "adv" if kind in OWN_PRIOR else "oh"
    assert f"inversion/{term} is not finite at step {broken + 1}" in str(caught.value)
    assert broken > 0


def test_no_inversion_returns_no_images():
    made, metrics = synthesize(NoInversion())
    assert made.images.shape == (0, *IMAGE_SHAPE)
    assert len(made) == 0
    assert metrics == {}

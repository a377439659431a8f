from math import log

import pytest
import torch
from reference import losses as reference
from toy import make_teacher

from condkd_ray.guidance import Discriminator
from condkd_ray.method import InputError
from condkd_ray.streams import Streams

RNG = torch.Generator().manual_seed(0)
LABELS = torch.arange(24) % 4


def seen(offset=0.0):
    """Features that tell the class."""
    features = torch.randn(24, 16, generator=RNG) + offset
    features[torch.arange(24), LABELS] += 5
    return 7 * features


CONDENSED = seen()


def started(**settings):
    guidance = Discriminator(**{"hidden": 16} | settings)
    return guidance, guidance.init(make_teacher(), CONDENSED, LABELS, Streams(0))


def test_condensed_features_are_scaled_to_unit_mean_square():
    _, state = started()
    assert (CONDENSED * state.scale).square().mean().item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("class_weight", [0.0, 1.0, 2.5])
def test_the_penalty_is_to_pass_for_a_condensed_image_of_ones_class(class_weight):
    guidance, state = started(class_weight=class_weight, spectral_norm=False)
    fake = seen(1.0)
    judged, classes = state.network(fake * state.scale, LABELS)
    naming = reference.mean(reference.class_prior(classes.tolist(), LABELS.tolist()))
    wanted = reference.fool(judged.tolist()) + class_weight * naming
    assert guidance.penalty(state, fake, LABELS, rng=RNG).item() == pytest.approx(wanted, rel=1e-5)


def test_what_it_logs_are_the_losses_before_its_step():
    guidance, state = started(spectral_norm=False)
    fake, real = seen(1.0), seen()
    judged = [state.network(look * state.scale, LABELS) for look in (real, fake)]
    terms = guidance.update(state, fake, real, LABELS, rng=RNG)
    told = reference.tell_apart(*(adversarial.tolist() for adversarial, _ in judged))
    assert terms["adversarial"].item() == pytest.approx(told, rel=1e-5)
    naming = reference.mean(reference.class_prior(judged[0][1].tolist(), LABELS.tolist()))
    assert terms["class"].item() == pytest.approx(naming, rel=1e-5)
    right = [(judged[0][0] > 0).double().mean(), (judged[1][0] < 0).double().mean()]
    assert terms["accuracy"].item() == pytest.approx(sum(right).item() / 2)


def test_it_starts_from_ignorance_and_learns_side_and_class():
    guidance, state = started(lr=1e-2)
    first = guidance.update(state, seen(1.0), seen(), LABELS, rng=RNG)
    assert first["adversarial"].item() == pytest.approx(2 * log(2), rel=0.1)
    for _ in range(200):
        last = guidance.update(state, seen(1.0), seen(), LABELS, rng=RNG)
    assert last["adversarial"] < 0.5 * first["adversarial"]
    assert last["class"] < 0.5 * first["class"]
    assert last["accuracy"] > 0.9


def test_the_class_head_learns_from_condensed_images_alone():
    guidance, state = started(spectral_norm=False)
    wrong = seen()
    guidance.update(state, wrong, CONDENSED, LABELS, rng=RNG)
    once = [p.clone() for p in state.network.classes.parameters()]
    guidance, other = started(spectral_norm=False)
    guidance.update(other, seen(3.0), CONDENSED, LABELS, rng=RNG)
    for found, wanted in zip(other.network.classes.parameters(), once, strict=True):
        torch.testing.assert_close(found, wanted)


def test_more_steps_are_as_many_updates_on_the_same_images():
    fake, real = seen(1.0), seen()
    guidance, state = started(steps=3)
    guidance.update(state, fake, real, LABELS, rng=RNG)
    single, other = started()
    for _ in range(3):
        single.update(other, fake, real, LABELS, rng=RNG)
    for found, wanted in zip(state.network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(found, wanted)


def test_losses_are_float32_under_autocast():
    guidance, state = started()
    with torch.autocast("cpu", torch.bfloat16):
        assert guidance.penalty(state, seen(), LABELS, rng=RNG).dtype == torch.float32
        terms = guidance.update(state, seen(), seen(), LABELS, rng=RNG)
    assert {term.dtype for term in terms.values()} == {torch.float32}


@pytest.mark.parametrize("change", [{"steps": 0}, {"hidden": 1}, {"weight": -1.0}])
def test_settings_that_make_no_sense_are_refused(change):
    with pytest.raises(InputError, match="accepted"):
        Discriminator(**change)

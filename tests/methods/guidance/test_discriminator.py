import copy
from math import log

import pytest
import torch
from reference import losses as reference
from toy import make_teacher

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.methods.guidance import Discriminator

RNG = torch.Generator().manual_seed(0)
CONDITIONS = ("auxiliary", "projection", "per_class", "none")
each_condition = pytest.mark.parametrize("condition", CONDITIONS)
each_loss = pytest.mark.parametrize("loss", ["non_saturating", "hinge"])
LABELS = torch.arange(24) % 4


def seen(offset=0.0):
    """Return features from which the class can be read."""
    features = torch.randn(24, 16, generator=RNG) + offset
    features[torch.arange(24), LABELS] += 5
    return 7 * features


CONDENSED = seen()


@pytest.fixture(autouse=True)
def same_draws():
    """Seed the generator, so that the draws of a test do not depend on earlier tests."""
    RNG.manual_seed(1)


def started(**settings):
    # The default is the condition with the class head, because it has all loss terms.
    guidance = Discriminator(**{"hidden": 16, "condition": "auxiliary"} | settings)
    return guidance, guidance.init(make_teacher(), CONDENSED, LABELS, Streams(0))


def test_condensed_features_are_scaled_to_unit_mean_square():
    _, state = started()
    assert (CONDENSED * state.scale).square().mean().item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("class_weight", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("adversarial_weight", [0.0, 1.0, 0.5])
def test_the_penalty_is_the_generator_loss_plus_the_class_loss(adversarial_weight, class_weight):
    guidance, state = started(class_weight=class_weight, adversarial_weight=adversarial_weight, spectral_norm=False)
    fake = seen(1.0)
    logits, classes = state.network(fake * state.scale, LABELS)
    class_loss = reference.mean(reference.class_prior(classes.tolist(), LABELS.tolist()))
    wanted = adversarial_weight * reference.generator_loss(logits.tolist()) + class_weight * class_loss
    assert guidance.penalty(state, fake, LABELS, rng=RNG).item() == pytest.approx(wanted, rel=1e-5)


def test_logged_losses_are_those_before_the_update():
    guidance, state = started(spectral_norm=False)
    fake, real = seen(1.0), seen()
    logits = [state.network(features * state.scale, LABELS) for features in (real, fake)]
    terms = guidance.update(state, fake, real, LABELS, rng=RNG)
    expected = reference.discriminator_loss(*(adversarial.tolist() for adversarial, _ in logits))
    assert terms["adversarial"].item() == pytest.approx(expected, rel=1e-5)
    class_loss = reference.mean(reference.class_prior(logits[0][1].tolist(), LABELS.tolist()))
    assert terms["class"].item() == pytest.approx(class_loss, rel=1e-5)
    right = [(logits[0][0] > 0).double().mean(), (logits[1][0] < 0).double().mean()]
    assert terms["accuracy"].item() == pytest.approx(sum(right).item() / 2)


@each_condition
@each_loss
def test_the_loss_starts_at_chance_and_falls(condition, loss):
    guidance, state = started(lr=1e-2, condition=condition, loss=loss)
    terms = [guidance.update(state, seen(1.0), seen(), LABELS, rng=RNG) for _ in range(200)]
    at_chance = 2 * log(2) if loss == "non_saturating" else 2.0
    assert terms[0]["adversarial"].item() == pytest.approx(at_chance, rel=0.15)
    assert terms[-1]["adversarial"] < 0.7 * at_chance
    # One step classifies only 48 images, and its accuracy depends on rounding, which differs between CPUs.
    assert torch.stack([one["accuracy"] for one in terms[-50:]]).mean() > 0.94
    if condition == "auxiliary":
        assert terms[-1]["class"] < 0.5 * terms[0]["class"]


def test_sgd_learns_as_well():
    guidance, state = started(lr=1e-2, optimizer="sgd")
    assert isinstance(state.optimizer, torch.optim.SGD)
    for _ in range(200):
        terms = guidance.update(state, seen(1.0), seen(), LABELS, rng=RNG)
    assert terms["accuracy"] > 0.8


@pytest.mark.parametrize(("condition", "conditional"), [("projection", True), ("per_class", True), ("none", False)])
def test_only_a_conditional_discriminator_learns_fakes_that_are_condensed_images_of_another_class(
    condition, conditional
):
    """Both sides are the same images; the labels on the fakes' side are exchanged."""
    guidance, state = started(lr=1e-2, condition=condition, spectral_norm=False)
    for _ in range(200):
        real = seen()
        terms = guidance.update(state, real.roll(1, 0), real, LABELS, rng=RNG)
    assert (terms["accuracy"] > 0.95) == conditional
    assert (abs(terms["accuracy"] - 0.5) < 0.1) != conditional


def test_the_class_head_learns_from_condensed_images_alone():
    guidance, state = started(spectral_norm=False)
    wrong = seen()
    guidance.update(state, wrong, CONDENSED, LABELS, rng=RNG)
    once = [p.clone() for p in state.network.classes.parameters()]
    guidance, other = started(spectral_norm=False)
    guidance.update(other, seen(3.0), CONDENSED, LABELS, rng=RNG)
    for found, wanted in zip(other.network.classes.parameters(), once, strict=True):
        torch.testing.assert_close(found, wanted)


def test_steps_is_the_number_of_updates_on_the_same_images():
    fake, real = seen(1.0), seen()
    guidance, state = started(steps=3)
    guidance.update(state, fake, real, LABELS, rng=RNG)
    single, other = started()
    for _ in range(3):
        single.update(other, fake, real, LABELS, rng=RNG)
    for found, wanted in zip(state.network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(found, wanted)


@each_condition
@pytest.mark.parametrize("settings", [{"loss": "hinge"}, {"r1_weight": 1.0, "instance_noise": 0.5}], ids=str)
def test_losses_are_float32_under_autocast(condition, settings):
    guidance, state = started(condition=condition, **settings)
    with torch.autocast("cpu", torch.bfloat16):
        assert guidance.penalty(state, seen(), LABELS, rng=RNG).dtype == torch.float32
        terms = guidance.update(state, seen(), seen(), LABELS, rng=RNG)
    assert {term.dtype for term in terms.values()} == {torch.float32}


# Settings against over-fitting.


@each_condition
def test_the_class_weight_has_an_effect_only_with_a_class_head(condition):
    fake, real, found = seen(1.0), seen(), []
    for class_weight in (0.0, 2.0):
        guidance, state = started(condition=condition, class_weight=class_weight)
        guidance.update(state, fake, real, LABELS, rng=RNG)
        found.append(guidance.penalty(state, fake, LABELS, rng=RNG))
    assert (found[0] != found[1]) == (condition == "auxiliary")


@each_condition
def test_r1_is_half_the_squared_gradient_at_condensed_features_by_finite_differences(condition):
    guidance, state = started(condition=condition, r1_weight=1.0, spectral_norm=False)
    fake, real = seen(1.0)[:4], seen()[:4]
    network, wanted = copy.deepcopy(state.network).double(), []
    for row, label in zip((real * state.scale).double(), LABELS[:4], strict=True):

        def logit_at(point, label=label):
            return network(torch.tensor([point], dtype=torch.float64), label[None])[0].item()

        # The outputs are float32, so the step must be far above their rounding.
        wanted.append(reference.gradient_penalty(logit_at, [row.tolist()], step=1e-3))
    logged = guidance.update(state, fake, real, LABELS[:4], rng=RNG)["r1"].item()
    assert logged == pytest.approx(reference.mean(wanted), rel=0.02)


def test_r1_reduces_the_gradient_of_the_output():
    found = []
    for r1_weight in (0.0, 10.0):
        guidance, state = started(r1_weight=r1_weight, spectral_norm=False, lr=1e-2)
        for _ in range(100):
            guidance.update(state, seen(1.0), seen(), LABELS, rng=RNG)
        points = (seen() * state.scale).requires_grad_()
        (gradient,) = torch.autograd.grad(state.network(points, LABELS)[0].sum(), points)
        found.append(gradient.norm(dim=1).mean())
    assert found[1] < 0.5 * found[0]


def test_the_loss_uses_smoothed_targets():
    guidance, state = started(label_smoothing=0.2, spectral_norm=False)
    fake, real = seen(1.0), seen()
    logits = [state.network(features * state.scale, LABELS)[0].tolist() for features in (real, fake)]
    logged = guidance.update(state, fake, real, LABELS, rng=RNG)["adversarial"].item()
    assert logged == pytest.approx(reference.discriminator_loss(*logits, 0.2), rel=1e-5)


def test_instance_noise_is_added_to_all_inputs_from_the_given_stream_in_units_of_the_features():
    guidance, state = started(instance_noise=0.5, spectral_norm=False)

    def stream():
        return torch.Generator().manual_seed(7)

    def noisy(features):
        return features * state.scale + 0.5 * torch.randn(features.shape, generator=stream())

    fake, real = seen(1.0), seen()
    logits = state.network(noisy(fake), LABELS)
    class_loss = reference.mean(reference.class_prior(logits[1].tolist(), LABELS.tolist()))
    wanted = reference.generator_loss(logits[0].tolist()) + class_loss
    assert guidance.penalty(state, fake, LABELS, rng=stream()).item() == pytest.approx(wanted, rel=1e-5)
    accuracy = (state.network(noisy(real), LABELS)[0] > 0).float().mean()
    assert guidance.evaluate_held_out(state, real, real, real, LABELS, rng=stream())["held_out_accuracy"] == accuracy
    both = state.network(noisy(torch.cat([real, fake])), LABELS.repeat(2))[0].tolist()
    logged = guidance.update(state, fake, real, LABELS, rng=stream())["adversarial"].item()
    assert logged == pytest.approx(reference.discriminator_loss(both[:24], both[24:]), rel=1e-5)


def test_memorised_images_are_detected_by_held_out_images():
    """Condensed and fake features have the same distribution, so only the few condensed ones can be memorised."""
    noise = torch.Generator().manual_seed(1)
    few, held_out = torch.randn(8, 64, generator=noise), torch.randn(400, 64, generator=noise)
    guidance = Discriminator(hidden=64, lr=1e-2, spectral_norm=False, condition="none")
    labels = torch.arange(8) % 4
    state = guidance.init(make_teacher(), few, labels, Streams(0))
    for _ in range(150):
        terms = guidance.update(state, torch.randn(8, 64, generator=noise), few, labels, rng=RNG)
    seen_right = terms["real_accuracy"]
    found = guidance.evaluate_held_out(state, few.repeat(50, 1), held_out, held_out, torch.arange(400) % 4, rng=RNG)
    assert seen_right > 0.95
    assert found["held_out_accuracy"] < 0.6
    # The accuracy on perfect fakes above one half is due to memorised images.
    assert found["perfect_accuracy"].item() == pytest.approx((seen_right + 1 - found["held_out_accuracy"]).item() / 2)
    assert found["perfect_accuracy"] > 0.65


@each_condition
def test_perfect_accuracy_is_the_accuracy_on_condensed_images_and_on_held_out_images_used_as_fakes(condition):
    guidance, state = started(condition=condition)
    for _ in range(30):
        guidance.update(state, seen(1.0), seen(), LABELS, rng=RNG)
    shown, held_out, fakes = seen(), seen(), seen(0.5)
    before = [tensor.clone() for tensor in state.network.state_dict().values()]
    found = guidance.evaluate_held_out(state, shown, held_out, fakes, LABELS, rng=RNG)
    assert all(map(torch.equal, before, state.network.state_dict().values()))
    state.network.eval()
    logits = [state.network(features * state.scale, LABELS)[0].tolist() for features in (shown, held_out, fakes)]
    right = sum(value > 0 for value in logits[0]), sum(value < 0 for value in logits[2])
    assert found["perfect_accuracy"].item() == pytest.approx(sum(right) / 48)
    assert found["held_out_accuracy"].item() == pytest.approx(sum(value > 0 for value in logits[1]) / 24)
    assert found.keys() == {"held_out_accuracy", "perfect_accuracy"}


def test_an_evaluation_does_not_change_later_updates():
    fake, real, found = seen(1.0), seen(), []
    for evaluated in (False, True):
        guidance, state = started()
        if evaluated:
            guidance.evaluate_held_out(state, real, real, real, LABELS, rng=RNG)
        guidance.update(state, fake, real, LABELS, rng=RNG)
        found.append(list(state.network.state_dict().values()))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"hidden": 1},
        {"weight": -1.0},
        {"held_out": 1.0},
        {"held_out": -0.1},
        {"label_smoothing": 0.5},
        {"label_smoothing": 0.1, "loss": "hinge"},
        {"r1_weight": -1.0},
        {"instance_noise": -1.0},
        {"class_weight": -1.0},
        {"instance_noise": float("inf")},
    ],
    ids=str,
)
def test_invalid_settings_are_refused(change):
    with pytest.raises(InputError, match=f"{next(iter(change))}.* is .*; accepted"):
        Discriminator(**change)

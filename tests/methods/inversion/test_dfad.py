import copy

import pytest
import torch
from contracts.toy_methods import RecordingGuide, last_gradients, make_student, small, synthesize
from reference import adversaries as reference
from toy import make_teacher

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.methods.inversion import Dfad


def uneven(seen, labels):
    return torch.arange(len(labels)) % 3.0


def test_the_loss_equals_minus_the_distance_of_logits_in_plain_loops():
    dfad, student, guide = small(Dfad, adv_weight=0.7), make_student(), RecordingGuide()
    _, metrics = synthesize(dfad, student=student, guide=guide, weigh=uneven)
    losses = [
        reference.dfad(student(images).tolist(), seen.logits.tolist(), uneven(seen, labels).tolist())
        for images, seen, labels in guide.penalty_calls
    ]
    assert metrics["inversion/adv"] == pytest.approx(reference.mean(losses), rel=1e-4)
    expected = 0.7 * reference.mean(losses) + metrics["inversion/guide"]
    assert metrics["inversion/loss"] == pytest.approx(expected, rel=1e-4)


def test_the_steps_of_the_generator_equal_plain_code():
    dfad, teacher, student = small(Dfad, steps=2), make_teacher(), make_student()
    rng, own = Streams(0), Streams(0)
    state = dfad.init(teacher, rng)
    generator = copy.deepcopy(state.generator)
    optimizer = torch.optim.Adam(generator.parameters(), lr=dfad.lr)
    synthesize(dfad, state, rng=rng, teacher=teacher, student=student)
    for _ in range(2):
        images = generator(torch.randn(dfad.batch, dfad.latent, generator=own["latents"]))
        optimizer.zero_grad()
        (-(teacher.logits(images) - student(images)).abs().mean()).backward()
        optimizer.step()
    for found, wanted in zip(state.generator.parameters(), generator.parameters(), strict=True):
        # Adam's first step has the size of its rate even for tiny gradients, whose sign may be due to rounding.
        assert torch.isclose(found, wanted, rtol=1e-3, atol=1e-5).double().mean() > 0.99


def test_exactly_the_weights_of_the_generator_have_gradients():
    dfad, teacher, student, rng = small(Dfad), make_teacher(), make_student(), Streams(0)
    state = dfad.init(teacher, rng)
    gradients = last_gradients(state)
    synthesize(dfad, state, rng=rng, teacher=teacher, student=student)
    assert gradients
    assert all(gradient.abs().sum() > 0 for gradient in gradients.values())
    assert all(
        weight.grad is None
        for weight in [*teacher.network.parameters(), *student.parameters(), *state.generator.parameters()]
    )


def test_the_adversarial_loss_decreases():
    dfad, teacher, student, rng = small(Dfad, steps=30), make_teacher(), make_student(), Streams(0)
    state = dfad.init(teacher, rng)
    _, first = synthesize(dfad, state, rng=rng, teacher=teacher, student=student)
    _, second = synthesize(dfad, state, rng=rng, teacher=teacher, student=student)
    assert second["inversion/adv"] < first["inversion/adv"] < 0


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch": 1}, {"images_per_round": 1}])
def test_invalid_settings_are_refused(change):
    with pytest.raises(InputError, match="accepted"):
        Dfad(**change)

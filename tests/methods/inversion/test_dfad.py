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


def test_the_loss_is_minus_the_logits_distance_as_written_in_loops():
    dfad, student, guide = small(Dfad, adv_weight=0.7), make_student(), RecordingGuide()
    _, metrics = synthesize(dfad, student=student, guide=guide, weigh=uneven)
    losses = [
        reference.dfad(student(images).tolist(), seen.logits.tolist(), uneven(seen, labels).tolist())
        for images, seen, labels in guide.penalty_calls
    ]
    assert metrics["inversion/adv"] == pytest.approx(reference.mean(losses), rel=1e-4)
    told = 0.7 * reference.mean(losses) + metrics["inversion/guide"]
    assert metrics["inversion/loss"] == pytest.approx(told, rel=1e-4)


def test_the_generator_moves_as_written_out_by_hand():
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
        # Adam's first step has the size of the rate, whatever the gradient: its sign may hang on a last bit.
        assert torch.isclose(found, wanted, rtol=1e-3, atol=1e-5).double().mean() > 0.99


def test_every_weight_of_the_generator_is_reached_and_no_other():
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


def test_its_images_drive_the_logits_apart():
    dfad, teacher, student, rng = small(Dfad, steps=30), make_teacher(), make_student(), Streams(0)
    state = dfad.init(teacher, rng)
    _, first = synthesize(dfad, state, rng=rng, teacher=teacher, student=student)
    _, second = synthesize(dfad, state, rng=rng, teacher=teacher, student=student)
    assert second["inversion/adv"] < first["inversion/adv"] < 0


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch": 1}, {"images_per_round": 1}])
def test_settings_that_make_no_sense_are_refused(change):
    with pytest.raises(InputError, match="accepted"):
        Dfad(**change)

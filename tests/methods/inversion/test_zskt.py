import copy

import pytest
import torch
from contracts.toy_methods import RecordingGuide, last_gradients, make_student, small, synthesize
from reference import adversaries as reference
from toy import make_teacher

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.methods.inversion import Zskt


def uneven(seen, labels):
    return torch.arange(len(labels)) % 3.0


def gradients(**changes):
    """Return the gradients of all the generator's weights after one step."""
    zskt, teacher, rng = small(Zskt, steps=1, **changes), make_teacher(), Streams(0)
    state = zskt.init(teacher, rng)
    found = last_gradients(state)
    synthesize(zskt, state, rng=rng, teacher=teacher)
    return [gradient.flatten() for gradient in found.values()]


def test_the_loss_equals_minus_the_kl_in_plain_loops():
    zskt, student, guide = small(Zskt, adv_weight=0.7), make_student(), RecordingGuide()
    _, metrics = synthesize(zskt, student=student, guide=guide, weigh=uneven)
    losses = [
        reference.zskt(student(images).tolist(), seen.logits.tolist(), uneven(seen, labels).tolist())
        for images, seen, labels in guide.penalty_calls
    ]
    assert metrics["inversion/adv"] == pytest.approx(reference.mean(losses), rel=1e-4)
    expected = 0.7 * reference.mean(losses) + metrics["inversion/guide"]
    assert metrics["inversion/loss"] == pytest.approx(expected, rel=1e-4)


def test_the_steps_of_the_generator_equal_plain_code():
    zskt, teacher, student = small(Zskt, steps=2, clip=1e-3), make_teacher(), make_student()
    rng, own = Streams(0), Streams(0)
    state = zskt.init(teacher, rng)
    generator = copy.deepcopy(state.generator)
    optimizer = torch.optim.Adam(generator.parameters(), lr=zskt.lr)
    synthesize(zskt, state, rng=rng, teacher=teacher, student=student)
    for _ in range(2):
        images = generator(torch.randn(zskt.batch, zskt.latent, generator=own["latents"]))
        ours, wanted = student(images).log_softmax(1), teacher.logits(images).log_softmax(1)
        optimizer.zero_grad()
        (-(wanted.exp() * (wanted - ours)).sum(1).mean()).backward()
        length = torch.cat([p.grad.flatten() for p in generator.parameters()]).norm()
        for parameter in generator.parameters():
            parameter.grad *= min(1.0, zskt.clip / length)
        optimizer.step()
    for found, wanted in zip(state.generator.parameters(), generator.parameters(), strict=True):
        # Adam's first step has the size of its rate even for tiny gradients, whose sign may be due to rounding.
        assert torch.isclose(found, wanted, rtol=1e-3, atol=1e-5).double().mean() > 0.99


def test_only_gradients_longer_than_clip_are_scaled_down_to_it():
    free = gradients(clip=1e9)
    length = torch.cat(free).norm().item()
    for clip in (0.25 * length, 4 * length):
        wanted = reference.clipped([gradient.tolist() for gradient in free], clip)
        for found, expected in zip(gradients(clip=clip), wanted, strict=True):
            torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-9)


def test_exactly_the_weights_of_the_generator_have_gradients():
    zskt, teacher, student, rng = small(Zskt), make_teacher(), make_student(), Streams(0)
    state = zskt.init(teacher, rng)
    gradients = last_gradients(state)
    synthesize(zskt, state, rng=rng, teacher=teacher, student=student)
    # A bias directly before a BN has no effect.
    reached = {name for name, gradient in gradients.items() if gradient.abs().sum() > 1e-7}
    assert {name for name, _ in state.generator.named_parameters()} - reached <= {"end.3.bias"}
    assert all(
        weight.grad is None
        for weight in [*teacher.network.parameters(), *student.parameters(), *state.generator.parameters()]
    )


def test_the_adversarial_loss_decreases():
    zskt, teacher, student, rng = small(Zskt, steps=30), make_teacher(), make_student(), Streams(0)
    state = zskt.init(teacher, rng)
    _, first = synthesize(zskt, state, rng=rng, teacher=teacher, student=student)
    _, second = synthesize(zskt, state, rng=rng, teacher=teacher, student=student)
    assert second["inversion/adv"] < first["inversion/adv"] < 0


def test_images_are_not_bounded():
    generator = small(Zskt).init(make_teacher(), Streams(0)).generator
    with torch.no_grad():
        generator.head.weight.fill_(100.0)
    assert generator(torch.randn(8, 16, generator=torch.Generator().manual_seed(0))).abs().max() > 50


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch": 1}, {"images_per_round": 1}, {"clip": 0.0}])
def test_invalid_settings_are_refused(change):
    with pytest.raises(InputError, match="accepted"):
        Zskt(**change)

import copy

import pytest
import torch
import torch.nn.functional as F
from contracts.toy_methods import make_student, small, synthesize
from reference import adversaries as reference
from toy import make_teacher, samples

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import UNLABELLED
from condkd_ray.methods.inversion import PreDfkd
from condkd_ray.methods.inversion.inversion import StepBatch
from condkd_ray.methods.targets import Targets


def js_by_hand(student, teacher, reduction):
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    p, q, middle = (x.clamp(0.01, 0.99) for x in (p, q, (p + q) / 2))
    terms = 0.5 * middle * (middle / p).log() + 0.5 * middle * (middle / q).log()
    return terms.mean() if reduction == "mean" else terms.sum() / len(terms)


@pytest.mark.parametrize("reduction", ["mean", "batchmean"])
def test_the_steps_of_the_generator_equal_plain_code(reduction):
    method, teacher, student = small(PreDfkd, steps=2, js_reduction=reduction), make_teacher(), make_student()
    rng, own = Streams(0), Streams(0)
    state = method.init(teacher, rng)
    generator = copy.deepcopy(state.generator)
    optimizer = torch.optim.Adam(generator.parameters(), lr=method.lr)
    _, metrics = synthesize(method, state, rng=rng, teacher=teacher, student=student)
    losses = []
    for _ in range(2):
        images = generator(torch.randn(method.batch, method.latent, generator=own["latents"]))
        seen = teacher.observe(images)
        mean = seen.logits.softmax(1).mean(0)
        loss = (
            method.oh_weight * F.cross_entropy(seen.logits, seen.logits.argmax(1))
            + method.ie_weight * (mean * mean.log10()).sum()
            - method.act_weight * seen.features.abs().mean()
            + method.adv_weight * (1 - js_by_hand(student(images), seen.logits.detach(), reduction).clamp(0, 1))
        )
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert metrics["inversion/loss"] == pytest.approx(sum(losses) / 2, rel=1e-4)
    for found, wanted in zip(state.generator.parameters(), generator.parameters(), strict=True):
        # Adam's first step has the size of its rate even for tiny gradients, whose sign may be due to rounding.
        assert torch.isclose(found, wanted, rtol=1e-3, atol=1e-4).double().mean() > 0.99


@pytest.mark.parametrize("reduction", ["mean", "batchmean"])
def test_the_gradient_of_the_adversarial_term_treats_the_teachers_logits_as_constant(reduction):
    """Compare with central differences of plain loops in float64, in which the teacher's logits are constant."""
    method, teacher, student = small(PreDfkd, js_reduction=reduction), make_teacher(), make_student()
    images = samples(2, seed=1).images.requires_grad_()
    seen = teacher.observe(images)
    batch = StepBatch(images, images, seen, Targets(seen.logits.argmax(1)), torch.ones(2))
    terms = method.terms(batch, teacher=teacher, student=student)
    (gradient,) = torch.autograd.grad(terms["adv"], images)
    exact, constant, step = copy.deepcopy(student).double(), seen.logits.tolist(), 1e-4

    def adv(moved):
        return reference.competition(exact(moved).tolist(), constant, [1.0, 1.0], 3.0, reduction)

    for place in range(images[0].numel()):
        for image in range(2):
            away = torch.zeros_like(images, dtype=torch.float64)
            away[image].view(-1)[place] = step
            wanted = (adv(images + away) - adv(images - away)) / (2 * step)
            assert gradient[image].view(-1)[place].item() == pytest.approx(wanted, rel=1e-2, abs=1e-5)


def test_images_are_generated_after_the_steps_from_new_latents():
    method, teacher, rng, own = small(PreDfkd), make_teacher(), Streams(0), Streams(0)
    state, calls = method.init(teacher, rng), []
    state.generator.register_forward_hook(lambda _, inputs, images: calls.append((inputs[0], images)))
    made, _ = synthesize(method, state, rng=rng, teacher=teacher)
    latents = torch.randn((method.steps + 2) * method.batch, method.latent, generator=own["latents"])
    assert torch.equal(torch.cat([z for z, _ in calls]), latents)
    assert torch.equal(made.images, torch.cat([images for _, images in calls[-2:]]))
    assert made.labels.eq(UNLABELLED).all()


def test_convolutions_have_norm_1_and_initial_weights_are_small():
    generator = PreDfkd(width=16, latent=40).init(make_teacher(), Streams(0)).generator
    for layer in (generator.middle[0], generator.end[0], generator.end[3]):
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.1)
    assert generator.linear.weight.abs().max() <= 0.08


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch": 1}, {"images_per_round": 1}, {"temperature": 0.0}])
def test_invalid_settings_are_refused(change):
    with pytest.raises(InputError, match="accepted"):
        PreDfkd(**change)

import copy
from math import log

import pytest
import torch
import torch.nn.functional as F
from contracts.toy_methods import RecordingGuide, last_gradients, make_student, small, synthesize
from reference import adversaries as reference
from torch import nn
from toy import IMAGE_SHAPE, NUM_CLASSES, by_layer, make_teacher, wrap

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.methods.inversion import Dfq

ALONE = {"adv_weight": 0.0, "bn_weight": 0.0, "ice_weight": 0.0, "bce_weight": 0.0}


def uneven(seen, labels):
    return torch.arange(len(labels)) % 3.0


def lists(layers):
    return [(mean.tolist(), var.tolist()) for mean, var in layers]


@pytest.mark.parametrize("first", [1.0, 5.0])
def test_the_loss_equals_the_sum_in_plain_loops(first):
    dfq, teacher, student, guide = small(Dfq, first_bn_factor=first), make_teacher(), make_student(), RecordingGuide()
    _, metrics = synthesize(dfq, teacher=teacher, student=student, guide=guide, weigh=uneven)
    losses = [
        reference.dfq(
            student(images).tolist(),
            seen.logits.tolist(),
            uneven(seen, labels).tolist(),
            lists(by_layer(seen.bn, teacher)),
            lists(by_layer(teacher.bn[0], teacher)),
            first=first,
            alpha=0.1,
        )
        for images, seen, labels in guide.penalty_calls
    ]
    expected = reference.mean(losses) + metrics["inversion/guide"]
    assert metrics["inversion/loss"] == pytest.approx(expected, rel=1e-4)


def test_the_steps_of_the_generator_equal_plain_code():
    dfq, teacher, student = small(Dfq, steps=2), make_teacher(), make_student()
    rng, own = Streams(0), Streams(0)
    state = dfq.init(teacher, rng)
    generator = copy.deepcopy(state.generator)
    optimizer = torch.optim.Adam(generator.parameters(), lr=dfq.lr, betas=(0.5, 0.999))
    synthesize(dfq, state, rng=rng, teacher=teacher, student=student)
    for _ in range(2):
        images = generator(torch.randn(dfq.batch, dfq.latent, generator=own["latents"]))
        seen = teacher.observe(images)
        pairs = zip(by_layer(seen.bn, teacher), by_layer(teacher.bn[0], teacher), strict=True)
        apart = [
            (var - running_var).norm() + (mean - running_mean).norm()
            for (mean, var), (running_mean, running_var) in pairs
        ]
        p = seen.logits.softmax(1)
        ice, bce = -(p * p.log10()).sum(1).mean(), (p.mean(0) * p.mean(0).log10()).sum()
        kl = F.kl_div(student(images).log_softmax(1), p, reduction="batchmean")
        optimizer.zero_grad()
        (0.1 * (5 * apart[0] + sum(apart[1:]) + ice + bce) - kl).backward()
        optimizer.step()
    for found, wanted in zip(state.generator.parameters(), generator.parameters(), strict=True):
        # Adam's first step has the size of its rate even for tiny gradients, whose sign may be due to rounding.
        assert torch.isclose(found, wanted, rtol=1e-3, atol=1e-5).double().mean() > 0.99


def test_exactly_the_weights_of_the_generator_have_gradients():
    dfq, teacher, student, rng = small(Dfq), make_teacher(), make_student(), Streams(0)
    state = dfq.init(teacher, rng)
    gradients = last_gradients(state)
    synthesize(dfq, state, rng=rng, teacher=teacher, student=student)
    assert gradients
    assert all(gradient.abs().sum() > 0 for gradient in gradients.values())
    assert all(
        weight.grad is None
        for weight in [*teacher.network.parameters(), *student.parameters(), *state.generator.parameters()]
    )


@pytest.mark.parametrize(("term", "least"), [("ice", 0.0), ("bce", -log(NUM_CLASSES) / log(10))])
def test_each_entropy_alone_makes_images_certain_or_classes_evenly_used(term, least):
    dfq, rng, teacher = small(Dfq, steps=60, batch=32, **ALONE | {f"{term}_weight": 1.0}), Streams(0), make_teacher()
    state = dfq.init(teacher, rng)
    _, first = synthesize(dfq, state, rng=rng, teacher=teacher)
    _, second = synthesize(dfq, state, rng=rng, teacher=teacher)
    assert least <= second[f"inversion/{term}"] < first[f"inversion/{term}"]
    assert second[f"inversion/{term}"] == pytest.approx(least, abs=0.1)


def test_a_teacher_without_bn_is_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(IMAGE_SHAPE[1] * IMAGE_SHAPE[2], NUM_CLASSES))
    with pytest.raises(InputError, match=r"batch normalisation layers is 0; accepted: .*zskt"):
        Dfq().init(wrap(network), Streams(0))


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch": 1}, {"images_per_round": 1}])
def test_invalid_settings_are_refused(change):
    with pytest.raises(InputError, match="accepted"):
        Dfq(**change)

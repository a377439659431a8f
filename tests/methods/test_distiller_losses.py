"""The student's step with each distillation loss."""

from dataclasses import replace

import pytest
import torch
from toy import MEAN, STD, answered, blobs, make_teacher, samples

from condkd_ray.core.rng import Streams
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.losses.kd import Attention, Dkd, Hinton, LogitL1, SoftCrossEntropy
from condkd_ray.models.teacher import Teacher
from methods.student_steps import begin, begin_fresh, ones


@pytest.fixture
def teacher() -> Teacher:
    return make_teacher()


LOSSES = [
    Hinton(temperature=4.0),
    LogitL1(),
    SoftCrossEntropy(temperature=4.0),
    Dkd(),
    Attention(teacher_layers=("stages.0", "stages.1"), student_layers=("stages.0", "stages.1")),
]
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)


@every_loss
@pytest.mark.parametrize("augment", [True, False])
def test_only_the_student_gets_a_gradient(teacher, loss, augment):
    distiller = Distiller(loss=loss, augment=augment)
    state, batch = begin_fresh(distiller, teacher), answered(blobs(16, seed=9), teacher)
    found = distiller.step(state, batch, ones(batch), teacher=teacher, rng=Streams(0))
    assert found.gap.shape == (16,)
    assert not found.gap.requires_grad
    assert all(weight.grad is None for weight in teacher.network.parameters())
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in state.student.parameters())
    hooks = [*teacher.network.modules(), *state.student.modules()]
    assert not any(part._forward_hooks for part in hooks)


@every_loss
def test_a_sample_of_weight_0_does_not_change_the_loss(teacher, loss):
    distiller, batch = Distiller(loss=loss, augment=False, lr=1e-9), answered(blobs(8, seed=9), teacher)
    losses = []
    for rows, weights in ((slice(0, 4), torch.ones(4)), (slice(0, 8), torch.tensor([2.0] * 4 + [0.0] * 4))):
        state = begin_fresh(distiller, teacher)
        state.student.eval()  # batch statistics would tie the samples together
        losses.append(distiller.step(state, batch[rows], weights, teacher=teacher, rng=Streams(0)).terms["loss"].item())
    assert losses[0] > 0
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@every_loss
def test_a_student_learns_with_every_loss(teacher, loss):
    real = answered(blobs(256, seed=9), teacher)
    distiller = Distiller(loss=loss, steps=40, batch=64, shift=0.0)
    state, rng, losses = begin_fresh(distiller, teacher), Streams(0), []
    for _ in range(distiller.steps):
        rows = torch.randint(len(real), (64,), generator=rng.host("draw"))
        losses.append(distiller.step(state, real[rows], torch.ones(64), teacher=teacher, rng=rng).terms["loss"].item())
    test = blobs(128, seed=10).samples(MEAN, STD)
    assert (state.student.eval()(test.images).argmax(1) == test.labels).float().mean() > 0.6
    assert sum(losses[-5:]) < sum(losses[:5])


def test_decoupled_distillation_depends_on_the_labels(teacher):
    distiller, batch = Distiller(loss=Dkd(), augment=False), answered(blobs(8, seed=9), teacher)
    moved = replace(batch, labels=(batch.labels + 1) % 4)
    losses = [
        distiller.step(begin_fresh(distiller, teacher), one, ones(one), teacher=teacher, rng=Streams(0)).terms["loss"]
        for one in (batch, moved)
    ]
    assert losses[0] != losses[1]


def test_a_loss_of_layers_runs_the_teacher_even_if_its_logits_are_stored(teacher):
    distiller = Distiller(loss=LOSSES[-1], augment=False, lr=1e-9)
    state = begin(distiller, teacher)
    state.student.eval()
    batch = replace(samples(8), logits=torch.full((8, 4), 1e6))
    terms, gap = distiller.step(state, batch, ones(batch), teacher=teacher, rng=Streams(0))
    # The student is a copy of the teacher, so both parts of the loss are 0.
    assert terms["loss"].item() == pytest.approx(0, abs=1e-3)
    assert gap.max() <= 1e-5

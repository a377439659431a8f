"""What holds for every distillation loss."""

from typing import get_args

import pytest
import torch
from contracts.toy_methods import sized

from condkd_ray.methods.losses.kd import AnyKdLoss, NetworkOutputs, SoftCrossEntropy

LAYERS = {"teacher_layers": ("a",), "student_layers": ("a",)}
LOSSES = [sized(kind, **LAYERS) for kind in get_args(AnyKdLoss)]
LABELS = torch.arange(8) % 5
every = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)


def answer(seed: int) -> NetworkOutputs:
    rng = torch.Generator().manual_seed(seed)
    return NetworkOutputs(4 * torch.randn(8, 5, generator=rng), (torch.randn(8, 3, 4, 4, generator=rng),))


def cut(given: NetworkOutputs, rows: slice) -> NetworkOutputs:
    return NetworkOutputs(given.logits[rows], tuple(tap[rows] for tap in given.taps))


@every
def test_each_sample_has_a_loss_of_its_own(loss):
    whole = loss(answer(0), answer(1), LABELS)
    assert whole.shape == (8,)
    parts = [loss(cut(answer(0), rows), cut(answer(1), rows), LABELS[rows]) for rows in (slice(0, 3), slice(3, 8))]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert (whole > 0).all()


@every
def test_a_perfect_student_costs_least(loss):
    perfect = loss(answer(1), answer(1), LABELS)
    assert (loss(answer(0), answer(1), LABELS) > perfect).all()
    if not isinstance(loss, SoftCrossEntropy):
        assert perfect.abs().max() <= 1e-4
    student = answer(1).logits.clone().requires_grad_()
    loss(NetworkOutputs(student, answer(1).taps), answer(1), LABELS).sum().backward()
    if loss.name != "l1":  # it has a kink there
        assert student.grad.abs().max() <= 1e-4


@every
def test_half_precision_is_read_as_float32_and_autocast_changes_nothing(loss):
    rough = NetworkOutputs(answer(0).logits.bfloat16(), tuple(tap.bfloat16() for tap in answer(0).taps))
    exact = NetworkOutputs(rough.logits.float(), tuple(tap.float() for tap in rough.taps))
    wanted = loss(exact, answer(1), LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(rough, answer(1), LABELS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted)

"""Properties of all distillation losses."""

from typing import get_args

import pytest
from contracts.toy_methods import sized

from condkd_ray.methods.losses.kd import AnyKdLoss, NetworkOutputs, SoftCrossEntropy
from condkd_ray.testing.losses import (
    LABELS,
    check_kd_loss,
    check_one_value_an_image,
    check_perfect_student,
    check_precision,
    outputs,
)

LAYERS = {"teacher_layers": ("a",), "student_layers": ("a",)}
LOSSES = [sized(kind, **LAYERS) for kind in get_args(AnyKdLoss)]
every = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)


@every
def test_each_sample_has_its_own_loss(loss):
    check_one_value_an_image(loss)


@every
def test_a_perfect_student_has_the_lowest_loss(loss):
    check_perfect_student(loss)
    perfect = loss(outputs(1), outputs(1), LABELS)
    if not isinstance(loss, SoftCrossEntropy):
        assert perfect.abs().max() <= 1e-4
    student = outputs(1).logits.clone().requires_grad_()
    loss(NetworkOutputs(student, outputs(1).taps), outputs(1), LABELS).sum().backward()
    if loss.name != "l1":  # the L1 distance is not differentiable there
        assert student.grad.abs().max() <= 1e-4


@every
def test_the_contract_holds_for_each_task(loss):
    check_kd_loss(loss)


@every
def test_half_precision_is_read_as_float32_and_autocast_changes_nothing(loss):
    check_precision(loss)

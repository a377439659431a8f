from math import log

import pytest
import torch
from reference import losses as reference

from condkd_ray.losses.kd import Hinton, LogitL1
from condkd_ray.method import InputError

RNG = torch.Generator().manual_seed(0)
STUDENT, TEACHER = 4 * torch.randn(2, 12, 5, generator=RNG)


def close(got, wanted):
    torch.testing.assert_close(got.double(), torch.tensor(wanted, dtype=torch.float64), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tau", [1.0, 4.0, 20.0])
def test_hinton_equals_the_plain_loop_at_each_temperature(tau):
    close(Hinton(temperature=tau)(STUDENT, TEACHER), reference.hinton(STUDENT.tolist(), TEACHER.tolist(), tau))


def test_hinton_on_three_classes_by_hand():
    # At tau 2 the logits (2 ln 2, 0, 0) are probabilities (1/2, 1/4, 1/4); the student is uniform.
    teacher = torch.tensor([[2 * log(2), 0.0, 0.0]])
    by_hand = 4 * (0.5 * log(0.5 * 3) + 2 * 0.25 * log(0.25 * 3))
    assert Hinton(temperature=2.0)(torch.zeros(1, 3), teacher).item() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("tau", [1.0, 20.0])
def test_the_gradient_of_hinton_does_not_shrink_with_the_temperature(tau):
    student = STUDENT.clone().requires_grad_()
    Hinton(temperature=tau)(student, TEACHER).sum().backward()
    close(student.grad, reference.hinton_gradient(STUDENT.tolist(), TEACHER.tolist(), tau))


def test_l1_equals_the_plain_loop():
    close(LogitL1()(STUDENT, TEACHER), reference.logit_l1(STUDENT.tolist(), TEACHER.tolist()))


@pytest.mark.parametrize("loss", [Hinton(), LogitL1()], ids=lambda loss: loss.name)
def test_a_perfect_student_costs_nothing_and_half_precision_is_read_as_float32(loss):
    assert loss(TEACHER, TEACHER).abs().max() <= 1e-5
    found = loss(STUDENT.bfloat16(), TEACHER)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(STUDENT.bfloat16().float(), TEACHER))


@pytest.mark.parametrize("tau", [0.0, -1.0])
def test_a_temperature_that_is_not_positive_is_refused(tau):
    with pytest.raises(InputError, match="temperature"):
        Hinton(temperature=tau)

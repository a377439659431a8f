from math import log

import pytest
import torch
from reference import kd
from reference import losses as reference

from condkd_ray.core.method import InputError
from condkd_ray.methods.losses.kd import Hinton, LogitL1, NetworkOutputs, SoftCrossEntropy

RNG = torch.Generator().manual_seed(0)
STUDENT, TEACHER = 4 * torch.randn(2, 12, 5, generator=RNG)
LABELS = torch.arange(12) % 5


def found(loss, student=STUDENT, teacher=TEACHER):
    return loss(NetworkOutputs(student), NetworkOutputs(teacher), LABELS[: len(student)])


def close(got, wanted):
    torch.testing.assert_close(got.double(), torch.tensor(wanted, dtype=torch.float64), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tau", [1.0, 4.0, 20.0])
def test_hinton_equals_the_plain_loop_at_each_temperature(tau):
    close(found(Hinton(temperature=tau)), reference.hinton(STUDENT.tolist(), TEACHER.tolist(), tau))


def test_hinton_on_three_classes_by_hand():
    # At tau 2 the logits (2 ln 2, 0, 0) are probabilities (1/2, 1/4, 1/4); the student is uniform.
    teacher = torch.tensor([[2 * log(2), 0.0, 0.0]])
    by_hand = 4 * (0.5 * log(0.5 * 3) + 2 * 0.25 * log(0.25 * 3))
    assert found(Hinton(temperature=2.0), torch.zeros(1, 3), teacher).item() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("tau", [1.0, 4.0, 20.0])
def test_soft_cross_entropy_equals_the_plain_loop_at_each_temperature(tau):
    wanted = kd.soft_cross_entropy(STUDENT.tolist(), TEACHER.tolist(), tau)
    close(found(SoftCrossEntropy(temperature=tau)), wanted)


@pytest.mark.parametrize("tau", [1.0, 20.0])
@pytest.mark.parametrize("kind", [Hinton, SoftCrossEntropy])
def test_the_gradient_does_not_shrink_with_the_temperature(kind, tau):
    student = STUDENT.clone().requires_grad_()
    found(kind(temperature=tau), student).sum().backward()
    close(student.grad, reference.hinton_gradient(STUDENT.tolist(), TEACHER.tolist(), tau))


def test_l1_equals_the_plain_loop():
    close(found(LogitL1()), reference.logit_l1(STUDENT.tolist(), TEACHER.tolist()))


@pytest.mark.parametrize("tau", [0.0, -1.0])
@pytest.mark.parametrize("kind", [Hinton, SoftCrossEntropy])
def test_a_temperature_that_is_not_positive_is_refused(kind, tau):
    with pytest.raises(InputError, match="temperature"):
        kind(temperature=tau)

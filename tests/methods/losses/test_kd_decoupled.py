import pytest
import torch
from reference import kd

from condkd_ray.core.method import InputError
from condkd_ray.methods.losses.kd import Dkd, Hinton, NetworkOutputs

RNG = torch.Generator().manual_seed(0)
STUDENT, TEACHER = 4 * torch.randn(2, 12, 5, generator=RNG)
LABELS = torch.arange(12) % 5


def found(loss, student=STUDENT, teacher=TEACHER, labels=LABELS):
    return loss(NetworkOutputs(student), NetworkOutputs(teacher), labels)


@pytest.mark.parametrize("tau", [1.0, 4.0])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 8.0), (1.0, 0.0), (0.0, 1.0)])
def test_the_loss_equals_the_plain_loop(tau, alpha, beta):
    wanted = kd.decoupled(STUDENT.tolist(), TEACHER.tolist(), LABELS.tolist(), tau, alpha, beta)
    got = found(Dkd(alpha=alpha, beta=beta, temperature=tau)).double()
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_hintons_loss_is_a_sum_of_the_two_parts():
    sure, others = (found(Dkd(alpha=alpha, beta=1 - alpha, temperature=4.0)) for alpha in (1.0, 0.0))
    p = torch.softmax(TEACHER / 4, 1).gather(1, LABELS[:, None])[:, 0]
    torch.testing.assert_close(sure + (1 - p) * others, found(Hinton(temperature=4.0)), rtol=1e-5, atol=1e-5)


def test_the_loss_is_finite_for_an_extremely_confident_teacher():
    student = torch.zeros(2, 5, requires_grad=True)
    teacher = torch.zeros(2, 5)
    teacher[0, 0], teacher[1, 3] = 1e4, -1e4
    loss = found(Dkd(), student, teacher, torch.tensor([0, 3]))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_with_two_classes_the_non_target_part_is_0():
    student, teacher, labels = STUDENT[:, :2], TEACHER[:, :2], LABELS % 2
    assert found(Dkd(alpha=0.0), student, teacher, labels).abs().max() == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; accepted: > 0"),
        ({"alpha": -1.0}, "dkd alpha is -1.0; accepted: >= 0"),
        ({"beta": float("nan")}, "dkd beta is nan; accepted: >= 0"),
    ],
)
def test_invalid_settings_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Dkd(**fields)

import pytest
import torch
from reference import losses as reference
from toy import make_teacher, samples

from condkd_ray.methods.losses.inversion import disagreement, jensen_shannon

RNG = torch.Generator().manual_seed(0)
STUDENT, TEACHER = 2 * torch.randn(2, 40, 3, generator=RNG)


def test_disagreement_is_minus_the_kl_if_both_predict_the_same_class_and_0_otherwise():
    found = disagreement(STUDENT, TEACHER)
    wanted = torch.tensor(reference.disagreement(STUDENT.tolist(), TEACHER.tolist()))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert 5 < (wanted == 0).sum() < 35


def test_disagreement_has_a_gradient_only_for_images_with_equal_predictions():
    teacher = TEACHER.clone().requires_grad_()
    disagreement(STUDENT, teacher).sum().backward()
    agreed = STUDENT.argmax(1) == TEACHER.argmax(1)
    assert torch.equal(teacher.grad.abs().sum(1) > 0, agreed)


def test_disagreement_has_a_gradient_through_both_networks():
    teacher, images = make_teacher(), samples(8).images.requires_grad_()
    logits = teacher.logits(images)
    for student, others in ((0.5 * logits.detach(), logits), (0.5 * logits, logits.detach())):
        (gradient,) = torch.autograd.grad(disagreement(student, others).sum(), images, retain_graph=True)
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("reduction", ["mean", "batchmean"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_jensen_shannon_equals_the_plain_loop(reduction, temperature):
    found = jensen_shannon(3 * STUDENT, 3 * TEACHER, temperature=temperature, reduction=reduction)
    wanted = reference.jensen_shannon((3 * STUDENT).tolist(), (3 * TEACHER).tolist(), temperature, reduction)
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("classes", "low", "high"), [(10, 0.08, 0.15), (100, 0.002, 0.008)])
def test_the_released_reduction_gives_a_small_loss_to_confident_disagreement(classes, low, high):
    certain = 12 * torch.eye(classes)
    assert low < jensen_shannon(certain, certain.roll(1, 0)).mean() < high
    assert jensen_shannon(certain, certain.roll(1, 0), reduction="batchmean").mean() > 10 * low


def test_jensen_shannon_of_equal_logits_is_0_and_float32_under_autocast():
    assert jensen_shannon(TEACHER, TEACHER).abs().max() < 1e-6
    assert torch.equal(jensen_shannon(STUDENT, TEACHER), jensen_shannon(TEACHER, STUDENT))
    with torch.autocast("cpu", torch.bfloat16):
        assert jensen_shannon(STUDENT.bfloat16(), TEACHER).dtype == torch.float32

"""Losses of segmentation: values of pixels, averaged over the labelled ones of each image."""

import pytest
import torch
from reference import segmentation as reference

from condkd_ray.core.samples import UNLABELLED
from condkd_ray.methods.losses.inversion import class_prior, negative_activation, negative_entropy
from condkd_ray.methods.losses.kd import Hinton, LogitL1, NetworkOutputs, SoftCrossEntropy, per_image

B, K, SIDES = 3, 4, (2, 5)


def logits(seed):
    return 3 * torch.randn(B, K, *SIDES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(seed=2):
    found = torch.randint(-1, K, (B, *SIDES), generator=torch.Generator().manual_seed(seed))
    found[2] = UNLABELLED
    return found


def as_lists(values):
    """Return (B, K, H, W) as images of pixels of logits."""
    return values.movedim(1, -1).flatten(1, 2).tolist()


def expected(name, student, teacher, given):
    if name == "l1":
        return reference.dense_l1(as_lists(student), as_lists(teacher), given)
    return reference.dense_hinton(as_lists(student), as_lists(teacher), given, 4.0)


@pytest.mark.parametrize("loss", [Hinton(temperature=4.0), LogitL1()], ids=lambda loss: loss.name)
def test_a_loss_is_the_mean_over_the_labelled_pixels_of_each_image(loss):
    student, teacher, given = logits(0), logits(1), labels()
    found = loss(NetworkOutputs(student), NetworkOutputs(teacher), given)
    assert found.tolist() == pytest.approx(expected(loss.name, student, teacher, given.flatten(1).tolist()), rel=1e-5)
    assert found[2] == 0


def test_soft_cross_entropy_has_the_gradient_of_the_divergence():
    gradients = []
    for loss in (Hinton(temperature=4.0), SoftCrossEntropy(temperature=4.0)):
        student = logits(0).requires_grad_()
        loss(NetworkOutputs(student), NetworkOutputs(logits(1)), labels()).sum().backward()
        gradients.append(student.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    assert gradients[0].abs().max() > 0.01


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_class_prior_leaves_out_pixels_without_a_label(temperature):
    given = labels()
    wanted = reference.dense_prior(as_lists(logits(0)), given.flatten(1).tolist(), temperature)
    assert class_prior(logits(0), given, temperature).tolist() == pytest.approx(wanted, rel=1e-9)


def test_pixels_without_a_label_have_no_gradient():
    student, given = logits(0).requires_grad_(), labels()
    Hinton()(NetworkOutputs(student), NetworkOutputs(logits(1)), given).sum().backward()
    moved = student.grad.abs().sum(1) > 0
    assert torch.equal(moved, given != UNLABELLED)


def test_an_infinite_value_without_a_label_does_not_reach_the_mean():
    values = torch.tensor([[[1.0, torch.inf]]])
    assert per_image(values, torch.tensor([[[0, UNLABELLED]]])).tolist() == [1.0]
    assert per_image(values).tolist() == [torch.inf]


def test_terms_of_the_batch_are_those_of_all_its_pixels():
    wide = logits(0)
    assert negative_entropy(wide).item() == pytest.approx(negative_entropy(wide.movedim(1, -1).flatten(0, 2)).item())
    assert negative_activation(wide).item() == pytest.approx(-wide.abs().mean().item())

from math import log

import pytest
import torch
from reference import losses as reference
from toy import make_teacher, samples

from condkd_ray.losses.adversarial import disagreement, fool, tell_apart
from condkd_ray.networks.discriminator import FeatureDiscriminator
from condkd_ray.streams import Streams

RNG = torch.Generator().manual_seed(0)
STUDENT, TEACHER = 2 * torch.randn(2, 40, 3, generator=RNG)
REAL, FAKE = 3 * torch.randn(2, 9, generator=RNG, dtype=torch.float64)


def test_disagreement_is_minus_the_kl_where_both_name_one_class_and_0_elsewhere():
    found = disagreement(STUDENT, TEACHER)
    wanted = torch.tensor(reference.disagreement(STUDENT.tolist(), TEACHER.tolist()))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert 5 < (wanted == 0).sum() < 35


def test_disagreement_pushes_only_images_that_are_still_agreed_on():
    teacher = TEACHER.clone().requires_grad_()
    disagreement(STUDENT, teacher).sum().backward()
    agreed = STUDENT.argmax(1) == TEACHER.argmax(1)
    assert torch.equal(teacher.grad.abs().sum(1) > 0, agreed)


def test_images_feel_the_disagreement_through_both_networks():
    teacher, images = make_teacher(), samples(8).images.requires_grad_()
    logits = teacher.logits(images)
    for student, others in ((0.5 * logits.detach(), logits), (0.5 * logits, logits.detach())):
        (gradient,) = torch.autograd.grad(disagreement(student, others).sum(), images, retain_graph=True)
        assert gradient.abs().sum() > 0


def test_tell_apart_and_fool_are_binary_cross_entropies():
    torch.testing.assert_close(tell_apart(REAL, FAKE).item(), reference.tell_apart(REAL.tolist(), FAKE.tolist()))
    torch.testing.assert_close(fool(FAKE).item(), reference.fool(FAKE.tolist()))


def test_who_knows_nothing_pays_2_ln_2():
    assert tell_apart(torch.zeros(5), torch.zeros(5)).item() == pytest.approx(2 * log(2))


def test_an_untrained_discriminator_knows_almost_nothing():
    with Streams(0).forked("init/guide"):
        network = FeatureDiscriminator(16, 4, hidden=(32, 16), spectral=True)
    features = torch.randn(2, 200, 16, generator=RNG)
    loss = tell_apart(network(features[0])[0], network(features[1])[0])
    assert loss.item() == pytest.approx(2 * log(2), rel=0.05)


def test_huge_logits_stay_finite():
    huge = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = tell_apart(huge, huge) + fool(huge)
    loss.backward()
    assert loss.isfinite()
    assert huge.grad.isfinite().all()


@pytest.mark.parametrize("loss", [tell_apart, lambda real, fake: fool(fake)], ids=["tell_apart", "fool"])
def test_gradients_are_those_of_the_values(loss):
    assert torch.autograd.gradcheck(loss, (REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()))

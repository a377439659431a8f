import pytest
import torch
from reference import ssd_kd
from toy import make_prepared, make_teacher

from condkd_ray.core.method import InputError
from condkd_ray.methods.weighing import Equal, Modulating, equal_weights, uncertainty
from condkd_ray.models.observation import Observation

HELD = torch.tensor([7, 0, 3, 1])
NOTHING = torch.zeros(4, dtype=torch.int64)


def observed(logits):
    return Observation(logits, logits, ())


def phi(logits, held=HELD, **fields):
    return Modulating(**fields).bind(held)(observed(logits), torch.zeros(len(logits), dtype=torch.int64))


@pytest.fixture
def logits():
    return 3 * torch.randn(24, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 5.0])
@pytest.mark.parametrize(
    ("counted", "held", "batch"), [("both", HELD, True), ("memory", HELD, False), ("batch", NOTHING, True)]
)
def test_modulating_equals_the_formula(logits, gamma, counted, held, batch):
    wanted = ssd_kd.phi(logits.double().tolist(), gamma, held.tolist(), batch)
    torch.testing.assert_close(phi(logits, gamma=gamma, counted=counted), torch.tensor(wanted))


def test_with_an_empty_memory_the_weight_is_the_difficulty(logits):
    torch.testing.assert_close(phi(logits, NOTHING, counted="memory"), (1 - logits.softmax(1).amax(1)) ** 2)


def test_rare_classes_and_hard_images_have_larger_weights():
    rare_hard, rare_sure, common_hard, common_sure = phi(
        torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 5.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [5.0, 0.0, 0.0, 0.0]])
    )
    assert rare_hard > common_hard > rare_sure > common_sure > 0


def test_the_share_is_of_the_teachers_class_or_of_the_label():
    logits = torch.tensor([[5.0, 0.0, 0.0, 0.0], [0.0, 5.0, 0.0, 0.0]])
    predicted, label = Modulating().bind(HELD), Modulating(share_of="label").bind(HELD)
    right, wrong = torch.tensor([0, 1]), torch.tensor([1, 0])
    assert torch.equal(predicted(observed(logits), right), predicted(observed(logits), wrong))
    assert torch.equal(label(observed(logits), right), predicted(observed(logits), right))
    # Of 13 counted images, 8 are of class 0 and one is of class 1; both images are equally hard.
    shares = label(observed(logits), wrong) / uncertainty(logits, 2.0)
    torch.testing.assert_close(shares, torch.tensor([12 / 13, 5 / 13]))


def test_normalised_weights_have_mean_one_and_the_same_ratios(logits):
    plain, scaled = phi(logits), phi(logits, normalise=True)
    assert scaled.mean().item() == pytest.approx(1)
    torch.testing.assert_close(scaled / scaled[0], plain / plain[0])


def test_weights_are_0_if_all_images_are_of_one_class():
    same = torch.tensor([[3.0, 0.0, 0.0, 0.0]]).repeat(5, 1)
    for normalise in (False, True):
        assert torch.equal(phi(same, NOTHING, normalise=normalise), torch.zeros(5))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_value_and_gradient_are_finite_for_a_very_confident_teacher(gamma):
    logits = torch.tensor([[80.0, 0.0, 1.0], [30.0, 0.0, 0.0]], requires_grad=True)
    value = uncertainty(logits, gamma)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    assert uncertainty(logits, 1.0)[1].item() == pytest.approx(2 * torch.tensor(-30.0).exp().item(), rel=1e-4)


def test_only_through_confidence_gives_a_gradient_and_only_of_the_difficulty(logits):
    logits = logits.requires_grad_()
    assert not phi(logits).requires_grad
    assert not phi(logits, normalise=True).requires_grad
    value = phi(logits, through_confidence=True)
    (found,) = torch.autograd.grad(value.sum(), logits)
    diversity = value.detach() / uncertainty(logits.detach(), 2.0)
    (wanted,) = torch.autograd.grad((diversity * (1 - logits.softmax(1).amax(1)) ** 2).sum(), logits)
    torch.testing.assert_close(found, wanted)


def test_a_negative_exponent_is_refused():
    with pytest.raises(InputError, match="modulating gamma is -1; accepted: >= 0"):
        Modulating(gamma=-1)


def test_equal_gives_ones_for_any_memory():
    seen, labels = make_teacher().observe(torch.randn(3, 1, 8, 8)), torch.arange(3)
    weigh = Equal().bind(torch.tensor([5, 0, 0, 1]))
    assert torch.equal(weigh(seen, labels), torch.ones(3))
    assert torch.equal(weigh(seen, labels), equal_weights(seen, labels))


def test_equal_weights_are_ones_without_a_gradient():
    seen = make_prepared().teacher.observe(torch.randn(3, 1, 8, 8))
    weights = equal_weights(seen, torch.arange(3))
    assert torch.equal(weights, torch.ones(3))
    assert not weights.requires_grad

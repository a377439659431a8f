from math import log

import pytest
import torch
import torch.nn.functional as F
from reference import losses as reference

from condkd_ray.methods.inversion.cmi import instance_discrimination

RNG = torch.Generator().manual_seed(0)
LOCAL, WHOLE = F.normalize(torch.randn(2, 9, 5, generator=RNG, dtype=torch.float64), dim=2)


@pytest.mark.parametrize("count", [1, 4, 9])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_loss_equals_the_plain_loop(count, temperature):
    found = instance_discrimination(LOCAL, WHOLE, count, temperature)
    wanted = reference.instance_discrimination(LOCAL.tolist(), WHOLE.tolist(), count, temperature)
    assert found.item() == pytest.approx(wanted, rel=1e-5)


def test_equal_views_have_a_loss_of_the_logarithm_of_their_number_for_each_half():
    same = F.normalize(torch.ones(8, 3))
    assert instance_discrimination(same, same, 8).item() == pytest.approx(log(8), rel=1e-5)
    assert instance_discrimination(same, same, 2).item() == pytest.approx(2 * log(8), rel=1e-5)


def test_pairs_orthogonal_to_all_others_have_a_loss_of_0():
    apart = torch.eye(6)
    assert instance_discrimination(apart, apart, 3, 0.05).item() == pytest.approx(0, abs=1e-5)
    assert instance_discrimination(apart, apart.flip(0), 3, 0.05) > 10


def test_the_global_side_has_no_gradient():
    local, whole = LOCAL.clone().requires_grad_(), WHOLE.clone().requires_grad_()
    instance_discrimination(local, whole, 4).backward()
    assert whole.grad is None
    assert (local.grad.abs().sum(1) > 0).all()


def test_gradients_equal_finite_differences():
    local = LOCAL.float().requires_grad_()
    instance_discrimination(local, WHOLE.float(), 4, 1.0).backward()
    for row, column in ((0, 0), (3, 4), (8, 2)):
        step = torch.zeros_like(LOCAL)
        step[row, column] = 1e-5
        up, down = (
            reference.instance_discrimination((LOCAL + sign * step).tolist(), WHOLE.tolist(), 4, 1.0)
            for sign in (1, -1)
        )
        assert local.grad[row, column].item() == pytest.approx((up - down) / 2e-5, rel=1e-3, abs=1e-6)


def test_the_loss_is_float32_under_autocast():
    exact = instance_discrimination(LOCAL.float(), WHOLE.float(), 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert instance_discrimination(LOCAL.float(), WHOLE.float(), 4) == exact

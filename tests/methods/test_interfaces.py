import inspect

import pytest
import torch
from toy import make_prepared

from condkd_ray.methods.guidance.guidance import BoundGuide
from condkd_ray.methods.interfaces import Guide, Unguided, Weigh, equal_weights


@pytest.mark.parametrize("kind", [BoundGuide, Unguided])
@pytest.mark.parametrize("verb", ["penalty", "update"])
def test_every_guide_takes_what_a_host_gives(kind: type, verb: str):
    promised = inspect.signature(getattr(Guide, verb))
    assert list(inspect.signature(getattr(kind, verb)).parameters) == list(promised.parameters)


def test_equal_weights_are_a_weigh():
    seen = make_prepared().teacher.observe(torch.randn(3, 1, 8, 8))
    weights = equal_weights(seen, torch.arange(3))
    assert list(inspect.signature(equal_weights).parameters) == list(inspect.signature(Weigh.__call__).parameters)[1:]
    assert torch.equal(weights, torch.ones(3))
    assert not weights.requires_grad

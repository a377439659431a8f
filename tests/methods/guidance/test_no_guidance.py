import torch
from toy import make_prepared

from condkd_ray.core.rng import Streams
from condkd_ray.methods.guidance import NoGuidance


def test_it_says_nothing_and_draws_nothing():
    prepared, rng = make_prepared(), Streams(0)
    images = torch.randn(4, 1, 8, 8, requires_grad=True)
    seen = prepared.teacher.observe(images)
    guide = NoGuidance().bind(None, teacher=prepared.teacher, condensed=None, host_augment=lambda x, _: x, rng=rng)
    labels = torch.arange(4)
    assert guide.penalty(images, seen, labels) == 0
    assert not guide.penalty(images, seen, labels).requires_grad
    guide.update(images, seen, labels)
    assert guide.layers == ()
    assert NoGuidance().read(guide) == {}
    assert rng.state_dict() == {"device": {}, "host": {}}

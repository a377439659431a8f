"""The contract of all weighings (`condkd_ray.methods.weighing`)."""

from itertools import product
from typing import get_args

import pytest
import torch
import yaml
from toy import NUM_CLASSES, make_teacher, toy_config

from condkd_ray.methods.weighing import AnyWeighing, Equal
from condkd_ray.testing.drawing import check_weighing
from condkd_ray.trial import config
from contracts.toy_methods import INVERTERS, same, small, snake, snapshot, synthesize

KINDS = get_args(AnyWeighing)
each_weighing = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
HELD = torch.tensor([9, 1, 0, 2])
pairs = [
    pytest.param(kind, inverter, id=f"{kind.__name__}-{inverter.__name__}")
    for kind, inverter in product(KINDS, INVERTERS)
]


def observed(teacher, count=12):
    images = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    return teacher.observe(images), torch.arange(count) % NUM_CLASSES


@each_weighing
@pytest.mark.parametrize("held", [HELD, torch.zeros_like(HELD)], ids=["held", "empty"])
def test_each_sample_has_one_finite_weight_without_gradient(kind, held):
    teacher, counts = make_teacher(), held.clone()
    seen, labels = observed(teacher)
    before = snapshot(teacher.network)
    weights = kind().bind(counts)(seen, labels)
    assert weights.shape == (12,)
    assert weights.dtype == torch.float32
    assert weights.isfinite().all()
    assert (weights >= 0).all()
    assert weights.sum() > 0
    assert not weights.requires_grad
    assert torch.equal(counts, held)
    assert same(before, snapshot(teacher.network))


@each_weighing
def test_weights_do_not_depend_on_the_order_of_the_samples(kind):
    teacher = make_teacher()
    seen, labels = observed(teacher)
    weigh, order = kind().bind(HELD), torch.randperm(12, generator=torch.Generator().manual_seed(1))
    other = type(seen)(seen.logits[order], seen.features[order], seen.bn)
    torch.testing.assert_close(weigh(other, labels[order]), weigh(seen, labels)[order])


@pytest.mark.parametrize(("kind", "inverter"), pairs)
def test_weights_change_the_images_of_every_inversion_unless_equal(kind, inverter):
    inversion = small(inverter)
    weighed, terms = synthesize(inversion, weigh=kind().bind(HELD))
    plain, plain_terms = synthesize(inversion)
    assert torch.equal(weighed.images, plain.images) == (kind is Equal)
    assert (terms == plain_terms) == (kind is Equal)


@each_weighing
def test_a_weighing_satisfies_the_contract_of_each_task_that_it_claims(kind):
    check_weighing(kind())


@each_weighing
def test_config_is_equal_after_yaml_and_is_named_after_its_class_and_file(kind):
    complete = toy_config(weighing=kind())
    assert config.from_tree(yaml.safe_load(config.dump(complete))) == complete
    assert snake(kind.__name__) == kind().name
    assert kind.__module__ == "condkd_ray.methods.weighing"

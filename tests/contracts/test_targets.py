"""The contract of all sources of targets."""

from types import SimpleNamespace
from typing import get_args

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import NUM_CLASSES, make_teacher, toy_config

from condkd_ray.core.rng import Streams
from condkd_ray.methods.targets import AnyTargets, Balanced, balanced_labels
from condkd_ray.testing.drawing import check_targets
from condkd_ray.trial import config
from contracts.toy_methods import snake

TARGETS = [kind for kind in get_args(AnyTargets) if "classification" in kind.tasks]
each_source = pytest.mark.parametrize("kind", TARGETS, ids=lambda kind: kind.__name__)
each_of_any_task = pytest.mark.parametrize("kind", get_args(AnyTargets), ids=lambda kind: kind.__name__)


@pytest.fixture(scope="module")
def teacher():
    return make_teacher()


@each_source
@settings(max_examples=30)
@given(count=st.integers(0, 300), seed=st.integers(0, 2**62))
def test_there_is_one_label_per_image_drawn_from_its_own_stream(kind, teacher, count, seed):
    rng = Streams(seed)
    kind().check(teacher)
    targets = kind().sample(count, teacher, rng=rng)
    assert len(targets) == count
    assert targets.labels.shape == (count,)
    assert targets.labels.dtype == torch.int64
    assert ((targets.labels >= 0) & (targets.labels < NUM_CLASSES)).all()
    streams = rng.state_dict()
    assert streams["device"].keys() == {"targets"}
    assert not streams["host"]
    again = kind().sample(count, teacher, rng=Streams(seed))
    assert torch.equal(targets.labels, again.labels)
    assert torch.equal(targets.cross_entropy_target, again.cross_entropy_target)


@each_source
def test_different_calls_and_seeds_give_different_targets(kind, teacher):
    rng = Streams(0)
    first, second = (kind().sample(64, teacher, rng=rng).cross_entropy_target for _ in range(2))
    assert not torch.equal(first, second)
    assert not torch.equal(first, kind().sample(64, teacher, rng=Streams(1)).cross_entropy_target)


@each_source
def test_soft_targets_are_probabilities_and_labels_the_most_probable_classes(kind, teacher):
    targets = kind().sample(300, teacher, rng=Streams(0))
    assert (targets.soft is not None) == kind.soft
    if targets.soft is None:
        assert targets.temperature == 1
        return
    assert targets.soft.shape == (300, NUM_CLASSES)
    assert targets.soft.dtype == torch.float32
    assert not targets.soft.requires_grad
    assert (targets.soft >= 0).all()
    torch.testing.assert_close(targets.soft.sum(1), torch.ones(300))
    assert torch.equal(targets.labels, targets.soft.argmax(1))
    assert targets.temperature > 0


@given(count=st.integers(0, 300), num_classes=st.integers(1, 120), seed=st.integers(0, 2**62))
def test_balanced_counts_differ_by_at_most_one(count, num_classes, seed):
    teacher = SimpleNamespace(num_classes=num_classes, task="classification")
    labels = Balanced().sample(count, teacher, rng=Streams(seed)).labels
    counts = torch.bincount(labels, minlength=num_classes)
    assert labels.shape == (count,)
    assert len(counts) == num_classes
    assert counts.max() - counts.min() <= 1


def test_balanced_labels_are_shuffled_and_the_remainder_is_drawn_at_random():
    rng, times = Streams(0), 2000
    drawn = torch.stack([balanced_labels(3, 4, rng) for _ in range(times)])
    # Each class is missing, and is the first, with probability 1/4.
    spread = 5 * (times * 0.25 * 0.75) ** 0.5
    for counts in (torch.bincount(drawn[:, 0], minlength=4), times - torch.bincount(drawn.flatten(), minlength=4)):
        assert ((counts - times / 4).abs() < spread).all()
    # With two labels of each class, the first two of eight are equal with probability 1/7.
    pairs = sum((labels[0] == labels[1]).item() for labels in (balanced_labels(8, 4, rng) for _ in range(times)))
    assert abs(pairs - times / 7) < 5 * (times / 7 * 6 / 7) ** 0.5


@each_of_any_task
def test_a_source_satisfies_the_contract_of_each_task_that_it_claims(kind):
    check_targets(kind())


@each_source
def test_config_is_equal_after_yaml_and_is_named_after_its_class_and_file(kind):
    complete = toy_config(targets=kind())
    assert config.from_tree(yaml.safe_load(config.dump(complete))) == complete
    assert snake(kind.__name__) == kind().name
    assert kind.__module__ == "condkd_ray.methods.targets"

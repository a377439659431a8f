"""What every source of targets keeps to."""

from types import SimpleNamespace
from typing import get_args

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from toy import toy_config

from condkd_ray import config
from condkd_ray.streams import Streams
from condkd_ray.targets import AnyTargets
from condkd_ray.targets.balanced import balanced_labels
from contracts.toy_methods import snake

TARGETS = [AnyTargets] if isinstance(AnyTargets, type) else get_args(AnyTargets)
each_source = pytest.mark.parametrize("kind", TARGETS, ids=lambda kind: kind.__name__)


@each_source
@given(count=st.integers(0, 300), num_classes=st.integers(1, 120), seed=st.integers(0, 2**62))
def test_gives_one_class_a_wanted_image_from_its_own_stream(kind, count, num_classes, seed):
    rng = Streams(seed)
    teacher = SimpleNamespace(num_classes=num_classes)
    labels = kind().sample(count, teacher, rng=rng).labels
    assert labels.shape == (count,)
    assert labels.dtype == torch.int64
    assert ((labels >= 0) & (labels < num_classes)).all()
    opened = rng.state_dict()
    assert opened["device"].keys() == {"targets"}
    assert not opened["host"]
    assert torch.equal(labels, kind().sample(count, teacher, rng=Streams(seed)).labels)


@given(count=st.integers(0, 300), num_classes=st.integers(1, 120), seed=st.integers(0, 2**62))
def test_balanced_counts_differ_by_at_most_one(count, num_classes, seed):
    labels = balanced_labels(count, num_classes, Streams(seed))
    counts = torch.bincount(labels, minlength=num_classes)
    assert counts.max() - counts.min() <= 1


def test_balanced_labels_come_in_random_order_and_the_odd_ones_are_drawn():
    rng, times = Streams(0), 2000
    drawn = torch.stack([balanced_labels(3, 4, rng) for _ in range(times)])
    # Each class is left out, and stands first, a quarter of the time.
    spread = 5 * (times * 0.25 * 0.75) ** 0.5
    for counts in (torch.bincount(drawn[:, 0], minlength=4), times - torch.bincount(drawn.flatten(), minlength=4)):
        assert ((counts - times / 4).abs() < spread).all()
    # Two of each class: the first two of eight are of one class in one of seven orders.
    pairs = sum((labels[0] == labels[1]).item() for labels in (balanced_labels(8, 4, rng) for _ in range(times)))
    assert abs(pairs - times / 7) < 5 * (times / 7 * 6 / 7) ** 0.5


@each_source
def test_config_survives_yaml_and_the_name_is_the_files(kind):
    complete = toy_config(targets=kind())
    assert config.from_tree(yaml.safe_load(config.dump(complete))) == complete
    assert snake(kind.__name__) == kind().name == kind.__module__.rpartition(".")[2]

from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from condkd_ray.core.method import InputError
from condkd_ray.core.samples import unseen
from condkd_ray.methods.condensation import AllReal, AnyCondensation, Imported, RandomReal
from condkd_ray.methods.condensation.condensation import (
    class_table,
    draw_per_class,
    first_per_class,
    first_rows,
    per_class_order,
    random_per_class,
)
from methods.condensation.condensers import NUM_CLASSES, condense, nested_methods

labels_of_classes = st.lists(st.integers(0, 4), min_size=1, max_size=40).map(torch.tensor)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_slow_condensers_report_their_progress(tmp_path: Path):
    for method in nested_methods(2, tmp_path):
        steps: list[tuple[int, int]] = []
        condense(method, on_step=lambda done, total, steps=steps: steps.append((done, total)))
        quick = isinstance(method, (RandomReal, Imported))
        assert quick != bool(steps), method.name
        assert [done for done, _ in steps] == list(range(1, len(steps) + 1)), method.name
        assert {total for _, total in steps} <= {len(steps)}, method.name


def test_sets_are_nested_sorted_and_without_logits(tmp_path: Path):
    assert {type(m) for m in nested_methods(1, tmp_path)} == set(get_args(AnyCondensation)) - {AllReal}
    for small, middle, large in zip(*(nested_methods(ipc, tmp_path) for ipc in (1, 5, 10)), strict=True):
        whole = condense(large)
        assert whole.labels.tolist() == [label for label in range(NUM_CLASSES) for _ in range(10)]
        assert whole.logits.shape == (10 * NUM_CLASSES, 0)
        assert whole.images.dtype == torch.float32
        assert not whole.images.requires_grad
        for method in (small, middle):
            part = condense(method)
            assert torch.equal(part.images, first_per_class(whole, method.ipc, NUM_CLASSES).images)
            cached = condense(method.cached_config())
            assert torch.equal(part.images, first_per_class(cached, method.ipc, NUM_CLASSES).images)


def test_the_set_depends_on_the_seed_and_the_global_generator_is_not_used(tmp_path: Path):
    for method in nested_methods(5, tmp_path):
        before = torch.random.get_rng_state()
        first, again, other = condense(method), condense(method), condense(method, seed=1)
        assert torch.equal(first.images, again.images)
        assert not torch.equal(first.images, other.images)
        assert torch.equal(torch.random.get_rng_state(), before)


def test_ipc_below_one_is_refused(tmp_path: Path):
    for ipc in (0, -1):
        with pytest.raises(InputError, match=rf"condensation\.ipc is {ipc}"):
            nested_methods(ipc, tmp_path)


@given(labels=labels_of_classes)
def test_class_table_lists_the_rows_of_each_class(labels: torch.Tensor):
    table, counts = class_table(labels, 5)
    assert counts.tolist() == [(labels == label).sum().item() for label in range(5)]
    for label in range(5):
        rows = [row for row, mark in enumerate(labels.tolist()) if mark == label]
        assert table[label, : counts[label]].tolist() == rows


@given(labels=labels_of_classes, seed=st.integers(0, 20))
def test_order_is_a_permutation_sorted_by_class(labels: torch.Tensor, seed: int):
    order = per_class_order(labels, generator(seed))
    assert order.sort().values.tolist() == list(range(len(labels)))
    assert labels[order].tolist() == sorted(labels.tolist())


@given(counts=st.lists(st.integers(1, 8), min_size=1, max_size=5), seed=st.integers(0, 20), data=st.data())
def test_random_rows_are_nested_and_distinct(counts: list[int], seed: int, data: st.DataObject):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator(seed))]
    ipc = data.draw(st.integers(1, min(counts)))
    rows = random_per_class(labels, min(counts), len(counts), generator(seed)).view(len(counts), -1)
    assert len(set(rows.flatten().tolist())) == rows.numel()
    assert torch.equal(labels[rows], torch.arange(len(counts))[:, None].expand_as(rows))
    fewer = random_per_class(labels, ipc, len(counts), generator(seed)).view(len(counts), -1)
    assert torch.equal(fewer, rows[:, :ipc])
    with pytest.raises(InputError, match="images per class"):
        first_rows(labels, min(counts) + 1, len(counts))


@given(counts=st.lists(st.integers(1, 8), min_size=1, max_size=5), seed=st.integers(0, 20))
def test_drawn_rows_are_of_their_class_without_repeats(counts: list[int], seed: int):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).flip(0)
    drawn = draw_per_class(*class_table(labels, len(counts)), min(counts), generator(seed))
    assert torch.equal(labels[drawn], torch.arange(len(counts))[:, None].expand_as(drawn))
    assert all(len(set(row)) == len(row) for row in drawn.tolist())


def test_draws_reach_every_image():
    labels = torch.tensor([0, 0, 0, 1, 1])
    rng, table = generator(), class_table(labels, 2)
    seen = torch.cat([draw_per_class(*table, 2, rng) for _ in range(100)], dim=1)
    shares = torch.tensor([(seen == row).float().mean(1).sum() for row in range(5)])
    torch.testing.assert_close(shares, torch.tensor([1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2]), atol=0.06, rtol=0)


def test_a_class_without_images_is_named():
    samples = unseen(torch.zeros(3, 1, 2, 2), torch.tensor([0, 2, 2]))
    with pytest.raises(InputError, match="at most 0, the images of class 1"):
        first_per_class(samples, 1, 3)

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy import samples

from condkd_ray.core.samples import UNLABELLED, Codec, Samples, cat, to_model, to_unit, unseen

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def equal(left: Samples, right: Samples) -> bool:
    pairs = zip((left.images, left.labels, left.logits), (right.images, right.labels, right.logits), strict=True)
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)


def random_samples(seed: int, scale: float) -> Samples:
    """Return random samples; with a larger scale more pixels are outside of [0, 1]."""
    rng = torch.Generator().manual_seed(seed)
    images = scale * torch.randn(4, 3, 5, 5, generator=rng)
    return Samples(images, torch.arange(4), scale * torch.randn(4, 10, generator=rng))


@given(seed=st.integers(0, 2**32), scale=st.floats(0.01, 30), space=st.sampled_from(["unit", "model"]))
def test_a_second_round_trip_changes_nothing(seed, scale, space):
    codec = Codec(space, MEAN, STD)
    once = codec.decode(codec.encode(random_samples(seed, scale)))
    assert equal(codec.decode(codec.encode(once)), once)


def test_every_grey_value_is_encoded_exactly():
    codec = Codec("unit", MEAN, STD)
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    images = to_model(grey.float() / 255, MEAN, STD)
    assert torch.equal(codec.encode(unseen(images, torch.zeros(1, dtype=torch.int64))).images, grey)


def test_values_outside_the_range_are_clipped_not_wrapped():
    codec = Codec("unit", MEAN, STD)
    images = to_model(torch.tensor([-0.5, 1.5]).view(2, 1, 1, 1).expand(2, 3, 2, 2), MEAN, STD)
    encoded = codec.encode(unseen(images, torch.zeros(2, dtype=torch.int64)))
    assert encoded.images[0].eq(0).all()
    assert encoded.images[1].eq(255).all()


@pytest.mark.parametrize(("space", "bytes_each"), [("unit", 3 * 25), ("model", 2 * 3 * 25)])
def test_size_of_encoded_samples(space, bytes_each):
    encoded = Codec(space, MEAN, STD).encode(random_samples(0, 1.0))
    assert encoded.num_bytes == 4 * (bytes_each + 8 + 2 * 10)


@given(images=st.floats(-100, 100))
def test_to_unit_inverts_to_model(images):
    pixels = torch.full((1, 3, 1, 1), images)
    assert torch.allclose(to_unit(to_model(pixels, MEAN, STD), MEAN, STD), pixels, atol=1e-4)


@given(cuts=st.lists(st.integers(0, 12), max_size=4).map(sorted))
def test_cat_of_the_parts_equals_the_whole(cuts):
    whole = samples(12)
    bounds = [0, *cuts, 12]
    parts = [whole[a:b] for a, b in pairwise(bounds)]
    assert equal(cat(parts), whole)
    assert sum(map(len, parts)) == len(whole)


@given(st.lists(st.integers(0, 11), max_size=20), st.lists(st.integers(0, 11), max_size=20))
def test_an_index_selects_the_same_rows_of_images_labels_and_logits(left, right):
    whole = samples(12)
    first, second = (torch.tensor(rows, dtype=torch.int64) for rows in (left, right))
    assert equal(cat([whole[first], whole[second]]), whole[torch.cat([first, second])])


def test_unseen_samples_have_no_logits():
    few, seen = unseen(torch.zeros(3, 1, 8, 8), torch.arange(3)), samples(2)
    assert few.logits.shape == (3, 0)
    assert few.classes.eq(UNLABELLED).all()
    assert seen.classes.tolist() == seen.logits.argmax(1).tolist()
    assert (few.has_logits, seen.has_logits) == (False, True)


def test_concatenated_samples_have_logits_only_if_all_parts_do():
    few, seen = unseen(torch.zeros(3, 1, 8, 8), torch.arange(3)), samples(2)
    for parts in ([few, seen], [seen, few]):
        both = cat(parts)
        assert both.logits.shape == (5, 0)
        assert torch.equal(both.labels, torch.cat([part.labels for part in parts]))

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from condkd_ray.core.chunk_files import (
    COMPACT,
    JOIN_FROM,
    chunk_path,
    chunk_range,
    joinable,
    read_chunk,
    stored_chunks,
    write_chunk,
)
from condkd_ray.core.samples import Encoded
from condkd_ray.methods.memory.store import from_arrays, to_arrays
from methods.memory.chunks import encoded, equal


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16], ids=str)
@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1, 1)), (5, (3, 4, 5)), (64, (1, 28, 28))], ids=str)
def test_a_chunk_is_read_back_from_its_file_bit_for_bit(tmp_path, dtype, count, shape):
    chunk, path = encoded(count, dtype, shape), chunk_path(tmp_path / "new", 40, 40 + count)
    write_chunk(path, to_arrays(chunk))
    assert equal(from_arrays(read_chunk(path)), chunk)
    assert chunk_range(path) == (40, 40 + count)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_chunk_without_logits_is_read_back_without_them(tmp_path):
    chunk, path = encoded(5, with_logits=False), chunk_path(tmp_path, 0, 5)
    write_chunk(path, to_arrays(chunk))
    found = from_arrays(read_chunk(path))
    assert equal(found, chunk)
    assert found.logits.shape == (5, 0)
    complete = encoded(5)
    write_chunk(path, to_arrays(Encoded(chunk.images, chunk.labels, complete.logits)))
    assert from_arrays(read_chunk(path)).has_logits


def test_images_in_channels_last_are_written_correctly(tmp_path):
    chunk = encoded(6)
    last = Encoded(chunk.images.contiguous(memory_format=torch.channels_last), chunk.labels, chunk.logits)
    write_chunk(tmp_path / "x.arrow", to_arrays(last))
    assert equal(from_arrays(read_chunk(tmp_path / "x.arrow")), chunk)


def test_files_covered_by_a_larger_one_are_ignored(tmp_path):
    ranges = [(0, 4), (4, 8), (0, 8), (8, 12), (20, 24), (20, 30), (24, 30)]
    for start, stop in ranges:
        write_chunk(chunk_path(tmp_path, start, stop), to_arrays(encoded(stop - start)))
    (tmp_path / ".0000000000-0000000099.arrow.1.partial").write_bytes(b"half")
    assert [chunk_range(path) for path in stored_chunks(tmp_path)] == [(0, 8), (8, 12), (20, 30)]


def test_files_are_sorted_by_ids_as_numbers(tmp_path):
    ids = [10**9, 5, 99_999]
    for start in ids:
        write_chunk(chunk_path(tmp_path, start, start + 1), to_arrays(encoded(1)))
    assert [chunk_range(path)[0] for path in stored_chunks(tmp_path)] == sorted(ids)


def test_small_neighbours_are_joined_if_they_are_many_or_fill_a_chunk():
    spans = [(100 * number, 100) for number in range(60)]
    assert joinable(spans[: JOIN_FROM - 1]) == []
    assert joinable(spans) == [[100 * number for number in range(40)], [100 * number for number in range(40, 60)]]
    parted = spans[:20] + spans[21:50]
    assert joinable(parted) == [[start for start, _ in spans[:20]], [start for start, _ in spans[21:50]]]
    large = [(COMPACT // 8 * number, COMPACT // 8) for number in range(9)]
    assert joinable(large[:8]) == []
    assert joinable(large) == [[start for start, _ in large[:8]]]


@pytest.mark.parametrize("count", [100, 128, 512, 1000, COMPACT // 2, COMPACT // 2 + 1, 2560, 10_000])
def test_over_many_rounds_few_chunks_remain_and_each_sample_is_copied_at_most_twice(count):
    spans, copies = [], {}
    for number in range(200):
        spans.append((number * count, count))
        for run in joinable(spans):
            sizes = dict(spans)
            for first in run:
                for id in range(first, first + sizes[first], count // 4):
                    copies[id] = copies.get(id, 0) + 1
            joined = (run[0], sum(sizes[first] for first in run))
            spans = sorted([span for span in spans if span[0] not in run] + [joined])
    assert max(copies.values(), default=0) <= 2
    assert len(spans) <= JOIN_FROM + 2 * 200 * count / COMPACT


@given(
    st.lists(
        st.tuples(st.sampled_from([0] * 30 + [1]), st.sampled_from([1, 10, 200, 2000, 3000])), min_size=30, max_size=120
    )
)
def test_runs_to_join_are_neighbours_and_no_chunk_is_in_two_runs(gaps_and_counts):
    spans, start = [], 0
    for gap, count in gaps_and_counts:
        spans.append((start + gap, count))
        start += gap + count
    counts, used = dict(spans), []
    for run in joinable(spans):
        assert len(run) >= 2
        assert sum(counts[first] for first in run) <= COMPACT
        assert all(counts[first] <= COMPACT // 2 for first in run)
        assert all(first + counts[first] == following for first, following in pairwise(run))
        used += run
    assert len(used) == len(set(used))

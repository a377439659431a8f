from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from condkd_ray.memory.chunks import (
    COMPACT,
    JOIN_FROM,
    ChunkTable,
    chunk_path,
    chunk_range,
    from_arrays,
    join,
    joinable,
    read_chunk,
    stored_chunks,
    to_arrays,
    write_chunk,
)
from condkd_ray.samples import Encoded

RNG = torch.Generator().manual_seed(0)


def encoded(count, dtype=torch.uint8, shape=(3, 4, 5), classes=7):
    """Random bits: of float16 also infinities and NaN."""
    images = torch.randint(256, (count, *shape), generator=RNG, dtype=torch.uint8)
    if dtype == torch.float16:
        images = torch.randint(-(2**15), 2**15, (count, *shape), generator=RNG, dtype=torch.int16).view(dtype)
    labels = torch.randint(classes, (count,), generator=RNG)
    return Encoded(images, labels, torch.randn(count, classes, generator=RNG).half())


def bits(part):
    return [part.images.contiguous().view(torch.uint8), part.labels, part.logits.view(torch.int16)]


def equal(left, right):
    return all(map(torch.equal, bits(left), bits(right))) and left.images.dtype == right.images.dtype


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16], ids=str)
@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1, 1)), (5, (3, 4, 5)), (64, (1, 28, 28))], ids=str)
def test_a_chunk_comes_back_from_its_file_bit_for_bit(tmp_path, dtype, count, shape):
    chunk, path = encoded(count, dtype, shape), chunk_path(tmp_path / "new", 40, 40 + count)
    write_chunk(path, to_arrays(chunk))
    assert equal(from_arrays(read_chunk(path)), chunk)
    assert chunk_range(path) == (40, 40 + count)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_images_in_channels_last_are_written_in_their_own_order(tmp_path):
    chunk = encoded(6)
    last = Encoded(chunk.images.contiguous(memory_format=torch.channels_last), chunk.labels, chunk.logits)
    write_chunk(tmp_path / "x.arrow", to_arrays(last))
    assert equal(from_arrays(read_chunk(tmp_path / "x.arrow")), chunk)


def test_a_file_that_covers_others_counts_alone(tmp_path):
    ranges = [(0, 4), (4, 8), (0, 8), (8, 12), (20, 24), (20, 30), (24, 30)]
    for start, stop in ranges:
        write_chunk(chunk_path(tmp_path, start, stop), to_arrays(encoded(stop - start)))
    (tmp_path / ".0000000000-0000000099.arrow.1.partial").write_bytes(b"half")
    assert [chunk_range(path) for path in stored_chunks(tmp_path)] == [(0, 8), (8, 12), (20, 30)]


def test_ids_sort_as_numbers_in_a_folder_and_a_table(tmp_path):
    table, ids = ChunkTable(), [10**9, 5, 99_999]
    for start in ids:
        write_chunk(chunk_path(tmp_path, start, start + 1), to_arrays(encoded(1)))
        table.put(start, encoded(1))
    assert [chunk_range(path)[0] for path in stored_chunks(tmp_path)] == sorted(ids)
    assert [start for start, _ in table.items()] == sorted(ids)


@st.composite
def tables(draw):
    """A table of up to 6 chunks with gaps between them, put in any order, and all samples by id."""
    table, by_id, start, puts = ChunkTable(), {}, draw(st.integers(0, 5)), []
    for _ in range(draw(st.integers(1, 6))):
        chunk = encoded(draw(st.integers(1, 5)), shape=(1, 2, 2))
        puts.append((start, chunk))
        by_id |= {start + row: chunk[slice(row, row + 1)] for row in range(len(chunk))}
        start += len(chunk) + draw(st.integers(0, 3))
    for first, chunk in draw(st.permutations(puts)):
        table.put(first, chunk)
    return table, by_id


@given(tables(), st.data())
def test_gathering_is_picking_from_all_chunks_in_the_order_asked_for(made, data):
    table, by_id = made
    ids = data.draw(st.lists(st.sampled_from(sorted(by_id)), min_size=1, max_size=20))
    assert equal(table.gather(torch.tensor(ids)), join([by_id[i] for i in ids]))


@given(tables(), st.data())
def test_an_id_that_no_chunk_holds_is_a_key_error_that_names_it(made, data):
    table, by_id = made
    unknown = data.draw(st.integers(-3, max(by_id) + 3).filter(lambda i: i not in by_id))
    with pytest.raises(KeyError, match=f"sample {unknown}'"):
        table.gather(torch.tensor([min(by_id), unknown]))


def test_a_removed_chunk_is_unknown_and_its_neighbours_stay():
    table, chunks = ChunkTable(), [encoded(3) for _ in range(3)]
    for number, chunk in enumerate(chunks):
        table.put(3 * number, chunk)
    table.remove(3)
    with pytest.raises(KeyError):
        table.gather(torch.tensor([4]))
    assert equal(table.gather(torch.tensor([0, 1, 2, 6, 7, 8])), join([chunks[0], chunks[2]]))


def test_gathered_samples_share_no_memory_with_the_table():
    table, chunk = ChunkTable(), encoded(4)
    table.put(0, chunk)
    kept = join([chunk])
    for ids in (torch.arange(4), torch.tensor([2])):
        taken = table.gather(ids)
        for tensor in (taken.images, taken.labels, taken.logits):
            tensor.zero_()
    assert equal(chunk, kept)


def test_small_neighbours_are_joined_where_they_are_many_and_up_to_a_size():
    spans = [(100 * number, 100) for number in range(60)]
    assert joinable(spans[: JOIN_FROM - 1]) == []
    assert joinable(spans) == [[100 * number for number in range(40)], [100 * number for number in range(40, 60)]]
    parted = spans[:20] + spans[21:50]
    assert joinable(parted) == [[start for start, _ in spans[:20]], [start for start, _ in spans[21:50]]]


@given(st.lists(st.tuples(st.sampled_from([0] * 30 + [1]), st.sampled_from([1, 10, 200])), min_size=30, max_size=120))
def test_runs_to_join_are_whole_neighbours_and_no_chunk_is_in_two(gaps_and_counts):
    spans, start = [], 0
    for gap, count in gaps_and_counts:
        spans.append((start + gap, count))
        start += gap + count
    counts, used = dict(spans), []
    for run in joinable(spans):
        assert len(run) >= JOIN_FROM
        assert sum(counts[first] for first in run) <= COMPACT
        assert all(first + counts[first] == following for first, following in pairwise(run))
        used += run
    assert len(used) == len(set(used))

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from condkd_ray.core.samples import Encoded
from condkd_ray.methods.memory.chunk_table import ChunkTable, join
from condkd_ray.methods.memory.device_rows import DeviceRows, Rows
from methods.memory.chunks import encoded, equal

CPU = torch.device("cpu")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
KINDS = {
    "chunks": ChunkTable,
    "device": partial(DeviceRows, CPU, 2**30),
    "little room": partial(DeviceRows, CPU, 3000),
}
ON_CUDA = {"cuda": 2**30, "cuda, little room": 3000}
_kind = ["chunks"]


@pytest.fixture(
    params=[*KINDS, *(pytest.param(name, marks=[pytest.mark.gpu, CUDA]) for name in ON_CUDA)],
    autouse=True,
    scope="module",
)
def kind(request):
    """Run the tests with tables in host memory and on a device that has room for all samples or only for some."""
    _kind[0] = request.param


def new() -> Rows:
    name = _kind[0]
    return KINDS[name]() if name in KINDS else DeviceRows(torch.device("cuda"), ON_CUDA[name])


def gathered(table: Rows, ids: torch.Tensor) -> Encoded:
    """Return the gathered samples on the CPU."""
    found = table.gather(ids)
    return Encoded(found.images.cpu(), found.labels.cpu(), found.logits.cpu())


@st.composite
def tables(draw):
    """A table of up to 6 chunks, put in any order with gaps, all with logits or none; and the samples by id."""
    table, by_id, start, puts, with_logits = new(), {}, draw(st.integers(0, 5)), [], draw(st.booleans())
    for _ in range(draw(st.integers(1, 6))):
        chunk = encoded(draw(st.integers(1, 5)), shape=(1, 2, 2), with_logits=with_logits)
        puts.append((start, chunk))
        by_id |= {start + row: chunk[slice(row, row + 1)] for row in range(len(chunk))}
        start += len(chunk) + draw(st.integers(0, 3))
    for first, chunk in draw(st.permutations(puts)):
        table.put(first, chunk)
    return table, by_id


@given(tables(), st.data())
def test_samples_are_gathered_from_all_chunks_in_the_given_order(made, data):
    table, by_id = made
    ids = data.draw(st.lists(st.sampled_from(sorted(by_id)), min_size=1, max_size=20))
    assert equal(gathered(table, torch.tensor(ids)), join([by_id[i] for i in ids]))


@given(tables(), st.data())
def test_an_unknown_id_raises_a_key_error_that_names_it(made, data):
    table, by_id = made
    unknown = data.draw(st.integers(-3, max(by_id) + 3).filter(lambda i: i not in by_id))
    with pytest.raises(KeyError, match=f"sample {unknown}'"):
        table.gather(torch.tensor([min(by_id), unknown]))


def test_a_removed_chunk_is_unknown_and_the_others_are_kept():
    table, chunks = new(), [encoded(3) for _ in range(3)]
    for number, chunk in enumerate(chunks):
        table.put(3 * number, chunk)
    table.remove(3)
    with pytest.raises(KeyError):
        table.gather(torch.tensor([4]))
    assert equal(gathered(table, torch.tensor([0, 1, 2, 6, 7, 8])), join([chunks[0], chunks[2]]))


def test_gathered_samples_share_no_memory_with_the_table():
    table, chunk = new(), encoded(4)
    table.put(0, chunk)
    kept = join([chunk])
    for ids in (torch.arange(4), torch.tensor([2])):
        found = table.gather(ids)
        for tensor in (found.images, found.labels, found.logits):
            tensor.zero_()
    assert equal(chunk, kept)
    assert equal(gathered(table, torch.arange(4)), kept)


def test_spans_are_sorted_by_id():
    table, ids = new(), [10**6, 5, 99_999]
    for start in ids:
        table.put(start, encoded(1))
    assert table.spans() == [(start, 1) for start in sorted(ids)]


def test_images_in_channels_last_are_gathered_correctly():
    table, chunk = new(), encoded(6)
    table.put(0, Encoded(chunk.images.to(memory_format=torch.channels_last), chunk.labels, chunk.logits))
    table.put(6, encoded(2))
    assert equal(gathered(table, torch.arange(6)), chunk)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16], ids=str)
def test_chunks_far_apart_in_memory_are_gathered_correctly(dtype):
    # The allocator maps large chunks separately, and puts small ones on the heap.
    chunks = [encoded(count, dtype, shape=(3, 16, 16)) for count in (2, 900, 1, 700, 3)]
    table, start = ChunkTable(), 0
    for chunk in chunks:
        table.put(start, chunk)
        start += len(chunk)
    ids = torch.randint(start, (400,), generator=torch.Generator().manual_seed(0))
    assert equal(gathered(table, ids), join(chunks)[ids])


def test_gathering_no_ids_gives_an_empty_result_of_the_right_shape():
    table = new()
    table.put(0, encoded(3))
    assert equal(gathered(table, torch.empty(0, dtype=torch.int64)), encoded(0))


def test_a_pickle_or_a_copy_holds_the_chunks_and_not_the_memory_between_them():
    memory, table = np.zeros(2**24, np.uint8), ChunkTable()
    for start, place in ((0, 0), (2, 2**24 - 24)):
        images = torch.from_numpy(memory[place : place + 24]).view(2, 3, 2, 2).fill_(start + 1)
        table.put(start, Encoded(images, torch.zeros(2, dtype=torch.int64), torch.zeros(2, 0).half()))
    wanted = table.gather(torch.arange(4))
    stored = pickle.dumps(table)
    assert len(stored) < 2**20
    assert equal(pickle.loads(stored).gather(torch.arange(4)), wanted)

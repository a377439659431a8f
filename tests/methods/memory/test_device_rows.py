from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from guard import DEVICE, Guard, WaitsError

from condkd_ray.core.method import InputError
from condkd_ray.core.samples import Codec, Encoded
from condkd_ray.methods.memory import LocalStore, device_rows
from condkd_ray.methods.memory.chunk_table import ChunkTable, columns, join
from condkd_ray.methods.memory.device_rows import DeviceRows, default_limit, most_bytes, rows_on
from methods.memory.chunks import encoded, equal
from methods.memory.rounds import assert_alike, draws_without_waiting

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CPU, SHAPE = torch.device("cpu"), (1, 4, 4)
ROW = 16 + 8 + 2 * 7
"""Number of bytes of a sample of `chunk`."""


def chunk(count: int) -> Encoded:
    return encoded(count, shape=SHAPE)


def filled(rows: DeviceRows, *sizes: int) -> list[Encoded]:
    """Put chunks of these sizes into `rows`, one after the other, and return them."""
    chunks, start = [chunk(size) for size in sizes], 0
    for one in chunks:
        rows.put(start, one)
        start += len(one)
    return chunks


def test_capacity_grows_by_at_least_half_and_at_most_to_the_limit():
    rows, room = DeviceRows(CPU, 100 * ROW + ROW - 1), []
    chunks = [chunk(10) for _ in range(12)]
    for number, one in enumerate(chunks):
        rows.put(10 * number, one)
        room.append(rows.num_rows)
    assert room == [10, 20, 30, 45, 67, 67, 100, 100, 100, 100, 100, 100]
    assert equal(rows.gather(torch.arange(120)), join(chunks))
    large = DeviceRows(CPU, 10**6)
    filled(large, 10, 90)
    assert large.num_rows == 100


def test_rows_of_removed_chunks_are_used_again_before_the_capacity_grows():
    rows = DeviceRows(CPU, 10**6)
    chunks = filled(rows, 10, 10, 10)
    rows.remove(0)
    rows.remove(20)
    fresh = chunk(18)
    rows.put(30, fresh)
    assert rows.num_rows == 30
    assert equal(rows.gather(torch.arange(30, 48)), fresh)
    assert equal(rows.gather(torch.arange(10, 20)), chunks[1])
    rows.put(10, shorter := chunk(4))
    assert equal(rows.gather(torch.arange(10, 14)), shorter)
    for gone in (9, 14, 19, 25):
        with pytest.raises(KeyError, match=f"sample {gone}'"):
            rows.check(torch.tensor([30, gone]))


def test_samples_beyond_the_limit_are_kept_on_the_host():
    rows = DeviceRows(CPU, 25 * ROW)
    chunks = filled(rows, 10, 10, 10, 10)
    assert rows.num_rows == 25
    assert rows.host.spans() == [(25, 5), (30, 10)]
    ids = torch.tensor([24, 25, 3, 39, 29, 0, 25])
    assert equal(rows.gather(ids), join(chunks)[ids])
    assert equal(rows.gather(torch.arange(25, 40)), join(chunks)[slice(25, 40)])
    # Samples never move, but the next chunk uses the rows of removed ones.
    rows.remove(0)
    rows.put(40, last := chunk(12))
    assert rows.host.spans() == [(25, 5), (30, 10), (50, 2)]
    rows.remove(20)
    rows.remove(40)
    assert rows.host.spans() == [(30, 10)]
    rows.put(40, last)
    assert rows.host.spans() == [(30, 10)]
    assert equal(rows.gather(torch.arange(30, 52)), join([chunks[3], last]))


def test_beyond_the_limit_a_chunk_of_the_host_is_kept_without_a_copy():
    rows, host = DeviceRows(CPU, 4 * ROW), chunk(10)
    near = join([host])
    rows.put(0, host, near)
    host.images.zero_()
    found = rows.gather(torch.arange(10))
    assert torch.equal(found.images[:4], near.images[:4])
    assert not found.images[4:].any()
    assert not rows.host.gather(torch.arange(4, 10)).images.any()


def test_the_number_of_calls_of_a_draw_does_not_depend_on_the_number_of_chunks():
    def calls(size: int) -> list[str]:
        rows = DeviceRows(CPU, 10**6)
        filled(rows, *[size] * (400 // size))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            rows.gather(torch.randint(400, (64,)))
        return [event.name for event in seen.events() if event.name == "aten::index_select"]

    assert len(calls(2)) == len(calls(100)) == 3


class RecordingStream:
    """A replacement of `CopyStream` that records its calls in order."""

    def __init__(self) -> None:
        self.calls: list[object] = []
        self.lent: list[torch.Tensor] = []

    @contextmanager
    def copying(self, *, after_all: bool) -> Iterator[None]:
        self.calls.append("after all" if after_all else "at once")
        yield
        self.calls.append("made")

    def awaited(self) -> None:
        self.calls.append("awaited")

    def keep_until_copied(self, tensor: torch.Tensor) -> None:
        self.calls.append("lent")
        self.lent.append(tensor)

    def keep_until_used(self, tensor: torch.Tensor) -> None:
        self.calls.append("handed over")


def test_copies_and_draws_are_ordered(monkeypatch):
    copies = RecordingStream()
    monkeypatch.setattr(device_rows, "CopyStream", lambda device: copies)
    rows, near = DeviceRows(CPU, 15 * ROW), chunk(10)
    rows.put(0, join([near]), near)
    # Neither the rows nor the tensors copied into them may be freed before the copy is done.
    into, given = copies.lent[::2], copies.lent[1::2]
    assert [part.data_ptr() for part in given] == [column.data_ptr() for column in columns(near)]
    assert all(torch.equal(row, part) for row, part in zip(into, given, strict=True))
    for row in into:
        row.zero_()
    assert not any(column.any() for column in columns(rows.gather(torch.arange(10))))
    assert copies.calls == ["after all", *["lent"] * 6, "made", "awaited"]
    copies.calls.clear()
    rows.gather(torch.arange(10))
    assert copies.calls == ["awaited"]
    copies.calls.clear()
    rows.put(10, chunk(10))
    # When the capacity grows, only existing rows are copied.
    assert copies.calls == ["awaited", "after all", *["lent"] * 6, "made"]
    copies.calls.clear()
    rows.gather(torch.arange(20))
    assert copies.calls == ["awaited", "at once", "made", "awaited", *["handed over"] * 4]


def test_lookups_on_the_device_equal_those_on_the_host_after_every_change(monkeypatch):
    # On a CPU the lookup would use the host's table itself, on a GPU it uses a copy.
    monkeypatch.setattr(device_rows, "sent", lambda tensor, device: tensor.to(device, copy=True))
    rows = DeviceRows(CPU, 10**6)
    filled(rows, 10, 10, 10)

    def alike(*spans: range) -> bool:
        ids = torch.tensor([i for span in reversed(spans) for i in span])
        return rows.locate_on_device(ids).tolist() == rows.locate(ids.numpy()).tolist()

    assert alike(range(30))
    rows.remove(10)
    assert alike(range(10), range(20, 30))
    rows.put(30, chunk(15))
    assert alike(range(10), range(20, 45))
    rows.put(10, chunk(4))
    assert alike(range(14), range(20, 45))


def test_a_limit_below_one_sample_is_refused():
    with pytest.raises(InputError, match=rf"device pool limit is '{ROW - 1} bytes'; accepted: at least the {ROW} of"):
        DeviceRows(CPU, ROW - 1).put(0, chunk(3))


def test_a_cpu_uses_a_chunk_table_and_refuses_a_limit():
    assert isinstance(rows_on(CPU), ChunkTable)
    with pytest.raises(InputError, match="device pool limit on a CPU is '5 bytes'; accepted: none, or a GPU"):
        LocalStore(Codec("unit", (0.5,), (0.5,)), 7, device_limit=5)


def test_the_default_limit_on_a_gpu_is_a_quarter_of_the_trials_share(monkeypatch):
    class Properties:
        total_memory = 80 * 10**9

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    cuda = torch.device("cuda")
    assert [default_limit(cuda, part) for part in (1.0, 0.5, 2.0)] == [20 * 10**9, 10 * 10**9, 20 * 10**9]
    made = []
    monkeypatch.setattr(device_rows, "DeviceRows", lambda *given: made.append(given))
    rows_on(cuda)
    rows_on(cuda, 7)
    assert made == [(cuda, 20 * 10**9), (cuda, 7)]


def test_most_bytes_is_the_peak_during_the_last_growth(monkeypatch):
    held, most = 0, []

    def counted(shape, dtype, device):
        nonlocal held
        fresh = torch.zeros(shape, dtype=dtype)
        held += fresh.nbytes
        most[-1] = max(most[-1], held)
        return fresh

    for samples, limit in ((300, 10**9), (300, 200)):
        rows, held = DeviceRows(CPU, limit * ROW), 0
        most.append(0)
        for number in range(samples // 10):
            before, fresh = rows.num_rows, chunk(10)
            with monkeypatch.context() as patch:
                patch.setattr(torch, "empty", counted)
                rows.put(10 * number, fresh)
            held -= before * ROW * (rows.num_rows != before)
        assert 0.5 * most_bytes(samples * ROW, limit * ROW) < most[-1] <= most_bytes(samples * ROW, limit * ROW)


@pytest.mark.parametrize("limit", [10**6, 50 * ROW], ids=["all on the device", "most on the host"])
@pytest.mark.parametrize("space", ["unit", "model"])
def test_neither_put_nor_gather_reads_from_the_device_or_waits_for_it(limit, space):
    """The device is that of `guard`, which replaces a GPU and on which no value can be read."""
    store = LocalStore(Codec(space, (0.5,), (0.5,)), 7, device=DEVICE, device_limit=limit)
    dtype = torch.uint8 if space == "unit" else torch.float16
    with Guard():
        for number in range(8):
            store.table.put(40 * number, encoded(40, dtype, SHAPE))
    store.gather(torch.arange(3))  # the first call creates constants
    places = [CPU] if store.table.host.spans() else [CPU, DEVICE]
    for place in places:
        ids = torch.randint(320, (64,)).to(place)
        with Guard():
            drawn = store.gather(ids)
        assert (drawn.images.device, drawn.images.shape, drawn.images.dtype) == (DEVICE, (64, *SHAPE), torch.float32)
    if DEVICE not in places:
        # The host must read the ids to find the rows that it stores.
        ids = torch.randint(320, (64,)).to(DEVICE)
        with pytest.raises(WaitsError, match="from the device to the host"), Guard():
            store.gather(ids)


@pytest.mark.gpu
@CUDA
@pytest.mark.parametrize("limit", [None, 100 * ROW], ids=["all on the device", "most on the host"])
@pytest.mark.parametrize("kept", ["memory", "folder"])
@pytest.mark.parametrize("space", ["unit", "model"])
def test_on_a_gpu_no_draw_waits_and_all_draws_equal_those_on_the_cpu(limit, kept, space, tmp_path):
    code = Codec(space, (0.5,), (0.5,))
    folders = {name: tmp_path / name if kept == "folder" else None for name in ("cpu", "cuda")}
    host = LocalStore(code, 7, folders["cpu"], "cpu")
    device = LocalStore(code, 7, folders["cuda"], "cuda", device_limit=limit)
    assert_alike(draws_without_waiting(host, 12), draws_without_waiting(device, 12))
    assert device.num_bytes == host.num_bytes
    assert torch.equal(device.class_counts, host.class_counts)
    ids = torch.randint(host.num_ids - 40, host.num_ids, (64,))
    assert_alike([host.gather(ids)], [device.gather(ids.cuda())])


@pytest.mark.gpu
@CUDA
def test_rows_that_a_draw_still_reads_are_not_overwritten_by_the_next_chunk():
    rows, old, new = DeviceRows(torch.device("cuda"), 10**6), chunk(1000), chunk(1000)
    rows.put(0, old)
    torch.cuda.synchronize()
    torch.cuda._sleep(10**8)
    found = rows.gather(torch.arange(1000))
    rows.remove(0)
    rows.put(1000, new)
    assert equal(Encoded(found.images.cpu(), found.labels.cpu(), found.logits.cpu()), old)


@pytest.mark.gpu
@CUDA
def test_a_chunk_that_is_still_being_computed_is_copied_when_it_is_done():
    rows = DeviceRows(torch.device("cuda"), 10**6)
    late = torch.zeros(100, *SHAPE, dtype=torch.uint8, device="cuda")
    torch.cuda._sleep(10**8)
    late += 7
    labels = torch.arange(100, device="cuda")
    rows.put(0, Encoded(late, labels, torch.zeros(100, 7, dtype=torch.float16, device="cuda")))
    del late
    assert (rows.gather(torch.arange(100)).images == 7).all()

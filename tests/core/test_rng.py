import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from condkd_ray.core.rng import Streams, derive_seed

NAMES = ("targets", "latents", "draw", "condensed")


def numbers(streams: Streams, name: str, count: int = 3) -> list[float]:
    return torch.rand(count, generator=streams[name]).tolist()


@given(st.permutations(NAMES), st.integers(0, 2**40))
def test_a_stream_depends_only_on_its_seed_and_name(order, seed):
    streams = Streams(seed)
    drawn = {name: numbers(streams, name) for name in order}
    assert drawn == {name: numbers(Streams(seed), name) for name in order}
    assert len(set(map(tuple, drawn.values()))) == len(NAMES)


def test_another_seed_gives_another_stream():
    assert numbers(Streams(0), "draw") != numbers(Streams(1), "draw")
    assert numbers(Streams(0), "draw") == numbers(Streams(0), "draw")


def test_derived_seeds_are_equal_on_all_machines():
    assert derive_seed(0, "latents") == int.from_bytes(bytes.fromhex("2e74a1c5a4907391"), "little") >> 1


def test_host_and_device_streams_with_one_name_are_independent():
    streams = Streams(0)
    before = numbers(streams, "draw")
    torch.rand(5, generator=streams.host("draw"))
    assert numbers(streams, "draw") == numbers(_after(before), "draw")


def _after(drawn: list[float]) -> Streams:
    streams = Streams(0)
    assert numbers(streams, "draw") == drawn
    return streams


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_only_the_device_stream_is_on_the_gpu():
    streams = Streams(0, "cuda")
    assert torch.rand(3, generator=streams["latents"], device="cuda").is_cuda
    host = torch.rand(3, generator=streams.host("draw"))
    assert torch.equal(host, torch.rand(3, generator=Streams(0).host("draw")))


def test_a_loaded_state_continues_where_it_was_saved():
    live = Streams(3)
    numbers(live, "latents")
    torch.rand(7, generator=live.host("draw"))
    saved = live.state_dict()
    other = Streams(3)
    numbers(other, "targets")  # this stream is not in the checkpoint, so it must start from the beginning
    other.load_state_dict(saved)
    for name in ("latents", "targets"):
        assert numbers(other, name) == numbers(live, name)
    assert torch.equal(torch.rand(3, generator=other.host("draw")), torch.rand(3, generator=live.host("draw")))


def test_a_saved_state_does_not_change_with_the_live_one():
    live = Streams(0)
    numbers(live, "draw")
    saved = live.state_dict()
    expected = numbers(live, "draw")
    other = Streams(0)
    other.load_state_dict(saved)
    assert numbers(other, "draw") == expected


def test_forked_uses_its_seed_and_does_not_change_the_global_generator():
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    with Streams(0).forked("init/student"):
        first = nn.Linear(3, 3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(4)
    with Streams(0).forked("init/student"):
        second = nn.Linear(3, 3)
    with Streams(0).forked("init/teacher"):
        third = nn.Linear(3, 3)
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight, third.weight)


def test_forked_restores_the_global_generator_after_an_error():
    before = torch.random.get_rng_state()
    with pytest.raises(ZeroDivisionError), Streams(0).forked("init/student"):
        _ = torch.rand(1) + 1 // 0
    assert torch.equal(torch.random.get_rng_state(), before)

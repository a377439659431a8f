import pytest
import torch

from condkd_ray.core.device import CopyStream, sent

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, CUDA])])
def test_a_copy_is_ordered_after_earlier_work_and_before_later_work(device):
    copies, side = CopyStream(torch.device(device)), 1024
    source, target = torch.ones(side, side, device=device), torch.zeros(side, side, device=device)
    for _ in range(20):
        # On a GPU this takes long enough that a copy without synchronisation would run first.
        source = (source @ source).clamp(max=2.0)
    with copies.copying(after_all=True):
        copies.keep_until_copied(source)
        copies.keep_until_copied(target)
        target.copy_(source)
    copies.awaited()
    assert torch.equal((target + 1).cpu(), torch.full((side, side), 3.0))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, CUDA])])
def test_a_tensor_made_on_the_copy_stream_can_be_used_by_the_caller(device):
    copies, numbers = CopyStream(torch.device(device)), torch.arange(10)
    with copies.copying(after_all=False):
        made = sent(numbers, device)
    copies.awaited()
    copies.keep_until_used(made)
    assert torch.equal((made * 2).cpu(), 2 * numbers)


@pytest.mark.gpu
@CUDA
def test_copies_use_another_stream_and_the_host_does_not_wait():
    copies = CopyStream(torch.device("cuda"))
    before = torch.cuda.current_stream()
    with copies.copying(after_all=True):
        assert torch.cuda.current_stream() != before
        torch.cuda._sleep(10**9)
    assert torch.cuda.current_stream() == before
    copies.awaited()
    # The device still has at least half a second of work to do.
    assert not before.query()
    torch.cuda.synchronize()

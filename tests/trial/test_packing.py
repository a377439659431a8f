import pytest
import torch

from condkd_ray.trial.packing import to_plain, to_tensor

CASES = {
    "plain": torch.randn(2, 3, 4, 5),
    "channels last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "one channel, last": torch.randn(2, 1, 4, 5).contiguous(memory_format=torch.channels_last),
    "odd strides of size one": torch.randn(6, 4).as_strided((6, 1, 4), (4, 17, 1)),
    "slice": torch.randn(10, 4)[2:5],
    "gaps": torch.randn(10, 4)[:, ::2],
    "expanded": torch.randn(3, 1).expand(3, 4),
    "scalar": torch.tensor(7),
    "empty": torch.empty(3, 0),
    "bytes": torch.arange(6, dtype=torch.uint8).view(2, 3),
}


@pytest.mark.parametrize("name", CASES)
def test_a_tensor_is_equal_after_conversion_to_numpy_with_its_strides(name):
    tensor = CASES[name]
    back = to_tensor(to_plain(tensor))
    assert torch.equal(back, tensor)
    assert back.dtype == tensor.dtype
    if name not in ("gaps", "expanded"):
        assert back.stride() == tensor.stride()

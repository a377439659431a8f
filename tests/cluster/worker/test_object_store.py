import pytest
import torch
import toy

from condkd_ray.cluster.worker import object_store
from condkd_ray.cluster.worker.object_store import Depot, to_plain, to_tensor, unpack

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
def test_a_tensor_survives_as_numpy_with_its_strides(name):
    tensor = CASES[name]
    back = to_tensor(to_plain(tensor))
    assert torch.equal(back, tensor)
    assert back.dtype == tensor.dtype
    if name not in ("gaps", "expanded"):
        assert back.stride() == tensor.stride()


def assert_same(a: torch.Tensor, b: torch.Tensor) -> None:
    assert torch.equal(a, b)
    assert a.stride() == b.stride()


def test_what_is_unpacked_is_what_was_packed(cluster):
    prepared = toy.make_prepared()
    unpacked = unpack(toy.toy_config(), Depot().pack(prepared), "cpu")
    for name in ("test", "val", "condensed", "proxy", "landmarks"):
        for tensor, other in zip(*(vars(getattr(p, name)).values() for p in (unpacked, prepared)), strict=True):
            assert_same(tensor, other)
    old, new = prepared.teacher, unpacked.teacher
    for name, tensor in old.network.state_dict().items():
        assert_same(new.network.state_dict()[name], tensor)
    for name in ("num_classes", "image_shape", "mean", "std", "train_size", "flip_ok"):
        assert getattr(new, name) == getattr(old, name)
    assert torch.equal(new.logits(prepared.proxy.images), old.logits(prepared.proxy.images))
    assert unpacked.hashes == prepared.hashes


def test_a_trial_may_have_neither_condensed_nor_validation_images(cluster):
    import dataclasses

    prepared = dataclasses.replace(toy.make_prepared(condensed=False), val=None)
    unpacked = unpack(toy.toy_config(), Depot().pack(prepared), "cpu")
    assert unpacked.condensed is None
    assert unpacked.val is None
    assert unpacked.landmarks is not None
    assert unpacked.landmarks.condensed is None
    bare = unpack(toy.toy_config(), Depot().pack(dataclasses.replace(prepared, landmarks=None)), "cpu")
    assert bare.landmarks is None


def test_landmarks_follow_the_proxy_images_they_avoid(cluster):
    import dataclasses

    depot, prepared = Depot(), toy.make_prepared()
    other = dataclasses.replace(prepared, hashes=prepared.hashes | {"proxy": "another data seed"})
    assert depot.pack(prepared).parts["landmarks"] != depot.pack(other).parts["landmarks"]


def test_equal_contents_are_stored_once_and_unpacked_once(cluster):
    depot = Depot()
    first, second = depot.pack(toy.make_prepared()), depot.pack(toy.make_prepared(condensed=False))
    assert first.parts["test"] == second.parts["test"]
    assert set(first.parts) - set(second.parts) == {"condensed"}
    assert first.parts["landmarks"] != second.parts["landmarks"]
    one, two = (unpack(toy.toy_config(), parcel, "cpu") for parcel in (first, second))
    assert one.teacher is two.teacher
    assert one.test is two.test
    assert len(object_store._unpacked) == 5
